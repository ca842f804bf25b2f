"""The trunk: from a configuration to a finished run folder."""

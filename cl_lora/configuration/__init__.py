"""Configuration: where the YAML lies, composing it, and one builder of typed settings."""

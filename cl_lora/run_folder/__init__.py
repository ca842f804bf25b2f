"""The run folder: plain records, written whole and read strictly. Knows no arm and no model."""

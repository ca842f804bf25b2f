"""Where a benchmark's data comes from: a folder tree, Hugging Face ``datasets``, drawn shapes."""

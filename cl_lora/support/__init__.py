"""What every package may use: errors, files, random generators, progress."""

"""What every room may use: errors, files, JSON lines, YAML, text, paths, thought markers."""

"""Other programs' files: one module a format.

Each has `read(source, ImportOptions)`, which returns a `Bundle` that is not saved yet, and some have `write(bundle,
ExportOptions, target)`, which returns what the format cannot hold, a line each. Nothing that is read is executed.
"""

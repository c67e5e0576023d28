"""Other programs' files: one module a format.

Each has `read(source, ImportOptions)`, which returns a `Bundle` that is not saved yet, and some have `write(bundle,
ExportOptions, target)`, which returns what the format cannot hold, a line each. Nothing that is read is executed.
"""

# Here, not in `convert`, so that the command line can list them without importing pydantic.
READABLE = ("reference", "mapping", "saelens", "gguf", "repeng", "steered")
WRITABLE = ("steered", "gguf", "repeng", "saelens")

"""Other programs' files: read into bundles, written from them. One module a format.

Every reader takes (source, Wanted) and returns a `Bundle` that is not saved yet; every writer takes (bundle, Chosen,
target) and returns what the format cannot hold, a line each. Nothing read is ever executed.
"""

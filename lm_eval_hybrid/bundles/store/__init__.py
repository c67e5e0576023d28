"""Where bundles are kept and fetched from: folders, names, the hub."""

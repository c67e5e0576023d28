"""Where bundles are kept and fetched from: folders, names, archives, the hub."""

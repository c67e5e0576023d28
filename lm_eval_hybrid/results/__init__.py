"""Arms compared: runs, statistics, intervals."""

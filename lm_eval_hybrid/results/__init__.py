"""Arms compared: runs, figures, intervals and tests; recorded answers scored anew."""

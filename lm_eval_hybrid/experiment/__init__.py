"""Arms x tasks in one go: what is run, running it, and the file that says everything of it."""

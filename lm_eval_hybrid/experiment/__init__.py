"""Arms x tasks in one go: what an experiment is, running it, gap.json, and what a run will take."""

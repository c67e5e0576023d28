"""What a run will take before it is run: the models' sizes, their devices, tokens and time."""

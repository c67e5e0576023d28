"""What a run takes before it is run: the models' sizes, where they go, how many tokens, how long."""

"""A chat model that judges: which one, how it is asked, and its verdicts on answers."""

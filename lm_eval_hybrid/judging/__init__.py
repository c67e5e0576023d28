"""A model as a judge: how it is asked, what it says of answers, and how far another scorer agrees with it."""

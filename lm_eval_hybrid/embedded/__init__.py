"""The embedded pair: a base and a thinking model small enough to ship, and the problems they are trained on."""

"""Homes of a model: what decoding asks of one, and a model in this process that gives it."""

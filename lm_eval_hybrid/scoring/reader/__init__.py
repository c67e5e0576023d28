"""Reads the final answer out of generated text."""

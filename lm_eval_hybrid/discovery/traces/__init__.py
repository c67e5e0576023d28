"""Reasoning traces: problems, generation, sentences."""

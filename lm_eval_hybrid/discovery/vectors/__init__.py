"""Steering vectors fitted to the frozen base model."""

"""Sparse autoencoders over activations, and the behaviors that their latents name."""

"""Collapse of latent units, and its cause."""

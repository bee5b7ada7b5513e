"""Annealed importance sampling of a pair, and bounds of its evidence from both sides."""

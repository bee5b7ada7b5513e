"""Calibration: ranks of the latents that made simulated data, among draws of the guide."""

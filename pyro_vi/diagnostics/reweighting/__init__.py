"""Importance weights of the guide's draws: k-hat of each datum, site and data set, and corrected moments."""

"""Linear-response standard deviations of a mean-field guide."""

"""The gap between the evidence and the ELBO, split into what the encoder and what the family of the guide loses."""

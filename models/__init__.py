"""Generative programs, one per file, imported as `pyro_vi.models`."""

if __name__ != "pyro_vi.models":  # otherwise every class would exist twice
    raise ImportError("import pyro_vi.models, not models")

TABLE: dict[str, str] = {
    "vae": "pyro_vi.models.vae:VAE",
    "linear_gaussian": "pyro_vi.models.linear_gaussian:LinearGaussian",
    "conv_vae": "pyro_vi.models.conv_vae:ConvVAE",
    "hierarchical_vae": "pyro_vi.models.hierarchical_vae:HierarchicalVAE",
    "deep_markov": "pyro_vi.models.deep_markov:DeepMarkov",
    "ppca": "pyro_vi.models.linear_gaussian:PPCA",
    "factor_analysis": "pyro_vi.models.linear_gaussian:FactorAnalysis",
    "mixture": "pyro_vi.models.mixture:GaussianMixture",
    "state_space": "pyro_vi.models.state_space:StateSpace",
    "regression": "pyro_vi.models.regression:Regression",
    "conditional_vae": "pyro_vi.models.conditional_vae:ConditionalVAE",
    "semi_supervised_vae": "pyro_vi.models.semi_supervised_vae:SemiSupervisedVAE",
    "mixture_vae": "pyro_vi.models.mixture_vae:MixtureVAE",
    "topic": "pyro_vi.models.topic:Topic",
    "bayesian_network": "pyro_vi.models.bayesian_network:BayesianNetwork",
    "funnel": "pyro_vi.models.funnel:Funnel",
    "noisy_cone": "pyro_vi.models.noisy_cone:NoisyCone",
    "two_moons": "pyro_vi.models.two_moons:TwoMoons",
}

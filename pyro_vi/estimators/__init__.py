"""ELBO estimators by name: each is a `pyro.infer.ELBO`, usable as ``loss=`` of a plain `pyro.infer.SVI`."""

from pyro_vi.estimators.table import TABLE, Estimator, get, named

__all__ = ["TABLE", "Estimator", "get", "named"]

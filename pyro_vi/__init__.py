"""A workbench for variational inference in Pyro."""

from importlib.metadata import version

__version__ = version("pyro-vi")

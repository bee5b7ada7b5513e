"""Views of what there is: the layout of a pair, and the models, guides, data sets and estimators by name.

* `layouts`: `show` reads what pyro_vi takes a pair for into a `Layout`; `pictures` draws its programs with graphviz.
* `shelves`: the names of every table, the options of one, and which guides go with which models.
* `tables`: all of these as tables for a terminal.
"""

from pyro_vi.overview.layouts import Layout, show, show_pair
from pyro_vi.overview.shelves import described, matches, names

__all__ = ["Layout", "described", "matches", "names", "show", "show_pair"]

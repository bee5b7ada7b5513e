"""Views of what there is: the layout of a pair, and the models, guides, data sets and estimators by name.

* `layouts`: `show` reads what pyro_vi takes a pair for into a `Layout`; `pictures` draws its programs with graphviz.
* `written`: the names of every table, read without an import; `shelves`: the options of one name, and which guides go with
  which models.
* `tables` and `tabular`: all of these as tables for a terminal.
"""

from typing import TYPE_CHECKING

from pyro_vi.support.lazy import lazily

if TYPE_CHECKING:
    from pyro_vi.overview.layouts import Layout, show, show_pair
    from pyro_vi.overview.shelves import described, matches
    from pyro_vi.overview.written import names
else:
    __getattr__, __dir__ = lazily(__name__)

__all__ = ["Layout", "described", "matches", "names", "show", "show_pair"]

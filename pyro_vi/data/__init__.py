"""From names, files and arrays to batches.

* `loading` turns what people give into a `Data`; `registered` and `files` read what there is; `columns` checks it,
  and `mapped` leaves large files where they are; `dataset` deals out batches; `seeds` makes the random numbers of all
  of it.
"""

from pyro_vi.data.dataset import Batch, Data, DataSpec
from pyro_vi.data.loading import load
from pyro_vi.data.mapped import Mapped

__all__ = [
    "Batch",
    "Data",
    "DataSpec",
    "Mapped",
    "load",
]

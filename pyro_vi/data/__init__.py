"""Data sets: from a name, a file or arrays to minibatches.

* `loading` turns a name, a file or arrays into a `Data`. `registered` and `files` read the sources, `arrays` describes and
  splits columns, `columns` checks the values, and `mapped` reads the rows of large files on demand. `bounded` compares what the
  header of a file claims with the file.
* `arguments` tells columns from the other arguments of a program, and takes rows of arguments.
* `further` turns new rows into what programs take that were fitted to other data.
* `spec` describes one datum and the columns of a batch. `dataset` defines `Data`, which splits the training rows into
  batches. `seeds` makes the random generators for all of this, and `rows` the row numbers of files with very many rows.
"""

from pyro_vi.data.arguments import changed, evenly, fresh, numbered, part
from pyro_vi.data.dataset import Batch, Data, device_of, length_of, tensors_in
from pyro_vi.data.further import rows_like
from pyro_vi.data.loading import load
from pyro_vi.data.mapped import Mapped
from pyro_vi.data.redrawing import Redrawn
from pyro_vi.data.spec import ColumnSpec, DataSpec

__all__ = [
    "Batch",
    "ColumnSpec",
    "Data",
    "DataSpec",
    "Mapped",
    "Redrawn",
    "changed",
    "device_of",
    "evenly",
    "fresh",
    "length_of",
    "load",
    "numbered",
    "part",
    "rows_like",
    "tensors_in",
]

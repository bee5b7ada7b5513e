"""Readers of the registered data sets; the table of their names is in `pyro_vi.data.registered`.

* `raw` defines `Raw`, which a reader returns, and reads files of the folder PYRO_VI_DATA.
* `images`, `tables`, `series`, `robot`, `words` and `posteriors` read the sets of each kind.
"""

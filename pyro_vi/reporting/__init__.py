"""Comparisons and audits for people: tables, sentences, plots, JSON, and ArviZ's DataTree.

* `summary` makes tables and sentences; `document` the JSON; `plots_of_fits`, `plots_of_draws` and `look` the
  pictures, which `saving` writes; `datatree` hands a fitted pair to ArviZ.
"""

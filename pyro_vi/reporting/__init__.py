"""Reports of comparisons and audits: tables, sentences, figures, JSON, and ArviZ's DataTree.

* `summary` makes tables and conclusions, and `guides` those of several guides, from the `sentences` that they share and numbers
  that `cells` writes; `document` makes the JSON document.
* `plots_of_fits`, `plots_of_standings` and `plots_of_draws` make figures in the style of `look`. The folder `pictures` has
  those of model and data, and chooses among all; `saving` writes them. `of_pairs` reads pairs for them, and `mosaics` lays
  out images.
* `datatree` exports a fitted pair to ArviZ, with the sites that `exported` describes.
* `predicting` compares drawn with observed data, by the quantities of `checked_quantities`, in the words of
  `predictive_sentences`. `plots_of_predictions` and `plots_of_collapse` draw these checks.
"""

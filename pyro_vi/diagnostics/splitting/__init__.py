"""The gap between the evidence and the ELBO, split into what the encoder and what the family of the guide loses.

* `parts` measures it. `search` finds the best member of each family, on the density of each datum that `targets` makes.
* `normals` finds the best normals and reads those of the guide, `local_flows` the best flows; `own_family` says which family
  the guide belongs to, and finds the best low-rank normals. `descent` has the steps of both.
* `expectations` has means over draws, `evidence_from_search` log p(x) by draws from what was found, and `words` the sentences.
"""

"""Pictures of fitted pairs, for people who would rather look: which apply depends on the model and the data, not on names.

* `facts` says what is known of a pair and its data; `plotting` has the table of all pictures, chooses and writes them.
* `latents` shows posterior means coloured by label; `classes` samples for each class; `globals` marginals of latents that all
  data share, and coefficients; `densities` a target in the plane; `series` bands over time; `sequences` piano rolls and paths;
  `words` the words of topics.
"""

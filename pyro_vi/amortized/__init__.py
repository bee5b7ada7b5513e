"""Guides made from a model: what all families of `pyro_vi.guides` share.

* `columns` finds the columns that an encoder reads; `standard` and `encoders` make features of them.
* `frame` reads the model's latent sites: rows, plates, masks and supports; `unserved` refuses some. `shapes` turns a site's
  numbers into a vector for each row, and `series` finds the sites that are steps of one sequence.
* `blocks` holds the numbers of q; `placing` and `discrete` make distributions of sites from them, `chain` that of a normal over
  several sites, `paths` that of all steps of a sequence, and `flows` those of zuko.
* `parents` finds the sites that a site depends on. `density` is log p(x, z) on the unconstrained scale, which `points`
  evaluates at many points. From it `starts` finds where free parameters start, and `newton` the mode and the curvature there;
  `refining` ascends the ELBO of each datum.
* `guide` puts it together: `AmortizedGuide`, of which a family is a subclass.
"""

from pyro_vi.amortized.blocks import Block, Part, lower_triangle
from pyro_vi.amortized.chain import NormalChain, joined
from pyro_vi.amortized.flows import FLOWS, Pushforward, flow_layers
from pyro_vi.amortized.frame import Call, Frame
from pyro_vi.amortized.guide import AmortizedGuide
from pyro_vi.amortized.parents import Parent, aligned, labelled, parents_of
from pyro_vi.amortized.paths import NormalPath
from pyro_vi.amortized.starts import without_starts
from pyro_vi.support import whole

__all__ = [
    "FLOWS",
    "AmortizedGuide",
    "Block",
    "Call",
    "Frame",
    "NormalChain",
    "NormalPath",
    "Parent",
    "Part",
    "Pushforward",
    "aligned",
    "flow_layers",
    "joined",
    "labelled",
    "lower_triangle",
    "parents_of",
    "whole",
    "without_starts",
]

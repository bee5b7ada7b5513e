"""Work with a run after the fit: open, query, continue, save, export, compare and report it.

* `opening` makes an `OpenedRun` from a folder or a `Run`; `finding` finds its programs and data.
* `opened` defines `OpenedRun`; `generating` computes its posterior means, reconstructions and samples.
* `continuing` starts a new run from the parameters of another one; `storing` writes a run that is in memory only.
* `exporting` writes the pictures and results of a fit or a comparison; `compared` is `compare` and `resume` with these files.
* `refitting` fits a guide to many data sets from the model, and says whether it is calibrated.
* `reported` writes the page that says whether a posterior can be used, from what `measuring` measures.
* `writers` hand the records of a fit to TensorBoard, Weights & Biases and MLflow.
"""

from typing import TYPE_CHECKING

from pyro_vi.support.lazy import lazily

if TYPE_CHECKING:
    from pyro_vi.afterwards import writers
    from pyro_vi.afterwards.compared import compare, resume
    from pyro_vi.afterwards.exporting import export_comparison, export_fit
    from pyro_vi.afterwards.opened import OpenedRun
    from pyro_vi.afterwards.opening import open
    from pyro_vi.afterwards.refitting import refitted_calibration
    from pyro_vi.afterwards.reported import report, write_report
else:
    __getattr__, __dir__ = lazily(__name__)

__all__ = [
    "OpenedRun",
    "compare",
    "export_comparison",
    "export_fit",
    "open",
    "refitted_calibration",
    "report",
    "resume",
    "write_report",
    "writers",
]

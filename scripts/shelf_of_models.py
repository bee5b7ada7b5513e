"""The tables and pictures of docs/models.md: each model of the shelf, fitted for a short time on a data set.

    PYRO_VI_DATA=folder python scripts/shelf_of_models.py              # all models: about ten minutes on two cores
    PYRO_VI_DATA=folder python scripts/shelf_of_models.py vae topic    # some of them; the others keep their numbers

Each fit is what the command beside it does. The bound is the ELBO of held-out data, in nats per datum; where latents are shared
by all data, it is the ELBO of all of them, in nats. It is that of one fit with one seed, far from converged for the networks.
A model that cannot be fitted is left out, with the reason on stderr. The numbers are kept in docs/images/models/measured.json.
"""

import io
import json
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro
from matplotlib.figure import Figure
from PIL import Image

import pyro_vi
from pyro_vi.elbo import facts_of, measure
from pyro_vi.errors import first_line
from pyro_vi.fitting import Run
from pyro_vi.models import TABLE
from pyro_vi.reporting.pictures.plotting import comparison_of, plot

DOCS = Path(__file__).resolve().parents[1] / "docs"
START, END = "<!-- measured by scripts/shelf_of_models.py: {} -->", "<!-- end -->"
BYTES = 60_000
"""Most bytes of a picture."""


@dataclass(frozen=True)
class Entry:
    """A model of the shelf and how it is shown.

    Attributes:
        model: the model, with options.
        guide: the guide.
        data: the data set, with options.
        what: the picture.
        says: what the model is good for, in one sentence.
        options: further options of the fit.
    """

    model: str
    guide: str
    data: str
    what: str
    says: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.model.split("(")[0]

    @property
    def command(self) -> str:
        words = [_quoted(self.model), _quoted(self.guide), "--data", _quoted(self.data)]
        for option, value in self.options.items():
            words += [f"--{option.replace('_', '-')}", str(value)]
        return " ".join(["pyro-vi fit", *words])


ENTRIES = (
    Entry(
        "vae(latent_dim=2)",
        "diag_normal",
        "digits",
        "latent_means",
        "An MLP decoder, with a standard normal prior of the latent.",
        {"epochs": 200},
    ),
    Entry(
        "conv_vae", "diag_normal", "digits", "reconstructions", "A decoder of convolutions, for images.", {"epochs": 30}
    ),
    Entry("hierarchical_vae", "structured", "digits", "prior_samples", "Several layers of latents.", {"epochs": 60}),
    Entry(
        "conditional_vae",
        "diag_normal",
        "digits(labels=True)",
        "samples_by_class",
        "Decoder and guide know the class of each datum.",
        {"epochs": 60},
    ),
    Entry(
        "semi_supervised_vae",
        "diag_normal",
        "digits(labels=20)",
        "samples_by_class",
        "The class is known for twenty images of each digit; for the others it is summed out.",
        {"epochs": 120, "elbo": "enum"},
    ),
    Entry(
        "mixture_vae",
        "diag_normal",
        "digits",
        "components",
        "The prior of the latent is a mixture, whose component is summed out.",
        {"epochs": 60, "elbo": "enum"},
    ),
    Entry(
        "linear_gaussian(latent_dim=2)",
        "exact",
        "wine(standardize=True)",
        "latent_means",
        "A linear Gaussian model: posterior and evidence are exact.",
        {"epochs": 200, "lr": 0.02, "heldout": 0.5},
    ),
    Entry(
        "ppca(latent_dim=2)",
        "full_normal",
        "wine(standardize=True)",
        "latent_means",
        "Probabilistic PCA: one noise variance for all columns.",
        {"epochs": 200, "lr": 0.02, "heldout": 0.5},
    ),
    Entry(
        "factor_analysis(latent_dim=2)",
        "full_normal",
        "iris(standardize=True)",
        "latent_means",
        "Factor analysis: a noise variance for each column.",
        {"epochs": 200, "lr": 0.02, "heldout": 0.5},
    ),
    Entry(
        "mixture(components=4)",
        "diag_normal",
        "moons(rows=600)",
        "components",
        "Gaussian clusters; the component is summed out.",
        {"epochs": 60, "elbo": "enum"},
    ),
    Entry(
        "state_space(states='path')",
        "exact",
        "nile(standardize=True)",
        "bands",
        "Linear Gaussian states; exact by the Kalman filter.",
        {"steps": 400, "lr": 0.03},
    ),
    Entry(
        "deep_markov(latent_dim=6)",
        "structured",
        "robot(steps=30)",
        "paths",
        "A chain of latents with a network between steps; sequences of any length.",
        {"epochs": 60, "lr": 0.01},
    ),
    Entry(
        "topic",
        "diag_normal",
        "20ng",
        "top_words",
        "Each document mixes topics; a topic is a distribution of words.",
        {"epochs": 30, "lr": 0.01},
    ),
    Entry(
        "regression",
        "full_normal",
        "diabetes(standardize=True, target=True)",
        "coefficients",
        "Linear, logistic or Poisson regression, also with groups.",
        {"steps": 1500, "lr": 0.02},
    ),
    Entry(
        "bayesian_network",
        "diag_normal",
        "kidiq",
        "predictions",
        "A small network whose weights are latents.",
        {"steps": 1500, "lr": 0.02},
    ),
    Entry(
        "funnel",
        "structured",
        "none",
        "density",
        "A target without data: one latent sets the scale of the others.",
        {"steps": 2000, "lr": 0.01},
    ),
    Entry(
        "noisy_cone",
        "flow",
        "none",
        "density",
        "A target without data: its mass is on a thin ring.",
        {"steps": 1500, "lr": 0.01},
    ),
    Entry(
        "two_moons",
        "mixture",
        "none",
        "density",
        "A target without data: it has two modes.",
        {"steps": 2000, "lr": 0.01},
    ),
)


@dataclass(frozen=True)
class Options:
    """The models to measure, and the folder of the results."""

    models: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names of the models to measure; by default all."""
    docs: Path = DOCS
    """Folder with models.md, and images/models for the pictures."""
    steps: int | None = None
    """Steps of each fit, in place of those of its entry: for a look at the pictures."""


def fitted(entry: Entry, folder: Path, steps: int | None = None) -> dict[str, Any]:
    """Fit an entry, write its picture, and return its numbers."""
    options = dict(entry.options)
    if "compile" in options:
        options["compile"] = {"yes": True, "no": False}[options["compile"]]
    if steps is not None:
        options = {key: value for key, value in options.items() if key != "epochs"} | {"steps": steps}
    start = time.perf_counter()
    run = pyro_vi.fit(entry.model, entry.guide, entry.data, progress=False, **options)
    seconds = time.perf_counter() - start
    made = comparison_of(run, entry.model, entry.guide)
    figure = plot(made, only=entry.what)[entry.what]
    write_small(figure, folder / f"{entry.name}.png")
    bound, unit = bound_of(run)
    return {"bound": bound, "unit": unit, "seconds": seconds, "picture": entry.what, "command": entry.command}


def bound_of(run: Run) -> tuple[float, str]:
    """The ELBO of a fit and what it is of: of held-out data per datum, or of all data where they share latents."""
    last = run.history[-1]
    if "heldout_elbo" in last and math.isfinite(last["heldout_elbo"]):
        return last["heldout_elbo"], "per held-out datum"
    # The record has one draw, whose error is that of all data together.
    args = run.data.example(run.data.spec.num_data)
    _, count = run.pair.rows(args)
    return measure(run.pair, args, facts_of(run.pair, args), draws=1000, kl="sampled").elbo_mean * count, "in all"


def write_small(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG of few colours, as large as `BYTES` allows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for dpi in (110, 100, 90, 80, 70, 60, 50):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi)
        small = io.BytesIO()
        Image.open(buffer).convert("RGB").quantize(128, method=Image.Quantize.FASTOCTREE).save(
            small, format="PNG", optimize=True
        )
        if small.tell() <= BYTES:
            break
    path.write_bytes(small.getvalue())


def table(found: dict[str, dict[str, Any]]) -> str:
    """The table of the models that were measured, as Markdown."""
    lines = ["| model | with guide, on data | bound, nats | seconds |", "| --- | --- | ---: | ---: |"]
    for entry in ENTRIES:
        if entry.name in found:
            one = found[entry.name]
            bound = f"{one['bound']:.2f} {one['unit']}"
            lines.append(
                f"| [{entry.name}](#{entry.name}) | `{entry.guide}`, `{entry.data}` | {bound} | {one['seconds']:.0f} |"
            )
    return "\n".join(lines)


def gallery(found: dict[str, dict[str, Any]]) -> str:
    """A section for each model that was measured: its sentence, its command and its picture, as Markdown."""
    parts = []
    for entry in ENTRIES:
        if entry.name in found:
            alt = entry.what.replace("_", " ")
            parts.append(
                f"### {entry.name}\n\n{entry.says}\n\n```\n{entry.command}\n```\n\n"
                f"![{entry.name}: {alt}](images/models/{entry.name}.png)"
            )
    return "\n\n".join(parts)


def put(text: str, what: str, content: str) -> str:
    """Replace what stands between the marks of a part of the page."""
    start = START.format(what)
    before, rest = text.split(start)
    return f"{before}{start}\n{content}\n{END}{rest.split(END, 1)[1]}"


def main(options: Options) -> None:
    """Measure the models, and write numbers, pictures and page."""
    folder = options.docs / "images" / "models"
    kept = folder / "measured.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    for entry in ENTRIES:
        if entry.name not in TABLE or (options.models and entry.name not in options.models):
            continue
        try:
            found[entry.name] = fitted(entry, folder, options.steps)
        except Exception as error:  # the others go on
            print(f"{entry.name}: {first_line(error)}", file=sys.stderr)
            continue
        one = found[entry.name]
        print(
            f"{entry.name:20s} {one['bound']:10.2f} {one['unit']:20s} {one['seconds']:6.1f} s   {one['picture']}",
            flush=True,
        )
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found, indent=1) + "\n")
    page = options.docs / "models.md"
    text = put(page.read_text(), "table", table(found))
    page.write_text(put(text, "gallery", gallery(found)))


def _quoted(word: str) -> str:
    return f'"{word}"' if set(word) & set("()= ") else word


if __name__ == "__main__":
    main(tyro.cli(Options))

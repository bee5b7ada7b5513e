"""Compare two ELBO estimators on one pair: `python scripts/compare_estimators.py [folder for the pictures]`.

`Trace_ELBO` estimates the KL from the draw, log q(z | x) − log p(z). `TraceMeanField_ELBO` takes it in closed form. Both
estimate the same ELBO without bias. Their gradients differ in variance, and so the fits differ in speed.
"""

import sys
from pathlib import Path

from rich.console import Console

import pyro_vi
from pyro_vi.reporting.saving import save
from pyro_vi.reporting.summary import conclude, table


def main(out: Path) -> None:
    """Fit under both, audit both at the same parameters, and print the table and the conclusions."""
    comparison = pyro_vi.compare(
        "vae(latent_dim=4)",  # or your own: "my_model.py:Model", a class, a function
        "diag_normal",
        "digits",
        elbos=("trace", "mean_field"),
        epochs=30,
        lr=3e-3,
        schedule="cosine",
        audit_draws=500,
    )
    console = Console(highlight=False)
    console.print(table(comparison), *conclude(comparison), sep="\n")
    for step, audit in comparison.audits.items():
        ratio = audit.part_grad_var.sel(elbo="trace") / audit.part_grad_var.sel(elbo="mean_field")
        guide, model = (float(ratio.sel(part=part)) for part in ("guide", "model"))
        print(f"step {step:4d}: gradient variance of trace / that of mean_field: guide {guide:.2f}, model {model:.2f}")
    out.mkdir(parents=True, exist_ok=True)
    print(*save(comparison, out), sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/compare_estimators"))

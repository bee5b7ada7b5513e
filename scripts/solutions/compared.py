"""Two estimators compared on the digits: two fits of a VAE 64-64-z8, 100 passes each, and the variance of both gradients.

pyro_vi calls `pyro_vi.compare`, which also takes the ELBO and the evidence of the held-out rows, with its defaults. The way in
stock Pyro is what a person would write instead: two fits by `pyro.infer.SVI` and a loop over 1000 draws of each gradient, at
the start and at the end; it has no evidence. All use Adam at 3e-3, which falls to 0 along a cosine. The bound is that of 1000
(or all) held-out rows of the fit under ``mean_field``, which is the second one.
"""

import math
from typing import Any

from lines import ours, solve, tell

LATENT, HIDDEN, BATCH, LR = 8, 64, 128, 3e-3


def in_pyro_vi(compile: Any, passes: int, draws: int) -> None:
    """Run `pyro_vi.compare`, and print the bounds of its second fit; records do not name the estimator of their fit."""
    import pyro_vi

    fits: list[str] = []

    def record(found: dict[str, Any]) -> None:
        if found["step"] == 1:
            fits.append("")
        if len(fits) == 2:
            tell(heldout=found["heldout_elbo"], seen=found["epoch"])

    found = pyro_vi.compare(
        "vae",
        "diag_normal",
        "digits",
        epochs=passes,
        audit_draws=draws,
        compile=compile,
        records=passes,
        progress=False,
        callbacks=record,
    )
    tell(note=found.results["mean_field"].run.choice.note)
    tell(final=float(found.results["mean_field"].evaluation.elbo_mean))


def in_pyro(passes: int, draws: int) -> None:
    """Two fits and two loops over draws in stock Pyro; scikit-learn's images are drawn anew as 0 and 1 in each pass."""
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
    from sklearn.datasets import load_digits
    from torch import nn

    pyro.set_rng_seed(0)
    images = torch.from_numpy(load_digits().data).float() / 16
    images = images[torch.randperm(len(images))]
    train, test = images[299:], images[:299].bernoulli()
    for elbo in (Trace_ELBO(), TraceMeanField_ELBO()):
        pyro.clear_param_store()
        torch.manual_seed(1)
        encoder = nn.Sequential(nn.Linear(64, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 2 * LATENT))
        decoder = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 64))

        def model(x: Any, decoder: Any = decoder) -> None:
            pyro.module("decoder", decoder)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), LATENT), 1.0).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

        def guide(x: Any, encoder: Any = encoder) -> None:
            pyro.module("encoder", encoder)
            with pyro.plate("data", len(x)):
                loc, log_scale = encoder(x).chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

        steps = passes * math.ceil(len(train) / BATCH)
        settings = {"optimizer": torch.optim.Adam, "optim_args": {"lr": LR}, "T_max": steps}
        scheduler = pyro.optim.CosineAnnealingLR(settings)
        svi = SVI(model, guide, scheduler, elbo)
        parameters = [*encoder.parameters(), *decoder.parameters()]
        batch = train[:BATCH].bernoulli()
        variance(elbo, model, guide, parameters, batch, draws)
        for done in range(passes):
            for index in torch.randperm(len(train)).split(BATCH):
                svi.step(train[index].bernoulli())
                scheduler.step()
            if isinstance(elbo, TraceMeanField_ELBO):
                tell(heldout=-svi.evaluate_loss(test) / len(test), seen=done + 1)
        variance(elbo, model, guide, parameters, batch, draws)
    tell(final=-sum(svi.evaluate_loss(test) for _ in range(100)) / 100 / len(test))


def variance(elbo: Any, model: Any, guide: Any, parameters: list[Any], x: Any, draws: int) -> float:
    """Return the variance of a gradient, summed over its elements, by a loop over draws."""
    import torch

    total = square = torch.zeros(())
    for _ in range(draws):
        gradients = torch.autograd.grad(elbo.differentiable_loss(model, guide, x), parameters)
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients]).double() / len(x)
        total, square = total + flat, square + flat.square()
    return float((square / draws - (total / draws).square()).sum() * draws / (draws - 1))


WAYS = {"stock": in_pyro, **ours(in_pyro_vi)}

if __name__ == "__main__":
    solve(WAYS, __doc__, passes=100, draws=1000)

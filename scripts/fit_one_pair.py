"""Fit one pair by SVI and evaluate the fit: `python scripts/fit_one_pair.py`.

The model and the guide are ordinary Pyro programs. They are written out here so that you can change them. The names "vae"
and "diag_normal" give the same pair.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import pyro_vi


class Model(nn.Module):
    """z ~ N(0, I), x | z ~ Bernoulli(f(z)): a latent z generates an image x."""

    def __init__(self, data: pyro_vi.DataSpec, latent_dim: int = 8) -> None:
        super().__init__()
        self.num_data, self.latent_dim = data.num_data, latent_dim
        self.decoder = nn.Sequential(nn.Linear(latent_dim, 64), nn.Tanh(), nn.Linear(64, data.event_shape[0]))

    def forward(self, x: torch.Tensor) -> None:
        # The plate scales the minibatch from its own length to the full size of the data.
        with pyro.plate("data", self.num_data, subsample=torch.arange(len(x))):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.latent_dim), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)


class Guide(nn.Module):
    """q(z | x) = N(μ(x), σ(x)²): the likely values of the latent of each image."""

    def __init__(self, model: Model, batch: tuple[torch.Tensor, ...]) -> None:
        super().__init__()
        self.num_data = model.num_data
        self.encoder = nn.Sequential(nn.Linear(batch[0].shape[1], 64), nn.Tanh(), nn.Linear(64, 2 * model.latent_dim))

    def forward(self, x: torch.Tensor) -> None:
        with pyro.plate("data", self.num_data, subsample=torch.arange(len(x))):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def main() -> None:
    """Fit, and then evaluate the fit on held-out data."""
    run = pyro_vi.fit(Model, Guide, "digits", elbo="mean_field", epochs=50, lr=3e-3, schedule="cosine")
    for record in run.history[::20]:
        print(f"step {record['step']:4d}  ELBO {record['elbo']:7.2f}  held out {record['heldout_elbo']:7.2f}")
    (x,) = run.data.heldout
    found = pyro_vi.evidence(run.model, run.guide, x, particles=1000)
    elbo = run.history[-1]["heldout_elbo"]
    print(f"held-out ELBO {elbo:.2f} (one draw per datum), evidence {found.attrs['value']:.2f} nats per datum")


if __name__ == "__main__":
    main()

"""Runs of a pair."""

from catalogue import BATCH, CATALOGUE

from pyro_vi.elbo.traces import PARTICLES, draw_traces
from pyro_vi.programs.build import pair_of
from pyro_vi.programs.isolation import isolated


def test_draw_replays_the_model_on_the_guide():
    entry = CATALOGUE["nested_outside"]
    pair = pair_of(*entry.build(), entry.batch)
    with isolated(0):
        run = draw_traces(pair.model, pair.guide, entry.batch)
        many = draw_traces(pair.model, pair.guide, entry.batch, 4, 2).model_trace
    for name in entry.local:
        assert run.model_trace.nodes[name]["value"] is run.guide_trace.nodes[name]["value"]
    assert many.nodes["z"]["value"].shape == (4, BATCH, 3)
    assert any(frame.name == PARTICLES for frame in many.nodes["w"]["cond_indep_stack"])

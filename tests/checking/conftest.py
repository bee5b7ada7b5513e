"""Probes that fail show it."""

import pytest


@pytest.fixture(autouse=True)
def probes_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a user, a probe that fails finds nothing."""
    monkeypatch.setattr("pyro_vi.checking.checks.TOLERATED", ())

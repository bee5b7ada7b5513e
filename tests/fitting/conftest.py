"""Fits with few records."""

import pytest


@pytest.fixture
def few_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record costs as much as ten steps of a small pair."""
    monkeypatch.setattr("pyro_vi.fitting.loop.LOGGED", 4)

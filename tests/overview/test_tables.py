"""Tables for a terminal: nothing is cut, and rows that differ by a number are one."""

import dataclasses

import pytest
from catalogue import CATALOGUE

from pyro_vi.overview import Layout, show
from pyro_vi.overview.layouts import LaidParameter
from pyro_vi.overview.options import Option
from pyro_vi.overview.shelves import Described, Match
from pyro_vi.overview.tables import described_tables, layout_tables, match_tables
from pyro_vi.overview.tabular import name_tables, text_of


@pytest.fixture(scope="module")
def layout() -> Layout:
    entry = CATALOGUE["linear_gaussian_full_rank"]
    return show(*entry.build(), entry.batch)


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_a_layout_fits_80_columns(layout):
    lines = text_of(layout_tables(layout)).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "LinearGaussian with guide WrongGuide on array, estimator mean_field"
    assert "│ data  │  -1 │   50 │         7 │ the rows of data │" in lines
    assert "│ z    │ local latent │ data   │ 7 | 2 │ real    │ Normal       │" in lines
    assert any(line.startswith("│ z    │ MultivariateNormal │ analytic │ KL(MultivariateNormal ||") for line in lines)
    assert "│ guide.log_scale │ guide │ 2     │       2 │ real       │" in lines
    assert lines[-1].strip() == "numbers in all: model 12, guide 8"


def test_many_alike_are_one_row_and_the_rest_are_counted(layout):
    site = layout.sites["z"]
    sites = {f"z_{i}": dataclasses.replace(site, why=f"its prior depends on 'z_{i + 1}'") for i in range(30)}
    some = {
        f"layer.{name}": LaidParameter("guide", (i + 1,), i + 1, "real") for i, name in enumerate("abcdefghijklmno")
    }
    long = dataclasses.replace(layout, sites=sites, parameters=some, fixed=1234)
    text = text_of(layout_tables(long))
    assert text.count("z_0 … z_29 (30)") == 2 and "z_1 " not in text
    assert "layer.l " in text and "layer.m" not in text and "│ 3 more" in text and " 42 │" in text  # 13 + 14 + 15
    assert text.splitlines()[-2].strip() == "numbers in all: model 0, guide 120"
    assert text.splitlines()[-1] == "1,234 more numbers are not fitted, as their requires_grad is False"
    three = dataclasses.replace(layout, sites={name: sites[name] for name in ("z_0", "z_1", "z_2")})
    assert "…" not in text_of(layout_tables(three)).split("parameters")[0]


def test_brackets_in_types_and_reasons_are_shown():
    found = Described(
        "guide", "g", "A guide.", {"hidden": Option("tuple[int, ...]", "(64,)", "widths")}, "pyro-vi fit g"
    )
    text = text_of(described_tables(found))
    assert "tuple[int, ...]" in text and "(64,)" in text and "Options are given in parentheses: pyro-vi fit g" in text
    plain = dataclasses.replace(
        found, options={}, example="", pairs=(Match("a", "g", "d"), Match("b", "g", "d", "[no] way"))
    )
    lines = text_of(described_tables(plain)).splitlines()
    assert lines[2:4] == ["It has no options.", "It goes with the models: a"]
    assert any("[no] way" in line for line in lines)


def test_shelves_show_pairs_and_reasons():
    pairs = [
        Match("a", "g", "counts"),
        Match("a", "h", "counts"),
        Match("a", "i", "counts", "no way"),
        Match("b", "g", "", "bad"),
    ]
    text = text_of((*name_tables({"models": {"a": "A model."}}), *match_tables(pairs)))
    assert "│ a     │ counts   │ g, h   │" in text and "│ b     │          │ none   │" in text
    assert "│ a     │ i      │ no way │" in text and "A model." in text

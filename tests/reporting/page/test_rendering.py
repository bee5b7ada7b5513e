"""The page as text: what it shows is escaped, and its parts fit together."""

import math

import numpy as np
from matplotlib.figure import Figure
from page_checks import checked

from pyro_vi.reporting.page import Page, Section, judged, rendered
from pyro_vi.reporting.page.drawing import gap_bar, khat_by_datum, shown
from pyro_vi.reporting.page.glossary import TERMS
from pyro_vi.reporting.page.parts import Cell, Column, Command, Table, number

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;{{ 7 * 7 }}"


def hostile_page() -> Page:
    table = Table(
        HOSTILE,
        (Column(HOSTILE, "khat", False), Column("n", "elbo")),
        ((Cell(HOSTILE), number(1.5)),) * 2,
        ("elbo", ""),
    )
    figure = Figure(figsize=(2, 1))
    figure.suptitle(HOSTILE, parse_math=False)
    picture = shown(figure, HOSTILE, HOSTILE)
    section = Section(
        "reliability",
        HOSTILE,
        "care",
        (HOSTILE,),
        (table, table),
        (picture,),
        (Command(HOSTILE, HOSTILE, True),),
        (HOSTILE,),
        HOSTILE,
    )
    return Page(HOSTILE, HOSTILE, judged([section]), (section,), HOSTILE)


def test_all_that_the_page_shows_is_escaped() -> None:
    found = checked(rendered(hostile_page()))
    shown_text = "".join(found.text)
    assert shown_text.count(HOSTILE) >= 12  # as text, in each place
    assert "49" not in shown_text.replace(HOSTILE, "")
    assert found.images == 1


def test_the_glossary_has_the_terms_that_the_page_uses_and_no_others() -> None:
    text = rendered(hostile_page())
    assert [f"term-{name}" in text for name in ("khat", "elbo", "verdict", "error")] == [True] * 4
    assert "term-coverage" not in text
    assert all(term.meaning.endswith((".", "can.")) and term.document.startswith("docs/") for term in TERMS.values())


def test_equal_pages_are_equal_texts() -> None:
    assert rendered(hostile_page()) == rendered(hostile_page())


def test_numbers_show_two_digits_of_their_error_and_sort_by_their_value() -> None:
    assert number(-23.74503, 0.20601) == Cell("-23.75 ± 0.21", -23.74503)
    assert number(4736.0) == Cell("4,736", 4736.0)
    assert number(math.inf).text == "∞" and number(math.nan) == Cell("none")


def test_figures_have_the_data_that_they_are_given() -> None:
    axes = khat_by_datum(np.array([0.2, 0.9, math.nan, 0.6])).axes[0]
    below, above = (collection.get_offsets()[:, 1].tolist() for collection in axes.collections[-2:])
    assert (below, above) == ([0.6, 0.2], [0.9])  # in falling order, without the unknown one
    bars = gap_bar({"held-out": {"amortization": (0.3, 0.1), "approximation": (0.5, 0.1)}}).axes[0].patches
    assert [(bar.get_x(), bar.get_width()) for bar in bars] == [(0.0, 0.3), (0.3, 0.5)]

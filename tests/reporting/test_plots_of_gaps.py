"""The bars and the table of gaps show the numbers that they are given."""

import io

import pytest
from catalogue import WrongGuide, columns, linear_gaussian
from rich.console import Console

from pyro_vi.diagnostics import gaps
from pyro_vi.guides.student import Student
from pyro_vi.reporting.plots_of_gaps import gap_table, plot_gaps

PRECISION = linear_gaussian().posterior(columns(1))["z"].precision_matrix[0].detach()
APPROXIMATION = float(0.5 * (PRECISION.diagonal().log().sum() - PRECISION.logdet()))


@pytest.fixture(scope="module")
def split():
    return gaps(linear_gaussian(), WrongGuide(), columns(), families=["diag_normal", "full_normal"])


@pytest.fixture(scope="module")
def unsplit():
    model = linear_gaussian()
    return gaps(model, Student(model, (columns(),)), columns(), families=["diag_normal"])


def test_the_parts_of_a_bar_are_the_parts_of_the_gap(split):
    """The approximation gap of the model is ½ (Σ log P_ii − log det P)."""
    axes = plot_gaps({"training": split, "costs $a": split}).axes[0]
    widths = [bar.get_width() for bar in axes.patches]
    own = float(split.mean_approximation.sel(family="diag_normal"))
    assert widths == pytest.approx([own, float(split.mean_amortization), 0.0] * 2, abs=1e-9)
    assert own == pytest.approx(APPROXIMATION, abs=1e-6)
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        "training: the guide (diagonal normal)",
        "best full normal",
        "costs $a: the guide (diagonal normal)",
        "best full normal",
    ]


def test_a_gap_that_is_not_split_is_one_bar(unsplit):
    figure = plot_gaps({"training": unsplit})
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert widths == pytest.approx([float(unsplit.mean_gap), APPROXIMATION], abs=1e-6)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["approximation of another family", "gap that is not split"]


def test_the_table_has_each_number_with_its_error(split, unsplit):
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(gap_table({"training": split, "held-out": unsplit}, "nats"))
    text = console.export_text()
    lines = {
        line.split("│")[1].strip(): [c.strip() for c in line.split("│")[2:4]]
        for line in text.splitlines()
        if "│" in line
    }
    assert lines["approximation, diagonal normal (the guide's)"] == ["0.0843", "0.0843"]
    assert lines["approximation, full normal"] == ["0", "-"]
    assert lines["amortization"][1] == "-"
    gap, error = float(split.mean_gap), float(split.mean_gap_se)
    assert lines["gap"][0] == f"{gap:.2f} ± {error:.2f}"

"""Options of classes, from signatures and docstrings of both styles."""

import inspect

from pyro.infer.autoguide import AutoIAFNormal, AutoLowRankMultivariateNormal, AutoStructured

from pyro_vi.overview.options import Option, about, helps, options_from


class Base:
    """A base.

    Args:
        shared: an argument of the base
            in two lines.
    """


class Google(Base):
    """A class: it does
    one thing.

    More of it.

    Args:
        width: widths of ``layers``; see `about`.
        low, high: the two ends.
        **others: passed on.

    Returns:
        something: which is no argument.
    """

    def __init__(
        self, model: object, width: tuple[int, ...] = (3,), low: float | None = None, *, high: "int", shared=1, made=len
    ) -> None:
        pass


def parameters(cls):
    return list(inspect.signature(cls).parameters.values())


def test_options_of_a_class_with_arguments_in_googles_style():
    assert options_from(Google, parameters(Google)[1:]) == {
        "width": Option("tuple[int, ...]", "(3,)", "widths of layers; see about."),
        "low": Option("float | None", "None", "the two ends."),
        "high": Option("int", "required", "the two ends."),
        "shared": Option("int", "1", "an argument of the base in two lines."),
    }
    assert "something" not in helps(Google.__doc__ or "") and "others" in helps(Google.__doc__ or "")
    assert about(Google) == "A class: it does one thing."
    assert helps("") == {}


def test_options_of_pyros_classes_without_those_that_take_a_function():
    low_rank = options_from(AutoLowRankMultivariateNormal, parameters(AutoLowRankMultivariateNormal)[1:])
    assert low_rank.keys() == {"init_scale", "rank"}
    assert low_rank["rank"].type == "int or None" and low_rank["init_scale"].default == "0.1"
    assert low_rank["rank"].help.startswith("The rank of the low-rank part of the covariance matrix. Defaults to")
    assert options_from(AutoStructured, parameters(AutoStructured)[1:]).keys() == {
        "conditionals",
        "dependencies",
        "init_scale",
    }
    steps = options_from(AutoIAFNormal, parameters(AutoIAFNormal)[1:4])
    assert steps.keys() == {"hidden_dim", "num_transforms"}
    assert steps["num_transforms"].help == "number of AffineAutoregressive transforms to use in sequence."

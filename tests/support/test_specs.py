"""Names with options are read, and refused with what to write instead."""

import pytest
from data_toys import message

from pyro_vi.errors import UsageError
from pyro_vi.support import specs


@pytest.mark.parametrize(
    ("text", "target", "options"),
    [
        ("vae", "vae", {}),
        (" vae ( ) ", "vae", {}),
        ("vae(latent_dim=8, hidden=(256, 128))", "vae", {"latent_dim": 8, "hidden": (256, 128)}),
        (
            "vae(a=-1.5, b=None, c='x(y=1)', d={'k': [1]})",
            "vae",
            {"a": -1.5, "b": None, "c": "x(y=1)", "d": {"k": [1]}},
        ),
        ("path/file.py:Name(x=1)", "path/file.py:Name", {"x": 1}),
        ("my (1)/file.py:Name(x=1)", "my (1)/file.py:Name", {"x": 1}),
        ("my (1)/file.py:Name", "my (1)/file.py:Name", {}),
        ("package.module:Name", "package.module:Name", {}),
    ],
)
def test_parse(text: str, target: str, options: dict[str, object]) -> None:
    assert specs.parse(text) == (target, options)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("vae(8)", "'vae(8)': '8' has no option name; write it as option=value"),
        ("vae(*(1, 2))", "has no option name"),
        ("vae(**{'a': 1})", "'**' cannot be read; write every option as option=value"),
        ("vae(a=1, a=2)", "the option 'a' is given twice; give it once"),
        ("vae(a=open('x'))", "the value \"open('x')\" of 'a' is not a Python literal; write a number"),
        ("vae(a=b)", "the value 'b' of 'a' is not a Python literal"),
        ("vae(a=2 ** 3)", "is not a Python literal"),
        ("vae(a={[]: 1})", "is not a Python literal"),
        ("vae(a=1", "cannot read 'vae(a=1'; write name or name(option=value, ...)"),
        ("vae(a=)", "cannot read"),
        ("vae(a=1)(b=2)", "cannot read"),
        ("vae(a=1) + vae(b=2)", "cannot read"),
        ("(a=1)", "cannot read"),
        ("", "cannot read ''"),
        ("vae(" + "(" * 5000 + ")" * 5001, "cannot read"),
    ],
)
def test_parse_refuses(text: str, problem: str) -> None:
    assert problem in message(specs.parse, text, error=UsageError)


def test_unknown_lists_and_suggests() -> None:
    text = "no data set named 'digts'; did you mean 'digits'? Available: digits, mnist"
    assert str(specs.unknown("data set", "digts", ["digits", "mnist"])) == text
    assert str(specs.unknown("guide", "zzz", ["a", "b"])) == "no guide named 'zzz'. Available: a, b"
    assert str(specs.unknown("guide", "zzz", [])) == "no guide named 'zzz'. Available: none"


def test_check_options() -> None:
    specs.check_options("vae", {"a": 1}, ["a", "b"])
    text = message(specs.check_options, "vae", {"latent": 1}, ["latent_dim", "hidden"], error=UsageError)
    assert text == "vae has no option 'latent'; did you mean 'latent_dim'? Its options are: latent_dim, hidden"
    text = message(specs.check_options, "vae", {"x": 1}, [], error=UsageError)
    assert text == "vae has no option 'x'; it takes no options, so leave it out"

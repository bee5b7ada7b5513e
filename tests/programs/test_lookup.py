"""Programs by name: registered, in a file, in a package; and what is refused."""

import sys

import pyro
import pytest
from torch import nn

from pyro_vi.errors import InputError, UsageError
from pyro_vi.guides.diag_normal import DiagNormal
from pyro_vi.models.vae import VAE
from pyro_vi.programs.lookup import available, resolve


@pytest.mark.parametrize(
    ("kind", "names"), [("model", {"vae", "linear_gaussian"}), ("guide", {"diag_normal", "exact"})]
)
def test_registered_programs_say_what_they_are(kind, names):
    found = available(kind)
    assert names <= set(found)
    for name, line in found.items():
        program, _ = resolve(name, kind)
        assert line == program.__doc__.splitlines()[0]
        assert program.__module__.startswith(f"pyro_vi.{kind}s.")


def test_a_registered_name_with_options():
    assert resolve("vae", "model") == (VAE, {})
    assert resolve("vae(latent_dim=2, hidden=(8, 4))", "model") == (VAE, {"latent_dim": 2, "hidden": (8, 4)})
    assert resolve("diag_normal", "guide") == (DiagNormal, {})


def test_a_name_in_a_package():
    assert resolve("pyro_vi.models.vae:VAE(latent_dim=3)", "model") == (VAE, {"latent_dim": 3})


def test_a_file_that_was_edited_is_read_again(tmp_path):
    path = tmp_path / "edited.py"
    found = []
    for value in (1, 1, 2):
        path.write_text(f"class Model:\n    value = {value}\n")
        found.append(resolve(f"{path}:Model", "model")[0])
    assert [program.value for program in found] == [1, 1, 2]
    assert found[0] is found[1]


def test_a_name_in_a_file(file):
    program, options = resolve(f"{file}:Model(width=5)", "model")
    assert (program.__name__, options) == ("Model", {"width": 5})
    assert callable(resolve(f"{file}:function_guide", "guide")[0])
    assert isinstance(resolve(f"{file}:module_guide", "guide")[0], nn.Module)
    assert resolve(f"{file}:Model", "model")[0] is program  # one file, one module: classes are not doubled
    assert len(pyro.get_param_store()) == 0
    assert str(file.parent) not in sys.path


@pytest.mark.parametrize("path", ["mine.py", "./mine.py"])
def test_a_path_may_be_relative(file, monkeypatch, path):
    monkeypatch.chdir(file.parent)
    assert resolve(f"{path}:Model", "model")[0].__name__ == "Model"


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("vea", "model", "no model named 'vea'; did you mean 'vae'? Available: vae, linear_gaussian"),
        ("diag_normal", "model", "no model named 'diag_normal'. Available: vae"),
        ("diagnormal(hidden=(3,))", "guide", "did you mean 'diag_normal'"),
        ("FILE:Modle", "model", "did you mean 'Model'? Available: Model, Guide, function_guide"),
        ("FILE", "model", "names a file but no program in it; write"),
        ("nowhere.py:Model", "model", "file 'nowhere.py' does not exist"),
        ("pyro_vi.nowhere:Model", "model", "'pyro_vi.nowhere' cannot be imported: ModuleNotFoundError"),
        ("pyro_vi.models.vae:VEA", "model", "did you mean 'VAE'"),
        ("vae(3)", "model", "has no option name"),
        ("vae(latent_dim=open)", "model", "not a Python literal"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(file, text, kind, words):
    with pytest.raises(UsageError) as caught:
        resolve(text.replace("FILE", str(file)), kind)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def Model(:\n", "cannot be imported: SyntaxError"),
        ("\nraise RuntimeError('first\\nsecond')", "cannot be imported: RuntimeError: first"),
        ("import nowhere_at_all", "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_a_file_that_does_not_import_says_why_in_one_line(tmp_path, source, words):
    path = tmp_path / "broken.py"
    path.write_text(source, encoding="utf-8")
    for _ in range(2):  # what failed once is not taken for loaded
        with pytest.raises(InputError) as caught:
            resolve(f"{path}:Model", "model")
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    path.write_text("def Model(x): ...", encoding="utf-8")
    assert callable(resolve(f"{path}:Model", "model")[0])

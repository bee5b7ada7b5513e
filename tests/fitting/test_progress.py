"""Progress goes to stderr and nowhere else."""

from catalogue import columns

from pyro_vi import fit
from pyro_vi.data.loading import load
from pyro_vi.fitting.progress import Progress


def test_nothing_on_stdout(capsys):
    with Progress("trace", 10, True) as bar:
        bar.update(4, -12.345)
        bar.update(10, -11.0)
    out, err = capsys.readouterr()
    assert out == ""
    assert "trace" in err and "10/10" in err and "ELBO -11.00" in err
    assert err.count("\n") == 1  # where stderr is no terminal


def test_it_can_be_turned_off(capsys):
    with Progress("trace", 10, False) as bar:
        bar.update(4, -12.345)
    assert capsys.readouterr() == ("", "")


def test_a_fit_shows_progress_on_stderr_only(capsys):
    data = load(columns(50))
    fit("linear_gaussian(latent_dim=2)", "diag_normal(hidden=(4,))", data, steps=3)
    out, err = capsys.readouterr()
    assert out == "" and "mean_field" in err and "3/3" in err
    fit("linear_gaussian(latent_dim=2)", "diag_normal(hidden=(4,))", data, steps=3, progress=False)
    assert capsys.readouterr() == ("", "")

"""Exports are small and say what they hold; one that fails costs nothing else."""

import json

import pytest
import torch
import xarray as xr
from closed_forms import PPCA

import pyro_vi
from pyro_vi.afterwards import exporting
from pyro_vi.afterwards.exporting import capped_tree, export_fit


def test_an_export_holds_what_fits(run, monkeypatch):
    x = torch.randn(300, 3, dtype=torch.float64)
    tree, remark = capped_tree(run.pair, (x,), on="new")
    assert remark == "" and tree.attrs["rows"] == "all 300 new rows"
    # A row takes 8 (2 · 2 + 3 + 1) = 64 bytes a draw.
    monkeypatch.setattr(exporting, "BYTES", 64 * 100 * 50)
    tree, remark = capped_tree(run.pair, (x,), on="new")
    assert tree["posterior"].sizes["data"] == 50 and tree.attrs["rows"] == "the first 50 of 300 new rows"
    assert "holds the first 50 of 300 new rows, with 100 draws each" in remark
    monkeypatch.setattr(exporting, "BYTES", 64 * 20 * 30)
    tree, remark = capped_tree(run.pair, (x,), on="new")
    assert dict(tree["posterior"].z.sizes) == {"chain": 1, "draw": 30, "data": 20, "z_dim_0": 2}
    assert tree.attrs["draws"] == 30 and "with 30 draws each" in remark


def test_an_export_that_fails_is_one_line_and_loses_nothing(run, monkeypatch, tmp_path):
    def broken(*args, **options):
        raise RuntimeError("no room\nfor it")

    monkeypatch.setattr(exporting, "datatree_of_pair", broken)
    monkeypatch.setattr(exporting, "save", broken)
    with pytest.warns(UserWarning) as said:
        found = export_fit(run, tmp_path)
    assert [str(one.message) for one in said] == [
        "no result.nc: RuntimeError: no room",
        "no pictures: RuntimeError: no room",
    ]
    assert found.plots == [] and found.trees == []


@pytest.mark.slow
def test_compare_in_python_writes_what_the_command_writes(tmp_path):
    from pyro_vi.cli.entry import main

    x = torch.randn(60, 3)
    torch.save(x, tmp_path / "x.pt")
    import numpy as np

    np.save(tmp_path / "x.npy", x.numpy())
    options = {"steps": 3, "audit_draws": 20, "particles": 20, "compile": False}
    found = pyro_vi.compare(PPCA, "exact", str(tmp_path / "x.npy"), out=tmp_path / "a", progress=False, **options)
    args = ["--steps", "3", "--audit-draws", "20", "--particles", "20", "--compile", "no", "--out", str(tmp_path / "b")]
    assert main(["compare", PPCA, "exact", "--data", str(tmp_path / "x.npy"), *args]) == 0

    def names(folder):
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

    assert names(tmp_path / "a") == names(tmp_path / "b") >= {"result.json", "trace/result.nc", "training_curves.png"}
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in "ab")
    assert one["estimators"]["trace"]["elbo"] == two["estimators"]["trace"]["elbo"]
    with xr.open_datatree(tmp_path / "a" / "trace" / "result.nc", engine="h5netcdf") as tree:
        assert tree.attrs["rows"] == "all 6 held-out rows"
    frame = found.table()
    assert list(frame.index) == ["trace", "mean_field"] and frame.elbo["trace"] == found.results["trace"].elbo_mean
    assert len(repr(found).splitlines()) <= 12 and len(repr(found)) < 1500
    assert "data:image/png;base64," in found._repr_html_()

"""The benchmark of low bits: what is known is not run again, the rate is chosen on the validation split."""

import json

import pytest

from benchmarks import low_bits
from benchmarks.low_bits import Run
from tests.tiny import quicken_deployment

pytest.importorskip("torchvision")

W4A4 = ["--models", "mobilenet_v2", "--grids", "W4A4", "--seeds", "2", "--rates", "0.01", "0.1"]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Splits of a few images, and a quick deployment."""
    monkeypatch.setattr(low_bits.FashionMNISTDataModule.__init__, "__defaults__", ("data", 8, 8, 0, 2, True, False, 0))
    quicken_deployment(monkeypatch)


def known():
    """Results of every run that these options need: 0.1 is better on the validation split, 0.01 on the test images."""
    found = {Run("mobilenet_v2", "", "float"): (90.0, 91.0), Run("mobilenet_v2", "W4A4", "PTQ histogram"): (80.0, 81.0)}
    for rate, val, test in ((0.01, 85.0, 90.0), (0.1, 86.0, 87.0)):
        found |= {Run("mobilenet_v2", "W4A4", "QAT", 300, rate, seed): (val, test + 2 * seed) for seed in (0, 1)}
    return {run.key: {"val": val, "test": test} for run, (val, test) in found.items()}


def test_the_table_of_what_is_known(tmp_path, fashion_folder, capsys):
    results, table, picture = (tmp_path / name for name in ("known.json", "table.md", "table.png"))
    results.write_text(json.dumps(known()))
    files = ["--results", str(results), "--markdown", str(table), "--picture", str(picture)]
    low_bits.main([*W4A4, "--methods", "PTQ histogram", "QAT", "--data", str(fashion_folder), *files])
    assert json.loads(results.read_text()) == known()
    assert "| mobilenet_v2, W4A4, 300 | QAT | 88.00 | 1.41 | 70 | 0.1 | 2 |" in table.read_text()
    assert picture.stat().st_size > 1000
    assert "gap recovered" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:lq. QAT ended with")  # one step on noise
def test_a_run_is_trained_and_judged(tmp_path, fashion_folder, monkeypatch):
    network = {"model": "mobilenet_v2", "num_classes": 10, "in_channels": 1, "relax_strides": 1}
    network["model_args"] = {"inverted_residual_setting": [[1, 8, 1, 1], [2, 8, 2, 2]]}
    state = low_bits.Classifier(**network).state_dict()
    low_bits.torch.save({"state_dict": state}, tmp_path / "fashion_mnist_mobilenet_v2_float.ckpt")
    recipe = {"model": {"init_args": {**network, "optimizer": {"lr": 0.1}}}}
    for kind in ("float", "qat"):
        (tmp_path / f"mobilenet_v2_{kind}.yaml").write_text(json.dumps(recipe))
    monkeypatch.setattr(low_bits, "RECIPES", tmp_path)
    results = tmp_path / "results.json"
    options = ["--steps", "1", "--rates", "0.01", "--seeds", "1", "--floats", str(tmp_path)]
    rows = low_bits.main(
        [*W4A4, *options, "--methods", "PTQ histogram", "LSQ distilled", "--data", str(fashion_folder),
         "--results", str(results)]
    )  # fmt: skip
    assert [row["method"] for row in rows] == ["float", "PTQ histogram", "LSQ distilled"]
    trained = json.loads(results.read_text())[Run("mobilenet_v2", "W4A4", "LSQ distilled", 1, 0.01).key]
    assert 0 <= trained["test"] <= 100
    assert 0 <= trained["ptq"] <= 100

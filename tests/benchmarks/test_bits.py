"""The benchmark of chosen bits: the same size as uniform ones, and what is known is not run again."""

import json

import pytest

from benchmarks import bits, low_bits
from benchmarks.low_bits import Run

pytest.importorskip("torchvision")


@pytest.fixture
def network(tmp_path, monkeypatch):
    """A small network of the recipe's kind, its float checkpoint, and splits of a few images."""
    monkeypatch.setattr(low_bits.FashionMNISTDataModule.__init__, "__defaults__", ("data", 8, 8, 0, 2, True, False, 0))
    given = {"model": "mobilenet_v2", "num_classes": 10, "in_channels": 1, "relax_strides": 1}
    given["model_args"] = {"inverted_residual_setting": [[1, 8, 1, 1], [2, 8, 2, 2]]}
    state = low_bits.Classifier(**given).state_dict()
    low_bits.torch.save({"state_dict": state}, tmp_path / "fashion_mnist_mobilenet_v2_float.ckpt")
    recipe = {"model": {"init_args": {**given, "optimizer": {"lr": 0.1}}}}
    for kind in ("float", "qat"):
        (tmp_path / f"mobilenet_v2_{kind}.yaml").write_text(json.dumps(recipe))
    monkeypatch.setattr(low_bits, "RECIPES", tmp_path)
    return [
        "--models",
        "mobilenet_v2",
        "--floats",
        str(tmp_path),
        "--seeds",
        "1",
        "--results",
        str(tmp_path / "r.json"),
    ]


def test_chosen_bits_are_no_larger_than_uniform_ones_and_rows_are_kept(network, fashion_folder, tmp_path, capsys):
    table = tmp_path / "table.md"
    options = [*network, "--data", str(fashion_folder), "--grids", "W3A8", "--steps", "0", "--markdown", str(table)]
    uniform, chosen = bits.main([*options, "--methods", "uniform", "chosen of 2, 4, 8"])
    assert chosen["size"] <= uniform["size"]
    assert 0 <= chosen["test"] <= 100
    assert "| mobilenet_v2, W3A8, 0 | chosen of 2, 4, 8 |" in table.read_text()
    known = json.loads((tmp_path / "r.json").read_text())
    assert known.keys() == {Run("mobilenet_v2", "W3A8", m, 0, 0.01).key for m in ("uniform", "chosen of 2, 4, 8")}
    known[Run("mobilenet_v2", "W3A8", "uniform", 0, 0.01).key]["test"] = 12.34
    (tmp_path / "r.json").write_text(json.dumps(known))
    assert bits.main([*options, "--methods", "uniform"])[0]["mean"] == 12.34

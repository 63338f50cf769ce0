"""A float checkpoint of a small network, for benchmarks that train one of the recipes'."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import low_bits
from tests.tiny import quicken_deployment


@pytest.fixture
def small_network(tmp_path: Path, fashion_folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of a benchmark that train it for one seed, on splits of a few images, with a quick deployment."""
    monkeypatch.setattr(low_bits.FashionMNISTDataModule.__init__, "__defaults__", ("data", 8, 8, 0, 2, True, False, 0))
    quicken_deployment(monkeypatch)
    given = {"model": "mobilenet_v2", "num_classes": 10, "in_channels": 1, "relax_strides": 1}
    settings = {**given, "model_args": {"inverted_residual_setting": [[1, 8, 1, 1], [2, 8, 2, 2]]}}
    state = low_bits.Classifier(**settings).state_dict()  # type: ignore[arg-type]
    low_bits.torch.save({"state_dict": state}, tmp_path / "fashion_mnist_mobilenet_v2_float.ckpt")
    recipe = {"model": {"init_args": {**settings, "optimizer": {"lr": 0.1}}}}
    for kind in ("float", "qat"):
        (tmp_path / f"mobilenet_v2_{kind}.yaml").write_text(json.dumps(recipe))
    monkeypatch.setattr(low_bits, "RECIPES", tmp_path)
    files = ["--floats", str(tmp_path), "--data", str(fashion_folder), "--results", str(tmp_path / "r.json")]
    return ["--models", "mobilenet_v2", "--seeds", "1", *files]

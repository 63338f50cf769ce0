from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch

from lq.backends.prepare import prepare, set_phase, state_of
from lq.core.checkpoint import from_bytes
from lq.deployment.deploy import Baseline, deploy, export_artifact
from lq.deployment.evaluation import ValidationData
from lq.deployment.settings import ExportSettings
from lq.export.artifact.int8_model import load, load_prepared_state
from lq.ptq import calibrate
from tests.tiny import Tiny, make_net, quicken_deployment, val_loader


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_deployment(monkeypatch)


def trained() -> Tiny:
    """A prepared module whose ranges have seen data."""
    module = Tiny()
    prepare(module.model)
    set_phase(module.model, fake_quant=True, observer=True, freeze_bn=False)
    for x, _ in val_loader():
        module.train()(x)
    return module


EXAMPLE: Any = ((torch.randn(6, 1, 6, 6),), {})


def test_rows_results_and_artifact(tmp_path: Path) -> None:
    baseline = Baseline(make_net())
    done = deploy(
        trained(), "model", EXAMPLE, ValidationData(val_loader()),
        ExportSettings(directory=tmp_path / "int8", manifest={"weights": "mine"}), baseline,
    )  # fmt: skip
    assert [row["model"] for row in done.rows] == ["FP32", "fake-quantized", "int8 torch"]
    fp32, fake, int8 = done.rows
    assert fp32["metrics"].keys() == fake["metrics"].keys() == int8["metrics"].keys() == {"val_loss", "accuracy"}
    assert all(row["latency_ms"] > 0 and row["threads"] == 1 for row in (fp32, int8))
    assert "latency_ms" not in fake  # nobody deploys it
    assert int8["sqnr_db"] > 30
    assert done.directory == tmp_path / "int8"
    content = json.loads((tmp_path / "int8" / "lq.json").read_text())
    assert content["weights"] == "mine"
    assert [row["model"] for row in content["table"]] == ["FP32", "fake-quantized", "int8 torch"]
    extra = from_bytes(load_prepared_state(tmp_path / "int8")["qat_state._extra_state"])
    assert content["ranges"].keys() == set(extra["names"])
    x = torch.randn(9, 1, 6, 6)
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "int8")(x), done.models["torch"](x))


def test_baseline_that_lost_its_weights_is_measured_but_not_judged() -> None:
    baseline = Baseline(make_net(), {"accuracy": 0.25}, has_weights=False)
    done = deploy(trained(), "model", EXAMPLE, ValidationData(val_loader()), baseline=baseline)
    assert done.rows[0]["metrics"] == {"accuracy": 0.25}
    assert done.rows[0]["latency_ms"] > 0
    assert done.directory is None


def test_without_baseline_and_data() -> None:
    done = deploy(trained(), "model", EXAMPLE, ValidationData())
    assert [row["model"] for row in done.rows] == ["fake-quantized", "int8 torch"]
    assert done.rows[1]["sqnr_db"] > 30
    assert done.notes


@pytest.mark.parametrize("is_local", [True, False])
def test_an_artifact_may_go_to_a_url(tmp_path: Path, is_local: bool) -> None:
    place = f"file://{tmp_path}/int8" if is_local else f"memory://{uuid.uuid4().hex}/int8"
    x, prepared = torch.randn(8, 1, 6, 6), prepare(make_net())
    calibrate(prepared, [x])
    done = export_artifact(prepared, [x], place)
    assert done.directory == (tmp_path / "int8" if is_local else place)
    assert torch.equal(load(place)(x), done.models["torch"](x))


def test_failure_keeps_the_weights_and_names_their_place(tmp_path: Path) -> None:
    module = trained()
    state_of(module.model).min_val.fill_(torch.inf)
    state_of(module.model).max_val.fill_(-torch.inf)
    done = deploy(module, "model", EXAMPLE, ValidationData(), ExportSettings(directory=tmp_path / "int8"))
    with pytest.raises(
        RuntimeError, match=r"'torch' \(No fake quantizer has seen a batch.*everything else is in .*int8"
    ):
        done.raise_failures()
    assert torch.equal(load_prepared_state(tmp_path / "int8")["5.weight"], module.model.get_submodule("5").weight)
    assert "No fake quantizer" in json.loads((tmp_path / "int8" / "lq.json").read_text())["error"]
    with pytest.raises(RuntimeError, match="nothing was written"):
        deploy(module, "model", EXAMPLE, ValidationData()).raise_failures()

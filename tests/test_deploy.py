from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lq.backends.prepare import prepare, set_phase, state_of
from lq.deploy import Baseline, deploy, float_forms, one_sample, rehearse
from lq.evaluation import Judge
from lq.export.artifact import load, load_prepared_state
from lq.target import graft
from tests.tiny import Tiny, make_net, val_loader


@pytest.fixture(autouse=True)
def _short_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lq.deploy.LATENCY_SECONDS", 0.005)


def trained() -> Tiny:
    """A grafted module whose ranges have seen data."""
    module = Tiny()
    graft(module, "model", prepare(module.model))
    set_phase(module.model, fake_quant=True, observer=True, freeze_bn=False)
    for x, _ in val_loader():
        module.train()(x)
    return module


EXAMPLE: Any = ((torch.randn(6, 1, 6, 6),), {})


def test_rows_results_and_artifact(tmp_path: Path) -> None:
    baseline = Baseline(make_net())
    done = deploy(
        trained(), "model", EXAMPLE, Judge(val_loader()), baseline=baseline, directory=tmp_path / "int8",
        manifest={"weights": "mine"},
    )  # fmt: skip
    assert [row["model"] for row in done.rows] == ["FP32", "QAT fake", "QAT int8"]
    fp32, fake, int8 = done.rows
    assert fp32["metrics"].keys() == fake["metrics"].keys() == int8["metrics"].keys() == {"accuracy"}
    assert fake["size_mb"] is None
    assert all(row["latency_ms"] > 0 and row["threads"] == 1 for row in (fp32, int8))
    assert "latency_ms" not in fake  # nobody deploys it
    assert int8["sqnr_db"] > 30
    assert done.directory == tmp_path / "int8"
    content = json.loads((tmp_path / "int8" / "lq.json").read_text())
    assert content["weights"] == "mine"
    assert [row["model"] for row in content["table"]] == ["FP32", "QAT fake", "QAT int8"]
    assert content["ranges"].keys() == set(load_prepared_state(tmp_path / "int8")["qat_state._extra_state"]["names"])
    x = torch.randn(9, 1, 6, 6)
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "int8")(x), done.int8(x))


def test_baseline_that_lost_its_weights_is_measured_but_not_judged() -> None:
    baseline = Baseline(make_net(), {"accuracy": 0.25}, has_weights=False)
    done = deploy(trained(), "model", EXAMPLE, Judge(val_loader()), baseline=baseline)
    assert done.rows[0]["metrics"] == {"accuracy": 0.25}
    assert done.rows[0]["latency_ms"] > 0
    assert done.directory is None


def test_without_baseline_and_data() -> None:
    done = deploy(trained(), "model", EXAMPLE, Judge())
    assert [row["model"] for row in done.rows] == ["QAT fake", "QAT int8"]
    assert done.rows[1]["sqnr_db"] > 30
    assert done.notes


def test_float_model_that_torchscript_cannot_trace_is_timed_as_it_is() -> None:
    class Untraceable(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return {1, 2}

    done = deploy(trained(), "model", EXAMPLE, Judge(), baseline=Baseline(Untraceable()))
    assert done.rows[0]["latency_ms"] >= 0
    assert list(float_forms(Untraceable(), EXAMPLE)) == ["fp32 eager"]
    assert list(float_forms(nn.Linear(2, 2), ((torch.ones(1, 2),), {}))) == ["fp32 eager", "fp32 frozen", "fp32 fused"]


def test_failure_keeps_the_weights_and_names_their_place(tmp_path: Path) -> None:
    module = trained()
    state_of(module.model).min_val.fill_(torch.inf)
    with pytest.raises(RuntimeError, match=r"could not be made \(No fake quantizer has seen a batch.*prepared\.pt"):
        deploy(module, "model", EXAMPLE, Judge(), directory=tmp_path / "int8")
    assert torch.equal(load_prepared_state(tmp_path / "int8")["5.weight"], module.model.get_submodule("5").weight)
    assert "No fake quantizer" in json.loads((tmp_path / "int8" / "lq.json").read_text())["error"]
    with pytest.raises(RuntimeError, match="nothing was written"):
        deploy(module, "model", EXAMPLE, Judge())


def test_rehearse_needs_no_ranges() -> None:
    rehearse(prepare(make_net()), EXAMPLE)


def test_rehearse_says_what_cannot_be_exported() -> None:
    class Returns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(36, 3)

        def forward(self, x: torch.Tensor) -> Any:
            return {"logits": self.layer(x.flatten(1)), "version": "three"}

    with pytest.raises(ValueError, match=r"int8 model of Returns cannot be exported.*Name an inner module"):
        rehearse(prepare(Returns()), EXAMPLE)


def test_one_sample() -> None:
    x, ids = torch.randn(4, 3), torch.arange(4)
    args, kwargs = one_sample(((x, True), {"ids": ids, "scale": torch.tensor(2.0)}))
    assert torch.equal(args[0], x[:1])
    assert args[1] is True
    assert torch.equal(kwargs["ids"], ids[:1])
    assert kwargs["scale"].item() == 2.0
    mixed: Any = ((x, torch.arange(7)), {})
    assert one_sample(mixed) is mixed

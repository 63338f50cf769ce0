"""``lq bits``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lq.analysis.bits.latency import LatencyMeter
from lq.analysis.bits.losses import RoundingLoss
from lq.backends.prepare import plan_of
from lq.callback import QATCallback
from lq.config.qconfig import QConfig
from tests.cli.runs import OwnLayout, WithAllData, quiet_trainer
from tests.tiny import Tiny, make_trainer, train_loader, val_loader

FREE = QConfig(keep="nothing")


def test_bits_prints_and_writes_what_the_callback_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "bits"
    trainer = quiet_trainer(tmp_path, QATCallback(qconfig=FREE))
    trainer.bits(WithAllData(), budget="effective_bits=4", widths=[2, 4, 8], out=str(out))
    assert sorted(path.name for path in out.iterdir()) == ["bits.yaml", "frontier.json", "frontier.png", "losses.json"]
    printed = capsys.readouterr().out
    assert " chosen " in printed
    assert "loss: KL divergence" in printed
    assert "effective_bits=4: 0.000" in printed
    settings = yaml.safe_load((out / "bits.yaml").read_text())
    assert list(settings["overrides"]) == ["0", "5"]
    module, callback = Tiny(), QATCallback(qconfig=str(out / "bits.yaml"))
    assert callback.qconfig == QConfig(**settings)
    make_trainer(tmp_path, callback, max_epochs=1).fit(module, train_loader(), val_loader())
    assert QConfig(**settings).overrides["5"].weight is not None
    grids = {row.name: row.weight for row in plan_of(module.model).layers}
    for name, grid in settings["overrides"].items():
        assert f"[{grid['weight']['quant_min']}, {grid['weight']['quant_max']}]" in (grids[name] or "")
    rows = json.loads((out / "frontier.json").read_text())["rows"]
    assert {row["name"] for row in rows} == {"", "all 2 bits", "all 4 bits", "all 8 bits", "chosen"}
    assert [row["size_mb"] for row in rows] == sorted(row["size_mb"] for row in rows)


def test_bits_of_activations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    trainer, out = quiet_trainer(tmp_path, QATCallback(qconfig=FREE)), tmp_path / "bits"
    trainer.bits(WithAllData(), widths=[2, 4, 8], activation_bits=4, out=str(out))
    printed = capsys.readouterr().out
    assert "activations" in printed
    assert "loss: KL divergence, weights in float" in printed
    assert " bits per activation, KL divergence " in printed
    rows = json.loads((out / "frontier.json").read_text())["activations"]
    assert {row["name"] for row in rows} == {"", "all 2 bits", "all 4 bits", "all 8 bits", "chosen"}
    overrides = yaml.safe_load((out / "bits.yaml").read_text())["overrides"]
    assert all("activation" in override for override in overrides.values())
    QATCallback(qconfig=str(out / "bits.yaml"))


def test_the_second_budget_measures_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, module = quiet_trainer(tmp_path, QATCallback(qconfig=FREE)), WithAllData()
    torch.save({"state_dict": module.state_dict()}, tmp_path / "float.ckpt")
    given: dict[str, Any] = {"ckpt_path": str(tmp_path / "float.ckpt"), "out": str(tmp_path / "bits")}
    trainer.bits(WithAllData(), budget="effective_bits=4", **given)
    singles, measure = [], RoundingLoss.of
    monkeypatch.setattr(RoundingLoss, "of", lambda self, grids: singles.append(len(grids)) or measure(self, grids))
    trainer.bits(WithAllData(), budget="effective_bits=6", **given)
    assert 1 not in singles


def test_a_budget_of_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def share(meter: LatencyMeter, in_float: Sequence[str] = ()) -> float:
        meter.float_ms = 2.0
        return 0.5 + 0.2 * len(in_float)

    monkeypatch.setattr(LatencyMeter, "share", share)
    trainer = quiet_trainer(tmp_path, QATCallback())
    trainer.bits(WithAllData(), budget="latency=0.75@torch", out=str(tmp_path / "bits"))
    printed = capsys.readouterr().out
    assert "latency" in printed
    assert "latency: expected where a line has no name" in printed
    assert "latency=0.75@torch: 1.4 ms, " in printed
    assert len(yaml.safe_load((tmp_path / "bits" / "bits.yaml").read_text())["exclude"]) == 1


def test_a_module_with_its_own_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quiet_trainer(tmp_path, QATCallback(qconfig=FREE)).bits(OwnLayout(), widths=[2, 8], out=str(tmp_path / "b"))
    assert "loss: KL divergence" in capsys.readouterr().out


class TwoLoaders(WithAllData):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, batch_idx)

    def val_dataloader(self) -> Any:
        return [val_loader(), val_loader()]


def test_batches_of_every_loader_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    measure = RoundingLoss.of
    monkeypatch.setattr(RoundingLoss, "of", lambda self, grids: seen.append(len(self.batches)) or measure(self, grids))
    trainer = quiet_trainer(tmp_path, QATCallback(qconfig=FREE))
    trainer.bits(TwoLoaders(), widths=[2, 8], batches=1, out=str(tmp_path / "b"))
    assert set(seen) == {2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": "size=2.5"}, "has no unit; write size=2.5MB"),
        ({"budget": "size=1B"}, "less than the widths allow: it can be from size=0.000"),
        ({"budget": "size=1GB"}, "is no limit: the float model has size=0.00"),
        ({"widths": [9]}, "width 9 must be from 2 to 8 bits"),
        ({"batches": 0}, "--batches 0 must be at least 1"),
        ({"exporters": ["onx"]}, "unknown exporter 'onx'"),
        ({"ckpt_path": "nowhere.ckpt"}, "there is no checkpoint nowhere.ckpt"),
    ],
)
def test_bits_refuses(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    trainer = quiet_trainer(tmp_path, QATCallback(qconfig=FREE))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        trainer.bits(WithAllData(), out=str(tmp_path / "b"), **arguments)


def test_the_command(run_lq: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_lq(
        "bits", "--model", "lq.models.DigitsClassifier", "--model.width", "4", "--data", "lq.data.DigitsDataModule",
        "--budget", "size=0.003MB", "--widths", "[2, 8]", "--batches", "1",
    )  # fmt: skip
    assert "size=0.003MB: 0.0" in capsys.readouterr().out
    assert QConfig(**yaml.safe_load((tmp_path / "bits" / "bits.yaml").read_text())).overrides

"""``lq analyze``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
from torch.utils.data import DataLoader

from lq.analysis.resume import ResultFile
from lq.callback import QATCallback
from lq.config.qconfig import QConfig
from lq.config.specs import WeightSpec
from tests.cli.runs import OwnLayout, WithAllData, WithData, quiet_trainer
from tests.tiny import val_loader


def test_analyze_prints_and_writes(
    tmp_path: Path, trained: tuple[Path, QATCallback], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "analysis"
    quiet_trainer(tmp_path).analyze(WithData(), ckpt_path=str(trained[0]), out=str(out))
    assert sorted(path.name for path in out.iterdir()) == [
        "analysis.json", "sensitivity.png", "sqnr-all_but_one.json", "sqnr.png"
    ]  # fmt: skip
    found = json.loads((out / "analysis.json").read_text())
    assert [row["layer"] for row in found["sensitivity"]] == ["0", "5"]
    assert {row["metric"] for row in found["sensitivity"]} == {"sqnr_db"}
    assert "share of" in capsys.readouterr().out


def test_analyze_goes_on_where_it_was_broken_off(
    tmp_path: Path, trained: tuple[Path, QATCallback], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {"ckpt_path": str(trained[0]), "by": "metric", "direction": "one"}
    quiet_trainer(tmp_path).analyze(WithData(), out=str(tmp_path / "a"), **arguments)
    tried: list[Any] = []
    monkeypatch.setattr(ResultFile, "add", lambda *args: tried.append(args))
    quiet_trainer(tmp_path).analyze(WithData(), out=str(tmp_path / "a"), **arguments)
    assert tried == []
    rows = json.loads((tmp_path / "a" / "analysis.json").read_text())["sensitivity"]
    assert {(row["metric"], row["direction"]) for row in rows} == {("accuracy", "one")}


def test_analyze_finds_a_planted_layer_of_a_float_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = WithAllData()
    with torch.no_grad():
        planted.model[1].bias[0] = -100.0  # behind the ReLU, the 16 inputs of channel 0 are 0 in float
        planted.model[5].weight[:, :16] = 1000.0
    torch.save({"state_dict": planted.state_dict()}, tmp_path / "float.ckpt")
    per_tensor = QConfig(weight=WeightSpec(-127, 127, per_channel=False))
    trainer = quiet_trainer(tmp_path, QATCallback(qconfig=per_tensor))
    trainer.analyze(WithAllData(), ckpt_path=str(tmp_path / "float.ckpt"), out=str(tmp_path / "a"))
    rows = json.loads((tmp_path / "a" / "analysis.json").read_text())["sensitivity"]
    assert max(rows, key=lambda row: row["loss"])["layer"] == "5"
    assert "\n  " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batches": 0}, "--batches 0 must be at least 1"),
        ({"batches": -1}, "--batches -1 must be at least 1"),
        ({"direction": "both"}, "direction='both' is unknown"),
        ({"calibration": 0}, "--calibration 0 must be at least 1"),
        ({"ckpt_path": "nowhere.ckpt"}, "there is no checkpoint nowhere.ckpt"),
    ],
)
def test_analyze_refuses(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        quiet_trainer(tmp_path).analyze(WithAllData(), out=str(tmp_path / "a"), **arguments)


def test_analyze_starts_anew_for_other_weights_and_more_batches(
    tmp_path: Path, trained: tuple[Path, QATCallback]
) -> None:
    trainer, out = quiet_trainer(tmp_path), str(tmp_path / "a")
    trainer.analyze(WithAllData(), ckpt_path=str(trained[0]), out=out, batches=1)
    first = json.loads((tmp_path / "a" / "sqnr-all_but_one.json").read_text())
    trainer.analyze(WithAllData(), ckpt_path=str(trained[0]), out=out, batches=2)
    trainer.analyze(WithAllData(), out=out, calibration=1)
    last = json.loads((tmp_path / "a" / "sqnr-all_but_one.json").read_text())
    assert last["key"]["model"] != first["key"]["model"]
    assert last["results"].keys() == first["results"].keys() == {"0", "5"}


class AskedError(Exception):
    pass


class TwoLoaders(WithAllData):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, batch_idx)

    def val_dataloader(self) -> Any:
        return [val_loader(), val_loader()]


def test_analyze_judges_on_batches_of_every_loader(
    tmp_path: Path, trained: tuple[Path, QATCallback], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(prepared: Any, samples: Any, *given: Any, score: Any) -> None:
        raise AskedError(f"{len(samples)} samples, {given[-1].limit} used")

    monkeypatch.setattr("lq.cli.analyze.analyze_layers", ask)
    with pytest.raises(AskedError, match="4 samples, 4 used"):
        quiet_trainer(tmp_path).analyze(TwoLoaders(), ckpt_path=str(trained[0]), batches=2)


def test_analyze_by_a_metric_needs_one_that_fits(tmp_path: Path) -> None:
    undecided = torchmetrics.MeanMetric()
    with pytest.raises(ValueError, match="MeanMetric does not say whether higher is better"):
        quiet_trainer(tmp_path, QATCallback(metric=undecided)).analyze(WithAllData(), by="metric", out=str(tmp_path))


def test_analyze_ranks_layers_by_what_the_module_logs(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, QATCallback(monitor="val_loss", mode="min"))
    trainer.analyze(OwnLayout(), by="metric", direction="one", calibration=1, batches=2, out=str(tmp_path))
    rows = json.loads((tmp_path / "analysis.json").read_text())["sensitivity"]
    assert {row["metric"] for row in rows} == {"val_loss"}
    assert all(
        row["loss"] == pytest.approx(row["value"] - row["float_value"]) for row in rows
    )  # a lower loss is better
    assert any(row["loss"] != 0 for row in rows)


class Indexed(WithAllData):
    """Its batches hold more than inputs and labels."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.model(batch[0])

    def val_dataloader(self) -> Any:
        return DataLoader([(x, y, i) for i, (x, y) in enumerate(val_loader().dataset)], batch_size=8)  # type: ignore[arg-type]

    train_dataloader = val_dataloader


def test_analyze_by_a_metric_needs_a_figure_where_batches_are_not_plain(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"analyze --by metric needs a figure to compare: .* QATCallback\(monitor="):
        quiet_trainer(tmp_path).analyze(Indexed(), by="metric", calibration=1, batches=1, out=str(tmp_path))

"""``lq report``."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from lq.callback import QATCallback
from lq.report.measure import measure
from tests.cli.runs import OwnLayout, WithAllData, quiet_trainer
from tests.tiny import make_data


@pytest.fixture
def quick_measure(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The real measurement, with a short look at the clock; what it was given and what it found."""
    pytest.importorskip("matplotlib")  # of its page
    seen: list[Any] = []

    def quick(*given: Any) -> Any:
        *others, options = given
        seen.extend([given, measure(*others, replace(options, seconds=0.01))])
        return seen[-1]

    monkeypatch.setattr("lq.cli.report.measure", quick)
    return seen


class Scaling(OwnLayout):
    """Whose images become what the network wants on their way to the step."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {**batch, "image": batch["image"] * 100}


class TwoFigures(OwnLayout):
    """Logs another figure before the one that counts."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("first", float(batch_idx))
        super().validation_step(batch, batch_idx)


def test_report_judges_what_the_users_step_gives_to_the_target(tmp_path: Path, quick_measure: list[Any]) -> None:
    module = Scaling()
    quiet_trainer(tmp_path).report(module, out=str(tmp_path / "page.html"), batches=2, calibration=1)
    (_, train, test, *_), findings = quick_measure
    assert (len(train), len(test)) == (1, 2)
    assert torch.equal(train[0].inputs[0][0], 100 * make_data().tensors[0][:8])
    with torch.no_grad():
        x, y = torch.cat([s.inputs[0][0] for s in test]), torch.cat([s.labels for s in test])
        scores = module.model.eval()(x)
    accuracy, loss = float((scores.argmax(1) == y).float().mean()), float(F.cross_entropy(scores, y))
    assert findings.comparison[0]["metrics"] == pytest.approx({"accuracy": accuracy, "val_loss": loss})
    assert all("val_loss" in row["metrics"] for row in findings.comparison)
    assert "Judged on 2 batches" in (tmp_path / "page.html").read_text()
    assert "<h1>Scaling, target model</h1>" in (tmp_path / "page.html").read_text()


def test_the_figure_that_counts_is_that_of_the_callback(tmp_path: Path, quick_measure: list[Any]) -> None:
    trainer = quiet_trainer(tmp_path, QATCallback(monitor="val_loss", mode="min"))
    trainer.report(TwoFigures(), out=str(tmp_path / "page.html"), batches=2, calibration=1)
    (*_, options), findings = quick_measure
    assert (options.monitor, options.higher_is_better) == ("val_loss", False)
    assert all(list(row["metrics"])[:2] == ["val_loss", "first"] for row in findings.comparison)


@pytest.mark.filterwarnings("ignore:lq. QAT did not start from these float weights")  # with weights of its own
def test_a_checkpoint_is_read_once(
    tmp_path: Path, trained: tuple[Path, QATCallback], quick_measure: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Any] = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda file, **how: reads.append(str(file)) or load(file, **how))
    monkeypatch.chdir(trained[0].parent)
    path = trained[0].name
    trainer, module = quiet_trainer(tmp_path), WithAllData()
    trainer.report(module, ckpt_path=path, out=str(tmp_path / "page.html"))
    assert [row["model"] for row in quick_measure[-1].comparison][-2:] == ["QAT, fake-quantized", "QAT int8"]
    trainer.export(WithAllData(), ckpt_path=path)
    trainer.analyze(WithAllData(), ckpt_path=path, out=str(tmp_path / "a"), batches=1)
    assert reads.count(path) == 3


def test_without_matplotlib_nothing_is_measured(
    tmp_path: Path, quick_measure: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"Pictures need matplotlib: pip install 'lightning-qat\[plots\]'"):
        quiet_trainer(tmp_path).report(Scaling(), out=str(tmp_path / "page.html"))
    assert not quick_measure


def test_the_page_says_that_its_float_rows_are_of_another_model(
    tmp_path: Path, trained: tuple[Path, QATCallback], quick_measure: list[Any]
) -> None:
    module = WithAllData()
    with torch.no_grad():
        module.model[5].bias[0] = 100.0  # says that every image is of this class
    with pytest.warns(UserWarning, match="lq: QAT did not start from these float weights"):
        quiet_trainer(tmp_path).report(module, ckpt_path=str(trained[0]), out=str(tmp_path / "page.html"))
    text = (tmp_path / "page.html").read_text()
    assert "<p>QAT did not start from these float weights, so the rows FP32 and PTQ are meaningless: " in text
    assert text.index("QAT did not start") < text.index("Judged on")

"""A model whose code has fixed its batch: every artifact says so, and other batches are filled up or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

import lq
from tests.tiny import Tiny, make_net, make_trainer, quicken_deployment, train_loader, val_loader


class Centered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = make_net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x - x.sum(0) / len(x))


def fitted(folder: Path, batch: int) -> tuple[L.Trainer, Any]:
    module: Any = Tiny()
    module.model = Centered()
    trainer = make_trainer(folder, lq.QATCallback(exporters=["torch", "onnx", "pt2"]), max_epochs=1)
    with pytest.warns(UserWarning, match=rf"batches of exactly {batch}, because .*test_fixed_batch.py:.*/ len\(x\)"):
        trainer.fit(module, train_loader(), val_loader(12, batch))
    return trainer, module


def test_each_artifact_takes_that_batch_and_refuses_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_deployment(monkeypatch)
    fitted(tmp_path, batch=4)
    (directory,) = tmp_path.rglob("int8")
    x = torch.randn(4, 1, 6, 6)
    answers = []
    for kind in ("torch", "onnx", "pt2"):
        model = lq.load(directory, kind)
        answers.append(model(x))
        for other in (x[:1], torch.cat([x, x])):
            with pytest.raises(ValueError, match="batch size a constant, 4, but it was called with"):
                model(other)
    for answer in answers[1:]:
        torch.testing.assert_close(answer, answers[0], atol=0.05, rtol=0)  # a step or two of the output's grid


def test_without_validation_batches_of_that_size_the_trained_model_is_judged_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken_deployment(monkeypatch)
    module: Any = Tiny()
    module.model = Centered()
    qat = lq.QATCallback()
    trainer = make_trainer(tmp_path, qat, max_epochs=1, num_sanity_val_steps=0)
    with pytest.warns(UserWarning, match="batches of exactly 8"):
        trainer.fit(module, train_loader(batch_size=8), val_loader(12, 6))
    assert qat.deployment is not None
    assert qat.deployment.parity["torch"].passed
    assert "val_loss" in qat.deployment.results["fake"]
    assert "torch" not in qat.deployment.results
    notes = " ".join(qat.deployment.notes)
    assert "torch cannot run on the validation data: " in notes
    assert "a constant, 8, but it was called with 6" in notes
    assert "of one training batch" in notes


class OfOneSize(nn.Module):
    """Its code has fixed the batch, but each sample is computed by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.net = make_net()
        self.register_buffer("gain", torch.ones(1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        rows = self.gain.expand(len(x)).reshape(-1, 1)
        return {"scores": self.net(x) * rows}


class OfDicts(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.model: Any = OfOneSize()

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.model(x)["scores"]
        return scores


def test_a_batch_of_independent_samples_is_filled_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_deployment(monkeypatch)
    torch.manual_seed(0)
    kinds, folder = ["torch", "onnx", "pt2"], str(tmp_path / "int8")
    module, qat = OfDicts(), lq.QATCallback(target="model", exporters=kinds, export_dir=folder)
    trainer = make_trainer(tmp_path, qat, max_epochs=1, num_sanity_val_steps=0)
    with pytest.warns(UserWarning, match=r"exactly 8, and lq.load\(...\) fills up others, because .*len\(x\)"):
        trainer.fit(module, train_loader(batch_size=8), val_loader(12, 8))  # the last batch has four
    assert qat.deployment is not None
    x = torch.randn(19, 1, 6, 6)
    expected = module.eval()(x)
    for kind in kinds:
        assert "val_loss" in qat.deployment.results[kind]
        int8 = lq.load(folder, kind)
        for count in (1, 7, 8, 19):
            scores = int8(x[:count])["scores"]
            torch.testing.assert_close(scores, expected[:count], atol=0.05, rtol=0)

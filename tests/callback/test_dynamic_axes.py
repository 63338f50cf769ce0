"""A fit on images of several sizes, whose files take all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import lq
from lq.callback import QATCallback
from tests.callback.conftest import Fit
from tests.cli.runs import quiet_trainer

Batch = tuple[Tensor, Tensor]


class Segmenter(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.head(self.net(x)), size=x.shape[2:], mode="bilinear")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean(), batch_size=len(batch[0]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.05)

    def val_dataloader(self) -> DataLoader[Batch]:
        return loader()


class Fixed(Segmenter):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / len(x[0, 0])


def loader(*sizes: tuple[int, int]) -> DataLoader[Batch]:
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(4, 1, *size, generator=generator) for size in sizes or ((12, 16), (20, 8), (12, 16))]
    batches: Any = [(x, (x[:, 0] > 0.5).long()) for x in images]
    return DataLoader(batches, batch_size=None)


@pytest.mark.filterwarnings("error:lq. validation calls the target with")
def test_all_batches_are_compared_in_all_formats(fit: Fit, tmp_path: Path) -> None:
    qat = QATCallback(exporters=["torch", "onnx"], dynamic_axes={"x": {2: "height", 3: "width"}}, int8_every_n_epochs=1)
    fit(Segmenter(), qat, loaders=(loader(), loader()), max_epochs=2)
    done = qat.deployment
    assert done is not None
    assert done.results.keys() >= {"fake", "torch", "onnx"}
    assert [parity.samples for parity in done.parity.values()] == [20, 20]  # three batches, and two of other sizes
    for kind in ("torch", "onnx"):
        int8 = lq.load(done.directory, kind)
        assert str(int8.signature) == "(x: float32(batch, 1, height, width))"
        for size in ((12, 16), (30, 14)):
            assert int8(torch.rand(2, 1, *size)).shape == (2, 2, *size)


def test_a_size_that_cannot_be_dynamic_stops_the_run_before_its_first_step(fit: Fit) -> None:
    class NoStepMayRun(L.Callback):
        def on_before_optimizer_step(self, *_: Any) -> None:
            raise AssertionError("a step ran before the error came")

    with pytest.raises(ValueError, match=r"dimension 2 of x is dynamic.*test_dynamic_axes\.py:.*len\(x\[0, 0\]\)"):
        fit(
            Fixed(),
            QATCallback(dynamic_axes={"x": [2]}),
            NoStepMayRun(),
            loaders=(loader(), loader()),
            max_epochs=1,
        )


def test_the_command_line_exports_again_with_dynamic_axes(fit: Fit, tmp_path: Path) -> None:
    trainer = fit(Segmenter(), QATCallback(), loaders=(loader((12, 16)), loader((12, 16))), max_epochs=1)
    path = str(tmp_path / "last.ckpt")
    trainer.save_checkpoint(path)
    done = quiet_trainer(tmp_path).export(
        Segmenter(), ckpt_path=path, exporters=["onnx"], dynamic_axes={"x": [2, 3]}, export_dir=str(tmp_path / "any")
    )
    assert str(lq.load(done.directory).signature) == "(x: float32(batch, 1, x_2, x_3))"
    done = quiet_trainer(tmp_path, QATCallback(dynamic_axes={"x": [-1]})).export(
        Segmenter(), ckpt_path=path, export_dir=str(tmp_path / "wide")
    )
    assert str(lq.load(done.directory).signature) == "(x: float32(batch, 1, 12, x_3))"


def test_without_it_other_sizes_are_left_out_of_the_comparison_and_refused(fit: Fit) -> None:
    qat = QATCallback(exporters=["torch"])
    with pytest.warns(
        UserWarning, match=r"with x of shape \(4, 1, 20, 8\), and the example has \(4, 1, 12, 16\)"
    ) as told:
        fit(Segmenter(), qat, loaders=(loader((12, 16)), loader()), max_epochs=2)
    assert sum("the example has" in str(warning.message) for warning in told) == 1
    done = qat.deployment
    assert done is not None
    assert done.parity["torch"].passed
    assert done.parity["torch"].samples == 8
    assert any("1 of 3 validation batches" in note and "dynamic_axes={'x': [2, 3]}" in note for note in done.notes)
    with pytest.raises(
        ValueError,
        match=r"but x is float32\(2, 1, 20, 8\)\. If the model .* with dynamic_axes={'x': \[2, 3\]}",
    ):
        lq.load(done.directory)(torch.rand(2, 1, 20, 8))


class Masked(Segmenter):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x) * (torch.ones_like(x) if mask is None else mask)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self(batch[0], mask=torch.ones_like(batch[0]))


def test_the_axes_to_write_are_those_of_all_inputs(fit: Fit) -> None:
    with pytest.warns(UserWarning, match=r"with x of shape .* QATCallback\(dynamic_axes=({.*}\)) leaves") as told:
        fit(Masked(), QATCallback(target=""), loaders=(loader((12, 16)), loader()), max_epochs=1)
    assert any("dynamic_axes={'x': [2, 3], 'mask': [2, 3]})" in str(warning.message) for warning in told)


def test_formats_of_one_size_are_compared_on_that(fit: Fit) -> None:
    qat = QATCallback(exporters=["torch", "litert"], dynamic_axes={"x": [2, 3]})
    fit(Segmenter(), qat, loaders=(loader((12, 16)), loader()), max_epochs=1)
    done = qat.deployment
    assert done is not None
    assert {kind: parity.samples for kind, parity in done.parity.items()} == {"torch": 20, "litert": 8}
    assert any(
        note.startswith("litert cannot run on the validation data: the model was exported") for note in done.notes
    )

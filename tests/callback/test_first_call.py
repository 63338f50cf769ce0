from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lq.callback import QATCallback
from lq.config.qconfig import QConfig
from tests.callback.conftest import Fit
from tests.tiny import Tiny


def test_what_the_summary_counts_is_the_model_and_not_its_exports(fit: Fit, capsys: pytest.CaptureFixture[Any]) -> None:
    """Lightning's summary calls the model under a counter, and that call is the first one."""
    module = Tiny()
    module.example_input_array = torch.zeros(2, 1, 6, 6)
    fit(module, QATCallback(exporters=["torch", "pt2"]), max_epochs=1, enable_model_summary=True)
    printed = capsys.readouterr().out
    if "FLOPs" in printed:  # Lightning 2.6
        # Two images: 4 channels of 4x4 from 9 products each, and 3 from 64 of the linear layer; twice that in flops.
        assert "3.1 K" in printed


class Checks(nn.Sequential):
    """Cannot be planned from its code."""

    def forward(self, x: Tensor) -> Any:
        if x.shape[-1] % 2 != 0:
            raise RuntimeError("give images whose sides are even")
        return super().forward(x)


@pytest.mark.parametrize("val_batches", [1, 0])
def test_the_plan_is_announced_with_its_warning_whenever_it_is_made(
    fit: Fit, val_batches: int, caplog: pytest.LogCaptureFixture
) -> None:
    module, callback = Tiny(), QATCallback(qconfig=QConfig(exclude=("0",)))  # three quarters of the work
    module.model = Checks(*module.model)
    with caplog.at_level("INFO"), pytest.warns(UserWarning, match="lq: only 25% of the work of Checks runs in int8"):
        fit(module, callback, max_epochs=1, limit_val_batches=val_batches)
    assert ("planned at its first call" in caplog.text) == (val_batches == 0)
    assert "1 of 2 layers quantized" in caplog.text


def test_what_files_hold_in_float_is_said_before_and_behind(fit: Fit, caplog: pytest.LogCaptureFixture) -> None:
    class Decoding(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 4, 2, 2), nn.Conv2d(4, 2, 1))

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return self.net(batch[0]).pow(2).mean()

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.log("loss", self.net(batch[0]).pow(2).mean())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.01)

    loader = DataLoader(TensorDataset(torch.rand(8, 1, 8, 8)), 4)
    with caplog.at_level("INFO"):
        fit(Decoding(), QATCallback(), loaders=(loader, loader), max_epochs=1)
    said = [record.getMessage() for record in caplog.records]
    early, late = (i for i, line in enumerate(said) if line.startswith("lq: torch: 2 runs in float"))
    assert early < next(i for i, line in enumerate(said) if "from the start" in line) < late


class Mixed(nn.Module):
    """Its head has a float type of its own; it converts to a fixed type, or to that of its weight."""

    def __init__(self, dtype: torch.dtype, fixed: bool) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 3).to(dtype)
        self.dtype, self.fixed = dtype, fixed

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x)).mean((2, 3))
        return self.head(x.to(self.dtype if self.fixed else self.head.weight.dtype))


class MixedModule(Tiny):
    def __init__(self, dtype: torch.dtype, fixed: bool) -> None:
        super().__init__()
        self.model = Mixed(dtype, fixed)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.model(batch[0]).float(), batch[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_layers_of_several_float_types(fit: Fit, dtype: torch.dtype) -> None:
    module, callback = MixedModule(dtype, fixed=False), QATCallback(exporters=["torch", "onnx"])
    fit(module, callback, max_epochs=3)
    assert module.model.head.weight.dtype == dtype
    assert callback.deployment is not None
    assert set(callback.deployment.parity) == {"torch", "onnx"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_fixed_float_type_among_several_is_refused(fit: Fit, dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=rf"Mixed has .* float32 \(stem.bias\), {name} \(head.bias\).*weight.dtype"):
        fit(MixedModule(dtype, fixed=True), QATCallback(), max_epochs=3)


def test_layers_that_the_first_forward_makes_are_named(fit: Fit) -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(1, 4, 3), None

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.stem(x)).flatten(1)
            self.head = self.head or nn.Linear(x.shape[1], 3)
            return self.head(x)

    module = Tiny()
    module.model = Late()
    with pytest.raises(ValueError, match=r"Late makes \['head.bias', 'head.weight'\] in its first forward.*__init__"):
        fit(module, QATCallback(), max_epochs=1)

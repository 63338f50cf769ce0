"""Networks of darts, whose own ``fit`` takes the Trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
from darts import TimeSeries
from darts.models import NBEATSModel, TCNModel
from torchmetrics import MeanAbsoluteError

from .case import Case, Fit

REQUIREMENTS = ("darts",)

PAST, FUTURE, LENGTH = 24, 6, 160

SMALL: dict[str, Any] = {"input_chunk_length": PAST, "output_chunk_length": FUTURE, "batch_size": 16}


@dataclass(frozen=True)
class Forecasting(Fit):
    """The module is made and trained by the forecaster."""

    forecaster: Any

    def run(self, trainer: Any) -> None:
        self.forecaster.fit(**self.data, trainer=trainer)


def _series(length: int, seed: int) -> TimeSeries:
    noise = np.random.default_rng(seed).standard_normal(length)
    return TimeSeries.from_values((np.sin(np.arange(length) / 3) + 0.1 * noise).astype("float32"))


def _forecasting(forecaster: Any) -> Fit:
    data = {"series": _series(LENGTH, 0), "val_series": _series(LENGTH // 2, 1), "verbose": False}
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    forecaster.fit(**data, trainer=pl.Trainer(max_epochs=0, accelerator="cpu", **quiet))
    return Forecasting(forecaster.model, data, forecaster)


def nbeats() -> Fit:
    small = {"num_stacks": 2, "num_blocks": 1, "num_layers": 2, "layer_widths": 32}
    return _forecasting(NBEATSModel(**SMALL, **small, torch_metrics=MeanAbsoluteError()))


def tcn() -> Fit:
    return _forecasting(TCNModel(**SMALL, num_filters=8, weight_norm=True, torch_metrics=MeanAbsoluteError()))


CASES = (
    Case("NBEATSModel", nbeats, "val_MeanAbsoluteError"),
    Case("TCNModel with weight norm", tcn, "val_MeanAbsoluteError"),
)

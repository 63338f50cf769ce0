"""Networks of pytorch-forecasting, made from its data set as its tutorials do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pytorch_forecasting import NBeats, NHiTS, TimeSeriesDataSet

from .case import Case, Fit

REQUIREMENTS = ("pytorch-forecasting",)

PAST, FUTURE, LENGTH, SERIES = 20, 5, 80, 4


def _series() -> pd.DataFrame:
    """Waves with noise."""
    noise, time = np.random.default_rng(0), np.arange(LENGTH)
    waves = [np.sin(time / (2 + k)) + 0.1 * noise.standard_normal(LENGTH) for k in range(SERIES)]
    columns = {"series": np.repeat(np.arange(SERIES), LENGTH).astype(str), "time_idx": np.tile(time, SERIES)}
    return pd.DataFrame({**columns, "value": np.concatenate(waves).astype("float32")})


def _forecasting(network: Any, **settings: Any) -> Fit:
    data, cut = _series(), LENGTH - 3 * FUTURE
    training = TimeSeriesDataSet(
        data[data.time_idx < cut],
        time_idx="time_idx",
        target="value",
        group_ids=["series"],
        max_encoder_length=PAST,
        max_prediction_length=FUTURE,
        time_varying_unknown_reals=["value"],
    )
    validation = TimeSeriesDataSet.from_dataset(training, data, min_prediction_idx=cut)
    loaders = {
        "train_dataloaders": training.to_dataloader(train=True, batch_size=16, num_workers=0),
        "val_dataloaders": validation.to_dataloader(train=False, batch_size=16, num_workers=0),
    }
    return Fit(network.from_dataset(training, learning_rate=3e-3, **settings), loaders)


def nbeats() -> Fit:
    return _forecasting(NBeats, widths=[32, 64], backcast_loss_ratio=0.1)


def nhits() -> Fit:
    return _forecasting(NHiTS, hidden_size=32)


CASES = (
    Case("NBeats", nbeats, "val_MAE", trainer={"gradient_clip_val": 0.1}),
    Case("NHiTS", nhits, "val_MAE", trainer={"gradient_clip_val": 0.1}),
)

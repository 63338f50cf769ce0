"""Networks of neuralforecast, with the data module that its own ``fit`` makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from neuralforecast.models import LSTM, NHITS, TFT, DLinear, iTransformer
from neuralforecast.tsdataset import TimeSeriesDataModule, TimeSeriesDataset

from .case import Case, Fit

REQUIREMENTS = ("neuralforecast",)

PAST, FUTURE, LENGTH, SERIES = 24, 6, 120, 4


def _series() -> pd.DataFrame:
    """Waves with noise."""
    noise, time = np.random.default_rng(0), np.arange(LENGTH)
    waves = [np.sin(time / (2 + k)) + 0.1 * noise.standard_normal(LENGTH) for k in range(SERIES)]
    dates = np.tile(pd.date_range("2000-01-01", periods=LENGTH), SERIES)
    columns = {"unique_id": np.repeat(np.arange(SERIES), LENGTH).astype(str), "ds": dates}
    return pd.DataFrame({**columns, "y": np.concatenate(waves).astype("float32")})


def _forecasting(network: Any, **settings: Any) -> Fit:
    windows = {"h": FUTURE, "input_size": PAST, "batch_size": SERIES, "windows_batch_size": 32}
    module = network(**windows, learning_rate=3e-3, **settings)
    module.val_size, module.test_size = 2 * FUTURE, 0
    series, *_ = TimeSeriesDataset.from_df(_series())
    return Fit(module, {"datamodule": TimeSeriesDataModule(series, batch_size=SERIES, valid_batch_size=SERIES)})


def dlinear() -> Fit:
    return _forecasting(DLinear)


def nhits() -> Fit:
    return _forecasting(NHITS, mlp_units=3 * [[64, 64]])


def itransformer() -> Fit:
    return _forecasting(iTransformer, n_series=SERIES, hidden_size=32, n_heads=4, e_layers=2, d_ff=64)


def tft() -> Fit:
    return _forecasting(TFT, hidden_size=32)


def lstm() -> Fit:
    return _forecasting(LSTM, encoder_hidden_size=32, decoder_hidden_size=32)


CASES = (
    Case("DLinear", dlinear, "valid_loss", epochs=(40, 8)),
    Case("NHITS", nhits, "valid_loss", epochs=(40, 8)),
    Case("iTransformer", itransformer, "valid_loss", epochs=(40, 8)),
    Case("TFT", tft, "valid_loss", epochs=(40, 8)),
    Case(
        "LSTM",
        lstm,
        "valid_loss",
        epochs=(40, 8),
        arguments={"target": "", "qconfig": {"recurrence": "int8"}},
        reason="Without target='', only the decoder is quantized; without recurrence, the LSTM stays in float.",
    ),
)

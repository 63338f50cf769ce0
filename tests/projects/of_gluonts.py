"""Networks of gluonts, whose estimators make the LightningModule and its data."""

from __future__ import annotations

from typing import Any

import numpy as np
from gluonts.dataset.common import ListDataset
from gluonts.torch import PatchTSTEstimator, SimpleFeedForwardEstimator, TemporalFusionTransformerEstimator

from .case import Case, Fit

REQUIREMENTS = ("gluonts[torch]",)

PAST, FUTURE, LENGTH, SERIES = 24, 6, 200, 8

SMALL: dict[str, Any] = {
    "prediction_length": FUTURE,
    "context_length": PAST,
    "batch_size": 16,
    "num_batches_per_epoch": 6,
}


def _series(seed: int) -> ListDataset:
    """Waves with noise."""
    noise, time = np.random.default_rng(seed), np.arange(LENGTH)
    waves = [np.sin(time / (2 + k)) + 0.1 * noise.standard_normal(LENGTH) for k in range(SERIES)]
    return ListDataset([{"start": "2000-01-01", "target": wave.astype("float32")} for wave in waves], freq="D")


def _forecasting(estimator: Any) -> Fit:
    prepared, module = estimator.create_transformation(), estimator.create_lightning_module()
    train, validation = (prepared.apply(_series(seed), is_train=True) for seed in range(2))
    loaders = {
        "train_dataloaders": estimator.create_training_data_loader(train, module),
        "val_dataloaders": estimator.create_validation_data_loader(validation, module),
    }
    return Fit(module, loaders)


def feed_forward() -> Fit:
    return _forecasting(SimpleFeedForwardEstimator(**SMALL, hidden_dimensions=[32, 32]))


def patch_tst() -> Fit:
    return _forecasting(PatchTSTEstimator(**SMALL, patch_len=8))


def tft() -> Fit:
    return _forecasting(TemporalFusionTransformerEstimator(**SMALL, freq="D"))


CASES = (
    Case("SimpleFeedForward", feed_forward, "val_loss"),
    Case("PatchTST", patch_tst, "val_loss"),
    Case("TemporalFusionTransformer", tft, "val_loss"),
)

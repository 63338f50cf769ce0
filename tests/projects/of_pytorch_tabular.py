"""Networks of pytorch-tabular, made by its TabularModel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pytorch_tabular import TabularModel
from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
from pytorch_tabular.models import CategoryEmbeddingModelConfig, FTTransformerConfig, TabTransformerConfig

from .case import Case, Fit

REQUIREMENTS = ("pytorch-tabular",)

NUMBERS = ["first", "second", "third"]


def _table(count: int, seed: int) -> pd.DataFrame:
    """Two classes, told apart by numbers and a kind."""
    generator = np.random.default_rng(seed)
    numbers, kinds = generator.standard_normal((count, len(NUMBERS))), generator.integers(0, 4, count)
    label = (numbers[:, 0] + numbers[:, 1] + kinds > 1.5).astype(int)
    return pd.DataFrame({**dict(zip(NUMBERS, numbers.T, strict=True)), "kind": kinds.astype(str), "label": label})


def _classification(network: Any, **settings: Any) -> Fit:
    model = TabularModel(
        data_config=DataConfig(target=["label"], continuous_cols=NUMBERS, categorical_cols=["kind"]),
        model_config=network(task="classification", **settings),
        optimizer_config=OptimizerConfig(),
        trainer_config=TrainerConfig(batch_size=32, accelerator="cpu"),
        verbose=False,
    )
    data = model.prepare_dataloader(_table(256, 0), _table(128, 1))
    loaders = {"train_dataloaders": data.train_dataloader(), "val_dataloaders": data.val_dataloader()}
    return Fit(model.prepare_model(data), loaders)


def category_embedding() -> Fit:
    return _classification(CategoryEmbeddingModelConfig)


def tab_transformer() -> Fit:
    return _classification(TabTransformerConfig, num_attn_blocks=2)


def ft_transformer() -> Fit:
    return _classification(FTTransformerConfig, num_attn_blocks=2, num_heads=4, attn_feature_importance=False)


CASES = (
    Case("CategoryEmbeddingModel", category_embedding, "valid_accuracy"),
    Case("TabTransformerModel", tab_transformer, "valid_accuracy"),
    Case(
        "FTTransformerModel",
        ft_transformer,
        "valid_accuracy",
        note="With attn_feature_importance, forward keeps an array of NumPy and cannot be exported.",
    ),
)

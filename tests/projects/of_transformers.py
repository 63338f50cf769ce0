"""Fine-tuning as in Lightning's tutorial on text transformers, without a pretrained checkpoint.

https://lightning.ai/docs/pytorch/stable/notebooks/lightning_examples/text-transformers.html
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics import Accuracy
from transformers import AutoConfig, AutoModelForSequenceClassification, get_linear_schedule_with_warmup

from .case import Case, Fit
from .data import TRAIN, VALIDATION, loaders

REQUIREMENTS = ("transformers",)

WORDS, LENGTH = 60, 16

SMALL = {"vocab_size": WORDS, "num_labels": 2, "max_position_embeddings": 2 * LENGTH}
HIDDEN = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


class GLUETransformer(L.LightningModule):
    """A classifier of sentences."""

    def __init__(self, config: Any, learning_rate: float = 2e-3, warmup_steps: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="config")
        self.config = config
        self.model = AutoModelForSequenceClassification.from_config(config)
        self.metric = Accuracy("binary")
        self.outputs: list[dict[str, Tensor]] = []

    def forward(self, **inputs: Tensor) -> Any:
        return self.model(**inputs)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self(**batch)[0]
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        val_loss, logits = self(**batch)[:2]
        self.outputs.append({"loss": val_loss, "preds": logits.argmax(1), "labels": batch["labels"]})
        return val_loss

    def on_validation_epoch_end(self) -> None:
        preds = torch.cat([x["preds"] for x in self.outputs])
        labels = torch.cat([x["labels"] for x in self.outputs])
        self.log("val_loss", torch.stack([x["loss"] for x in self.outputs]).mean(), prog_bar=True)
        self.log_dict({"accuracy": self.metric(preds, labels)}, prog_bar=True)
        self.outputs.clear()

    def configure_optimizers(self) -> Any:
        no_decay = ["bias", "LayerNorm.weight"]
        named = list(self.model.named_parameters())
        groups = [
            {"params": [p for n, p in named if not any(nd in n for nd in no_decay)], "weight_decay": 0.01},
            {"params": [p for n, p in named if any(nd in n for nd in no_decay)], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.hparams.learning_rate)
        scheduler = get_linear_schedule_with_warmup(
            optimizer,
            num_warmup_steps=self.hparams.warmup_steps,
            num_training_steps=self.trainer.estimated_stepping_batches,
        )
        return [optimizer], [{"scheduler": scheduler, "interval": "step", "frequency": 1}]


def sentences(count: int, seed: int) -> list[dict[str, Tensor]]:
    """Of two classes, told apart by which half of the words is frequent; the ends are padded."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index in range(count):
        label = index % 2
        rare = torch.rand(LENGTH, generator=generator) < 0.3
        ids = torch.randint(2, WORDS // 2, (LENGTH,), generator=generator) + (WORDS // 2 - 1) * (rare ^ bool(label))
        mask = (torch.arange(LENGTH) < int(torch.randint(8, LENGTH + 1, (), generator=generator))).long()
        made.append({"input_ids": ids * mask, "attention_mask": mask, "labels": torch.tensor(label)})
    return made


def fine_tuning(kind: str, **settings: Any) -> Fit:
    """The module around a small model of this kind."""
    module = GLUETransformer(AutoConfig.for_model(kind, **SMALL, **settings))
    return Fit(module, loaders(sentences(2 * TRAIN, 0), sentences(2 * VALIDATION, 1)))


def bert() -> Fit:
    return fine_tuning("bert", **HIDDEN)


def distilbert() -> Fit:
    return fine_tuning("distilbert", dim=32, n_layers=2, n_heads=2, hidden_dim=64)


CASES = (
    Case("GLUETransformer with BERT", bert, "accuracy"),
    Case("GLUETransformer with DistilBERT", distilbert, "accuracy"),
)

"""Transformers and recurrent networks on Fashion-MNIST: what int8 costs in accuracy, and how fast it is.

``python -m benchmarks.sequence``. A vision transformer reads an image as 49 patches; an LSTM reads it as 28 rows. Each
is trained in float, and then by ``QATCallback`` for a quarter of the epochs, from the float weights every time. The
accuracy is that of the files on the 10,000 test images; latencies are of one image, and all models take turns.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import lq
from benchmarks._common import Column, Row, label, number, parse, parser, report
from lq.data import FashionMNISTDataModule
from lq.timing.bench import bench

RUNTIMES = ("torch", "onnx", "openvino", "litert")


class Attention(nn.Module):
    """Self-attention of several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.proj, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.proj(attended.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """A block of a transformer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attention = nn.LayerNorm(width), nn.LayerNorm(width), Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Of patches of 4x4 pixels."""

    def __init__(self, width: int = 96, heads: int = 3, depth: int = 4) -> None:
        super().__init__()
        self.patches, self.position = nn.Conv2d(1, width, 4, 4), nn.Parameter(torch.zeros(1, 49, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))


class RowReader(nn.Module):
    """An LSTM that reads an image row by row."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(28, width, batch_first=True), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.flatten(1, 2))[0][:, -1])


MODELS: dict[str, Callable[[], nn.Module]] = {"vit": VisionTransformer, "lstm": RowReader}
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "vit": {"layers": {"preset": "openvino"}, "attention too": {"preset": "openvino", "attention": "int8"}},
    "lstm": {"all": {"preset": "openvino", "recurrence": "int8"}},
}


class Task(L.LightningModule):
    """The training of one of them."""

    def __init__(self, model: nn.Module, steps: int, lr: float = 1e-3) -> None:
        super().__init__()
        self.model, self.steps, self.lr = model, steps, lr

    def forward(self, x: Tensor) -> Any:
        return self.model(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Train, export, compare, and print a table."""
    options = _options(arguments)
    warnings.filterwarnings("ignore", module="lightning")
    data = FashionMNISTDataModule(root=str(options.data))
    data.setup("fit")
    rows = [row for name in options.models for row in _measured(name, data, options)]
    columns: list[Column] = [label("model", "model"), label("setting", "in int8"), number("share", "work", ".0%")]
    columns += [number(f"accuracy_{kind}", f"{kind}, %", ".2f") for kind in ("float", *RUNTIMES)]
    columns += [number(f"ms_{kind}", f"{kind}, ms", ".3f") for kind in RUNTIMES]
    columns += [number(f"float_{kind}", f"{kind} float, ms", ".3f") for kind in RUNTIMES]
    columns += [label("profile", "time in int8.onnx")] if options.profile else []
    report("Fashion-MNIST as sequences", columns, rows, options)
    return rows


def _measured(name: str, data: FashionMNISTDataModule, options: argparse.Namespace) -> list[Row]:
    L.seed_everything(0, verbose=False)
    model = MODELS[name]()
    _fit(model, data, options, options.epochs)
    exact = _accuracy(model.eval(), data)
    return [_quantized(name, model, setting, data, options) | {"accuracy_float": exact} for setting in SETTINGS[name]]


def _quantized(name: str, model: nn.Module, setting: str, data: Any, options: argparse.Namespace) -> Row:
    exporters = [kind for kind in RUNTIMES if kind in options.runtimes]
    with tempfile.TemporaryDirectory() as place:
        callback = lq.QATCallback(
            qconfig=lq.QConfig(**SETTINGS[name][setting]),
            schedule=lq.QATSchedule(lr=0.1),
            exporters=exporters,
            export_dir=f"{place}/int8",
        )
        _fit(copy.deepcopy(model).train(), data, options, max(1, options.epochs // 4), callback)
        assert callback.plan is not None
        row: Row = {"model": name, "setting": setting, "share": callback.plan.share}
        for kind in exporters:
            row[f"accuracy_{kind}"] = _accuracy(lq.load(f"{place}/int8", kind), data)
        if options.profile:
            row["profile"] = profile(Path(place, "int8", "int8.onnx"))
        times = bench(f"{place}/int8", model, [1], options.threads, options.seconds, compile=False).rows
    found = {entry["model"]: entry["latency_ms"] for entry in times}
    fused = min(ms for entry, ms in found.items() if entry in ("fp32 eager", "fp32 frozen", "fp32 fused"))
    row |= {f"ms_{kind}": found.get(f"int8 {kind}") for kind in RUNTIMES}
    return row | {f"float_{kind}": fused if kind == "torch" else found.get(f"fp32 {kind}") for kind in RUNTIMES}


def profile(path: Path, calls: int = 100, kinds: int = 5) -> str:
    """Which kinds of operators take how much of the time of an ONNX file in ONNX Runtime, on a batch of one."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.enable_profiling = 1, True
    settings.profile_file_prefix = str(path.with_suffix(""))
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    given = {value.name: np.zeros([1, *value.shape[1:]], np.float32) for value in session.get_inputs()}
    for _ in range(calls):
        session.run(None, given)
    events = json.loads(Path(session.end_profiling()).read_text())
    spent: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
    total = spent.total()
    return ", ".join(f"{kind} {micro / total:.0%}" for kind, micro in spent.most_common(kinds))


def _fit(model: nn.Module, data: Any, options: argparse.Namespace, epochs: int, *callbacks: Any) -> None:
    images, labels = data._sets["train"]
    train = TensorDataset(images[: options.images], labels[: options.images])
    loader = DataLoader(train, 128, shuffle=True)
    trainer = L.Trainer(
        accelerator=options.device.replace("cuda", "gpu"),
        devices=1,
        max_epochs=epochs,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        default_root_dir=Path(tempfile.gettempdir()),
    )
    trainer.fit(Task(model, epochs * len(loader)), loader, data.val_dataloader())


@torch.no_grad()
def _accuracy(model: Any, data: Any) -> float:
    return 100 * float(torch.cat([(model(x).argmax(1) == y).float() for x, y in data.test_dataloader()]).mean())


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    options = parser("Transformers and recurrent networks in int8.", rounds=None)
    options.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES))
    options.add_argument("--epochs", type=int, default=4, help="in float; a quarter of them in int8 (default: 4)")
    options.add_argument("--images", type=int, default=20000, help="to train on (default: 20000)")
    options.add_argument("--seconds", type=float, default=1.0, help="of timed calls for each model (default: 1)")
    options.add_argument("--profile", action="store_true", help="say where int8.onnx spends its time")
    options.add_argument("--data", type=Path, default=Path("data"), help="folder of the images")
    return parse(options, arguments)


if __name__ == "__main__":
    main()

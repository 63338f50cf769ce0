"""What happens once: seconds and memory of ``prepare``, the callback's ``setup``, ``convert``, and of large files.

    python -m benchmarks.start                               # resnet50, vit_b_16, a transformer of a billion weights
    python -m benchmarks.start --models embedding --onnx     # an ONNX file of more than 2 GiB, written and loaded again

Each model has a process of its own, whose peak of resident memory is compared with that before.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import lq
from benchmarks._common import Row, label, number, parse, parser, ratio, report

COLUMNS = (
    label("model", "model"),
    number("weights", "weights, M", ".1f"),
    number("prepare_s", "prepare, s", ".2f"),
    ratio("prepare_memory", "peak memory"),
    number("setup_s", "setup, s", ".2f"),
    number("convert_s", "convert, s", ".2f"),
    number("onnx_s", "ONNX, s", ".1f"),
    number("onnx_gb", "ONNX, GB", ".2f"),
)


class Block(nn.Module):
    """A transformer's, of attention and two linear layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, tokens, width)."""
        batch, tokens, width = x.shape
        parts = self.qkv(self.norms[0](x)).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        x = x + self.out(mixed.reshape(batch, tokens, width))
        out: Tensor = x + self.down(F.gelu(self.up(self.norms[1](x))))
        return out


class Transformer(nn.Module):
    """Tokens to class scores."""

    def __init__(self, blocks: int, width: int, words: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.blocks = nn.Sequential(*(Block(width, 16) for _ in range(blocks)))
        self.head = nn.Linear(width, 1000)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (batch, tokens)."""
        out: Tensor = self.head(self.blocks(self.words(tokens)).mean(1))
        return out


def _image() -> Tensor:
    return torch.rand(2, 3, 224, 224)


def _tokens() -> Tensor:
    return torch.randint(100, (2, 16))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "resnet50": (torchvision.models.resnet50, _image),
    "vit_b_16": (torchvision.models.vit_b_16, _image),
    "transformer_1b": (lambda: Transformer(19, 2048, 32_000), _tokens),
    "embedding": (lambda: Transformer(1, 1024, 620_000), _tokens),
    "tiny": (lambda: Transformer(1, 16, 100), _tokens),
}


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure all models and print the table."""
    options = parse(_options(), arguments)
    if options.step:
        STEPS[options.step](options)
        return []
    rows: list[Row] = []
    for name in options.models:
        row: Row = {"model": name}
        for step in STEPS if options.onnx else list(STEPS)[:-1]:
            row |= _again(step, name, options.threads)
        rows.append(row)
    report("Once in a run", COLUMNS, rows, options)
    return rows


def _options() -> argparse.ArgumentParser:
    options = parser("Seconds and memory of what happens once.", rounds=None)
    default = ["resnet50", "vit_b_16", "transformer_1b"]
    options.add_argument("--models", nargs="+", choices=MODELS, default=default, metavar="NAME", help=", ".join(MODELS))
    options.add_argument("--onnx", action="store_true", help="write an ONNX file, too")
    options.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    return options


def _again(step: str, name: str, threads: int) -> Row:
    """Do one step with one model in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, "row.json")
        given = ["--models", name, "--threads", str(threads), "--step", step, "--file", str(file)]
        subprocess.run([sys.executable, "-m", __spec__.name, *given], check=True)
        row: Row = json.loads(file.read_text())
        return row


def _prepared(name: str, row: Row) -> tuple[nn.Module, Tensor]:
    make, example = MODELS[name]
    net, x = make(), example()
    row["weights"] = sum(p.numel() for p in net.parameters()) / 1e6
    with torch.no_grad():
        net(x)
    before = _peak()
    row["prepare_s"] = _seconds(partial(lq.prepare, net, example_args=(x,)))
    row["prepare_memory"] = _peak() / before
    lq.calibrate(net, [x], show_progress=False)
    return net.eval(), x


def prepare_and_convert(options: argparse.Namespace) -> None:
    """Of one model."""
    row: Row = {}
    net, _ = _prepared(options.models[0], row)
    row["convert_s"] = _seconds(partial(lq.convert, net))
    options.file.write_text(json.dumps(row))


def set_up(options: argparse.Namespace) -> None:
    """Of one model in a LightningModule that says nothing of its inputs."""
    make, example = MODELS[options.models[0]]
    options.file.write_text(json.dumps({"setup_s": _setup(_Module(make()), example())}))


def export_onnx(options: argparse.Namespace) -> None:
    """Of one model, with the parity gate, which loads the file again."""
    net, x = _prepared(options.models[0], {})
    with tempfile.TemporaryDirectory() as place:
        seconds = _seconds(partial(lq.export_artifact, net, [x], f"{place}/int8", ["onnx"]))
        size = sum(file.stat().st_size for file in Path(place, "int8").glob("int8.onnx*"))
    options.file.write_text(json.dumps({"onnx_s": seconds, "onnx_gb": size / 1e9}))


STEPS = {"prepare": prepare_and_convert, "setup": set_up, "onnx": export_onnx}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class _Module(L.LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net(batch[0]).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_sum", self.net(batch[0]).sum())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class _OverError(Exception):
    """Ends the run, of which the rest is not measured."""


class _Timed(lq.QATCallback):
    """Times its ``setup``, behind which the run is over."""

    seconds = 0.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.seconds = _seconds(partial(super().setup, trainer, pl_module, stage))
        raise _OverError


def _setup(module: _Module, x: Tensor) -> float:
    callback = _Timed()
    with tempfile.TemporaryDirectory() as place:
        trainer = L.Trainer(
            accelerator="cpu",
            default_root_dir=place,
            callbacks=[callback],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        loader = DataLoader(TensorDataset(x), 2)
        with suppress(_OverError):
            trainer.fit(module, loader, loader)
    return callback.seconds


if __name__ == "__main__":
    main()

"""How much memory a training step keeps for its backward pass, and its peak: counted on a CPU, measured on a GPU.

python -m benchmarks.memory --models resnet18 --json memory.json
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks._common import Row, label, number, parse, parser, ratio, report, synchronize
from benchmarks._variants import FLOAT, PRECISIONS, VARIANTS, Case, Step, UnavailableError, build, cases
from lq.core.scratch import Scratch

COLUMNS = (
    label("model", "model"),
    label("precision", "bits"),
    label("step", "step"),
    number("saved_mb", "saved MB", ".1f"),
    ratio("saved_ratio"),
    number("held_mb", "held MB", ".1f"),
    ratio("both_ratio", "saved + held, ratio"),
    number("peak_mb", "peak MB", ".1f"),
    ratio("peak_ratio"),
    label("note", ""),
)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure the chosen models and print the table."""
    options = parse(_options(), arguments)
    known = cases(options.size)
    rows = [
        row
        for name in options.models
        for bits in options.precision
        for row in measure(name, known[name], bits, options)
    ]
    title = f"Memory, batch {options.batch}, 3x{options.size}x{options.size}: saved for backward; held by the modules"
    report(title, COLUMNS, rows, options)
    return rows


def _options() -> argparse.ArgumentParser:
    options = parser("Memory of a training step as a ratio to float.", rounds=None)
    known = list(cases(32))
    default = ["resnet18", "mobilenet_v2"]
    options.add_argument("--models", nargs="+", choices=known, default=default, metavar="NAME", help=", ".join(known))
    options.add_argument("--batch", type=int, default=16, help="images a step (default: 16)")
    options.add_argument("--size", type=int, default=96, help="height and width of an image (default: 96)")
    options.add_argument(
        "--precision", nargs="+", choices=list(PRECISIONS), default=["32"], help="bf16 and 16: autocast (default: 32)"
    )
    return options


def measure(name: str, case: Case, precision: str, options: argparse.Namespace) -> list[Row]:
    """One row for every variant of one model."""
    x, y = case.batch(options.batch, torch.device(options.device))
    rows: list[Row] = []
    for variant in VARIANTS:
        row: Row = {"model": name, "precision": precision, "step": variant}
        try:
            row |= _usage(build(variant, case, x, precision), x, y, precision)
        except UnavailableError as reason:
            row["note"] = str(reason)
        rows.append(row)
        gc.collect()
    _add_ratios(rows)
    return rows


def _add_ratios(rows: list[Row]) -> None:
    base = next(row for row in rows if row["step"] == FLOAT)
    for row in rows:
        row.setdefault("note", "")
        for kind in ("saved", "both", "peak"):
            own, floats = row.get(f"{kind}_mb"), base.get(f"{kind}_mb")
            row[f"{kind}_ratio"] = own / floats if own and floats else None


def _usage(model: nn.Module, x: Tensor, y: Tensor, precision: str) -> Row:
    step = Step.of(model, x, y, precision=precision)
    for _ in range(2):
        step()
    saved, counted_peak = _saved(step)
    held, peak = _megabytes(_held(model)), _peak(step)
    return {"saved_mb": saved, "held_mb": held, "both_mb": saved + held, "peak_mb": peak or counted_peak}


class Storages(TorchDispatchMode):
    """Counts the bytes of all memory that operations make, for as long as somebody has it.

    What an operation needs for itself alone, such as a convolution's columns, it does not see.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}
        self._given: set[int] = set()
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._given |= {storage._cdata for storage in _storages((args, kwargs))} - self._made.keys()
        out = func(*args, **(kwargs or {}))
        made = [s for s in _storages(out) if s._cdata not in self._given and s._cdata not in self._made]
        if made:
            self._made |= {storage._cdata: (StorageWeakRef(storage), storage.nbytes()) for storage in made}
            self.peak = max(self.peak, self.alive())
        return out

    def alive(self) -> int:
        """Bytes that are there now."""
        self._made = {key: made for key, made in self._made.items() if not made[0].expired()}
        return sum(size for _, size in self._made.values())


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor)]


def _saved(step: Step) -> tuple[float, float]:
    """Megabytes that a forward pass has made and that are there at its end, and the most in the whole step."""
    step.optimizer.zero_grad(set_to_none=True)
    with Storages() as storages:
        loss = step.forward()
        saved = storages.alive()
        loss.backward()  # type: ignore[no-untyped-call]
    return saved / 1e6, storages.peak / 1e6


def _held(model: nn.Module) -> Iterator[Tensor]:
    """What modules hold beside parameters and gradients: buffers, plain attributes, memory for quantized weights."""
    yield from model.buffers()
    for module in model.modules():
        values = (value.free if isinstance(value, Scratch) else value for value in vars(module).values())
        yield from (value for value in values if isinstance(value, Tensor))


def _megabytes(tensors: Iterable[Tensor]) -> float:
    """Size of the distinct storages behind ``tensors``, in MB of 1,000,000 bytes."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()) / 1e6


def _peak(step: Step) -> float | None:
    """Highest allocation during a step on a GPU, in MB, with parameters and all else; None on a CPU."""
    device = step.x.device
    if device.type != "cuda":
        return None
    synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) / 1e6


if __name__ == "__main__":
    main()

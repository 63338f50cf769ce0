"""How many operators lq adds to a training step, forward and backward, for each layer with a quantized weight.

    python -m benchmarks.launches --models resnet18 mobilenet_v2 --json launches.json

On a GPU each is one launch of a kernel or more, and where a launch takes longer than its work, their number is the time
of a step. They are counted on the device "meta", which computes nothing: it takes the way of a GPU, where ranges are
tensors whose values must not be asked for. Views and what only allocates memory launch nothing and are left out.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks._common import Row, label, number, parse, parser, report
from benchmarks._variants import FLOAT, VARIANTS, Case, UnavailableError, build, cases
from lq.backends.prepare import plan_of

COLUMNS = (
    label("model", "model"),
    label("step", "step"),
    number("layers", "layers", "d"),
    number("operators", "operators", "d"),
    number("added", "added a layer", ".2f"),
    label("most", "most of them"),
)
_LAUNCH_NOTHING = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"})
_PHASES = [name for name in VARIANTS if name.startswith("lq")]


class Operators(TorchDispatchMode):
    """Counts the operators that would launch a kernel, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # What a number becomes stays on the CPU.
        on_device = any(isinstance(t, Tensor) and t.is_meta for t in tree_leaves(out))
        if on_device and not func.is_view and func._opname not in _LAUNCH_NOTHING:
            self.counts[func._opname] += 1
        return out


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Count for the chosen models and print the table."""
    options = parse(_options(), arguments)
    known = cases(options.size)
    rows = [row for name in options.models for row in measure(name, known[name], options)]
    report("Operators of a step, forward and backward", COLUMNS, rows, options)
    return rows


def _options() -> argparse.ArgumentParser:
    options = parser("Operators that lq adds to a training step.", rounds=None)
    known = list(cases(32))
    default = ["resnet18", "mobilenet_v2"]
    options.add_argument("--models", nargs="+", choices=known, default=default, metavar="NAME", help=", ".join(known))
    options.add_argument("--size", type=int, default=96, help="height and width of an image (default: 96)")
    return options


def measure(name: str, case: Case, options: argparse.Namespace) -> list[Row]:
    """One row for float and for each phase of lq."""
    x, _ = case.batch(2, torch.device("cpu"))
    base = operators(build(FLOAT, case, x), x)
    rows: list[Row] = [{"model": name, "step": FLOAT, "operators": base.total()}]
    for phase in _PHASES:
        try:
            model = build(phase, case, x)
        except UnavailableError:
            continue
        layers = len(plan_of(model).quantized)
        counts = operators(model, x)
        added = counts.total() - base.total()
        more = counts - base
        most = ", ".join(f"{count / layers:.1f} {op}" for op, count in more.most_common(12))
        rows.append(
            {
                "model": name,
                "step": phase,
                "layers": layers,
                "operators": counts.total(),
                "added": added / layers,
                "most": most,
            }
        )
    return rows


def operators(model: nn.Module, x: Tensor) -> Counter[str]:
    """What a later step calls, forward and backward, on the device "meta"; ``model`` is moved there."""
    model(x)  # the very first call is recorded with its inputs
    model, x = model.to("meta"), x.to("meta")
    y = torch.zeros(len(x), dtype=torch.int64, device="meta")
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        with Operators() as seen:
            F.cross_entropy(model(x), y).backward()
    return seen.counts


if __name__ == "__main__":
    main()

"""Whether every entry runs in float: ``python -m tests.zoo.check_float [PATTERN] [--twice]``."""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter

import torch
from torch import Tensor, nn

from tests.zoo.catalogue import select
from tests.zoo.entry import Entry, floating, quiet, seeded


def check(entry: Entry, *, twice: bool = False) -> str:
    """Evaluate and train a model once; with ``twice`` also see that the same seed gives the same model and inputs.

    Returns:
        what to print of it.

    Raises:
        AssertionError: if a number is not finite, no parameter gets a gradient, or two builds differ.
    """
    model = entry.make()
    args, kwargs = entry.example()
    with torch.no_grad(), quiet(), seeded(3):
        output = floating(model.eval()(*args, **kwargs))
        again = floating(model(*args, **kwargs))
    assert output, "evaluation gives no floating tensor"
    assert all(part.isfinite().all() for part in output), "evaluation is not finite"
    assert all(torch.equal(a, b) for a, b in zip(output, again, strict=True)), "evaluation is not deterministic"
    assert max(float(part.std()) for part in output if part.numel() > 1) > 1e-6, "evaluation is constant"
    if twice:
        _same(model.state_dict(), entry.make().state_dict())
    args, kwargs = entry.training_example()
    with quiet(), seeded(4):
        loss = entry.loss(model.train()(*args, **kwargs))
        loss.backward()
    assert math.isfinite(loss.item()), "the loss is not finite"
    return _of_parameters(model)


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [key for key, value in one.items() if isinstance(value, Tensor) and not value.equal(other[key])]
    assert not different, f"two builds differ in {different[:3]}"


def _of_parameters(model: nn.Module) -> str:
    parameters = dict(model.named_parameters())
    without = [name for name, p in parameters.items() if p.requires_grad and p.grad is None]
    bad = [name for name, p in parameters.items() if p.grad is not None and not p.grad.isfinite().all()]
    assert len(without) < len(parameters), "no parameter has a gradient"
    assert not bad, f"gradients that are not finite: {bad[:3]}"
    unused = f", {len(without)} without a gradient" if without else ""
    return f"{sum(p.numel() for p in parameters.values()) / 1e6:7.2f} M parameters{unused}"


def main() -> None:
    """Print a line for each entry, and how many ran of each package."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pattern", nargs="?", default="", help="regular expression in the name")
    parser.add_argument("--twice", action="store_true", help="build each a second time and compare")
    options = parser.parse_args()
    ran: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    begin = time.perf_counter()
    for entry in select(options.pattern):
        start = time.perf_counter()
        try:
            outcome = check(entry, twice=options.twice) if entry.is_installed else "not installed"
            tried[entry.package] += entry.is_installed
            ran[entry.package] += entry.is_installed
        except Exception as error:
            tried[entry.package] += 1
            outcome = f"FAILED {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        print(f"{entry.name:58s} {time.perf_counter() - start:6.2f} s  {outcome}", flush=True)
    for package, count in tried.items():
        print(f"{package}: {ran[package]} of {count} run in float")
    print(f"all: {ran.total()} of {tried.total()} in {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()

"""How long a step of DistributedDataParallel takes in each phase, and whether all processes keep the same ranges.

    python -m benchmarks.distributed --device cuda --models resnet18 --sync-batchnorm --precision 16
    python -m benchmarks.distributed --processes 2 --models mlp

One process a GPU, over NCCL; on CPUs over gloo. Every process has batches of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks._common import TIMING_COLUMNS, Row, Timing, label, parse, parser, report, synchronize
from benchmarks._variants import FLOAT, PRECISIONS, VARIANTS, Step, UnavailableError, build, cases
from lq.core.state import QATState

COLUMNS = (
    label("model", "model"),
    label("step", "step"),
    *TIMING_COLUMNS,
    label("ranges", "ranges of all processes"),
)
_WAYS = [name for name in VARIANTS if name == FLOAT or name.startswith("lq")]


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Start the processes, wait for them and print the table."""
    options = parse(_options(), arguments)
    if options.sync_batchnorm and options.device == "cpu":
        raise SystemExit("--sync-batchnorm: PyTorch has SyncBatchNorm for GPUs only; add --device cuda.")
    with tempfile.TemporaryDirectory() as scratch:
        torch.multiprocessing.spawn(_process, (options, scratch), options.processes)
        rows: list[Row] = json.loads(Path(scratch, "rows.json").read_text())
    what = f"{options.processes} processes, batch {options.batch} each, {options.precision} bit"
    report(f"Step of DistributedDataParallel, {what}", COLUMNS, rows, options)
    return rows


def _options() -> argparse.ArgumentParser:
    options = parser("Time of a distributed training step as a ratio to float.", rounds=9)
    known = list(cases(32))
    options.add_argument("--models", nargs="+", choices=known, default=["resnet18"], metavar="NAME")
    options.add_argument(
        "--processes", type=int, default=torch.cuda.device_count() or 2, help="default: one a GPU, or 2"
    )
    options.add_argument("--batch", type=int, default=16, help="images a step and process (default: 16)")
    options.add_argument("--size", type=int, default=96, help="height and width of an image (default: 96)")
    options.add_argument("--steps", type=int, default=3, help="steps a turn (default: 3)")
    options.add_argument("--precision", choices=list(PRECISIONS), default="32", help="32, bf16 or 16: autocast")
    options.add_argument("--sync-batchnorm", action="store_true", help="statistics over all processes")
    return options


def _process(rank: int, options: argparse.Namespace, scratch: str) -> None:
    torch.set_num_threads(options.threads)
    on_gpu = options.device.startswith("cuda")
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    store = f"file://{scratch}/store"
    dist.init_process_group("nccl" if on_gpu else "gloo", store, rank=rank, world_size=options.processes)
    rows = [row for name in options.models for row in _measure(name, options, device)]
    if rank == 0:
        Path(scratch, "rows.json").write_text(json.dumps(rows))
    dist.barrier()  # gloo aborts a process whose peer hangs up on it
    dist.destroy_process_group()


def _measure(name: str, options: argparse.Namespace, device: torch.device) -> list[Row]:
    steps: dict[str, _Step] = {}
    for way in _WAYS:
        torch.manual_seed(0)  # the same weights in all processes, and batches of their own
        try:
            steps[way] = _Step(way, name, options, device)
        except UnavailableError:
            continue
    seconds = _take_turns(steps, options, device)
    rows = []
    for way, step in steps.items():
        timing = Timing.of(seconds[way], seconds[FLOAT])
        rows.append({"model": name, "step": way, **timing.row(), "ranges": step.ranges()})
    return rows


def _take_turns(steps: dict[str, _Step], options: argparse.Namespace, device: torch.device) -> dict[str, list[float]]:
    """Seconds a step; as many steps in every process, which wait for each other anyway."""
    seconds: dict[str, list[float]] = {way: [] for way in steps}
    for turn in range(options.rounds + 1):
        for way, step in steps.items():
            step()
            dist.barrier()
            synchronize(device)
            start = time.perf_counter()
            losses = [step() for _ in range(options.steps)]
            synchronize(device)
            if turn:  # the first one warms up
                seconds[way].append((time.perf_counter() - start) / options.steps)
            if not math.isfinite(statistics.fmean(float(loss) for loss in losses)):
                raise RuntimeError(f"{way}: the loss is not finite, so its time means nothing.")
    return seconds


class _Step:
    def __init__(self, way: str, name: str, options: argparse.Namespace, device: torch.device) -> None:
        case = cases(options.size)[name]
        x, _ = case.batch(options.batch, device)
        model = build(way, case, x)
        self.state = next((m for m in model.modules() if isinstance(m, QATState)), None)
        if options.sync_batchnorm:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        torch.manual_seed(1 + dist.get_rank())
        parallel = DistributedDataParallel(model, [device.index] if device.type == "cuda" else None)
        self.step = Step.of(parallel, *case.batch(options.batch, device), precision=options.precision)

    def __call__(self) -> Tensor:
        return self.step()

    def ranges(self) -> str:
        """Whether those of all processes are equal, to the bit."""
        if self.state is None or not torch.isfinite(self.state.min_val).any():
            return ""
        own = torch.stack([self.state.min_val, self.state.max_val])
        of_all: list[Any] = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(of_all, own)
        return "equal" if all(torch.equal(of_all[0], other) for other in of_all) else "DIFFERENT"


if __name__ == "__main__":
    main()

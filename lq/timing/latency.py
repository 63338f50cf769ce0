"""How big a model is and how long a call takes."""

from __future__ import annotations

import io
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lq.checks import check_integer, check_number
from lq.tracing.structure import tensors_of

_MIN_ROUNDS = 5
_TIMED_PER_TURN = 3


@dataclass(frozen=True)
class Latency:
    """How long a call took.

    Args:
        median_ms: median over the timed calls, in milliseconds.
        min_ms: fastest call; on a shared machine it says more than the median.
        iqr_ms: distance between the quartiles, the spread.
        threads: threads that PyTorch was given.
        batch_size: first dimension of the first tensor argument, None without one.
        n: number of timed calls.

    Example:
        >>> print(Latency(median_ms=9.5, min_ms=9.1, iqr_ms=0.4, threads=1, batch_size=1, n=300))
        9.50 ms (min 9.10, IQR 0.40; 1 thread, batch 1, 300 calls)
    """

    median_ms: float
    min_ms: float
    iqr_ms: float
    threads: int
    batch_size: int | None
    n: int

    def __str__(self) -> str:
        plural = "" if self.threads == 1 else "s"
        batch = "" if self.batch_size is None else f", batch {self.batch_size}"
        return (
            f"{self.median_ms:.2f} ms (min {self.min_ms:.2f}, IQR {self.iqr_ms:.2f}; "
            f"{self.threads} thread{plural}{batch}, {self.n} calls)"
        )


def size_mb(model: nn.Module | str | os.PathLike[str]) -> float:
    """Serialised size of a model.

    Args:
        model: a module, whose state dict counts (the whole archive of a TorchScript module, because freezing
            moves weights out of its state dict), or a path: the bytes of the file, or of all files below.

    Returns:
        Size in MB of 1,000,000 bytes.

    Raises:
        FileNotFoundError: if the path does not exist.

    Example:
        >>> size_mb(nn.Linear(1000, 250, bias=False)) > 1.0
        True
    """
    if isinstance(model, torch.jit.ScriptModule):
        return len(model.save_to_buffer()) / 1e6
    if isinstance(model, nn.Module):
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        return buffer.tell() / 1e6
    path = Path(model)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give the file or the directory of a saved model.")
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


def latency(
    fn: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    threads: int = 1,
    warmup: int = 5,
    min_time: float = 1.0,
) -> Latency:
    """Time calls of one function without gradients.

    Args:
        fn: what is called; put a module into the mode that you want to time.
        args: its positional arguments, the same for every call.
        kwargs: its keyword arguments.
        threads: threads that PyTorch may use meanwhile.
        warmup: calls before the clock starts (TorchScript compiles in the first ones).
        min_time: seconds of calls to collect at least.

    Returns:
        Median, fastest and spread.

    Raises:
        TypeError: if something is no number.
        ValueError: if a number is out of range.

    Example:
        >>> latency(torch.relu, [torch.zeros(8, 3)], min_time=0.01).batch_size
        8
    """
    return compare_latency({"": fn}, args, kwargs, threads=threads, warmup=warmup, min_time=min_time)[""]


def compare_latency(
    fns: Mapping[str, Callable[..., Any]],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    threads: int = 1,
    warmup: int = 5,
    min_time: float = 1.0,
) -> dict[str, Latency]:
    """Time several functions in turns, so that whatever else the machine does hits all of them alike.

    A turn is one call that warms the caches, which the others have used meanwhile, and three timed ones.

    Args:
        fns: what is called, by name.
        args: positional arguments of all of them.
        kwargs: keyword arguments of all of them.
        threads: threads that PyTorch may use meanwhile.
        warmup: calls of each before the clock starts.
        min_time: seconds of timed calls to collect for each on average.

    Returns:
        The latencies, by name, all of the same number of calls.

    Raises:
        TypeError: if something is no number.
        ValueError: if there is nothing to call or a number is out of range.

    Example:
        >>> fns = {"relu": torch.relu, "tanh": torch.tanh}
        >>> results = compare_latency(fns, [torch.zeros(8)], min_time=0.01)
        >>> results["relu"].n == results["tanh"].n
        True
    """
    if not fns:
        raise ValueError("fns is empty; give at least one function, e.g. {'fp32': model}.")
    check_integer("threads", threads, 1, least=1)
    check_integer("warmup", warmup, 5, least=0)
    check_number("min_time", min_time, 1.0)
    if not min_time > 0:
        raise ValueError(f"min_time={min_time!r} must be above 0 seconds, e.g. 1.0.")
    tensors = tensors_of([args, kwargs or {}])
    devices = {tensor.device for tensor in tensors if tensor.device.type not in ("cpu", "meta")}
    with _threads(threads), torch.no_grad():
        clocks = [partial(_timed, fn, args, kwargs or {}, devices) for fn in fns.values()]
        times = _take_turns(clocks, warmup, min_time)
    batch_size = next((tensor.shape[0] for tensor in tensors if tensor.ndim), None)
    return {name: _summary(values, threads, batch_size) for name, values in zip(fns, times, strict=True)}


def _take_turns(clocks: Sequence[Callable[[], float]], warmup: int, min_time: float) -> list[list[float]]:
    for clock in clocks:
        for _ in range(warmup):
            clock()
    times: list[list[float]] = [[] for _ in clocks]
    collected, rounds = 0.0, 0
    while rounds < _MIN_ROUNDS or collected < min_time * len(clocks):
        for clock, values in zip(clocks, times, strict=True):
            clock()
            values += [clock() for _ in range(_TIMED_PER_TURN)]
            collected += sum(values[-_TIMED_PER_TURN:])
        rounds += 1
    return times


def _timed(fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], devices: set[torch.device]) -> float:
    for device in devices:
        torch.accelerator.synchronize(device)
    start = time.perf_counter()
    fn(*args, **kwargs)
    for device in devices:
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start


def _summary(seconds: list[float], threads: int, batch_size: int | None) -> Latency:
    times = [1e3 * value for value in seconds]
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Latency(median, min(times), high - low, threads, batch_size, len(times))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

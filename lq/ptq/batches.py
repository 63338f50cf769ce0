"""What a model is called with when all that is known are the batches of a data loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from lq.checks import check_integer
from lq.instrument.listen import Listener
from lq.metrics.outputs import LABEL_KEYS, describe
from lq.tracing.any_batch import run_any_batch
from lq.tracing.batch import fixed_batch
from lq.tracing.structure import Inputs, on_device, tensors_of

RunBatch = Callable[[Any, Any], Any]


def run_batch(model: Callable[..., Any], batch: Any) -> Any:
    """Call a model with the inputs that a batch holds, on the model's device.

    Args:
        model: any module, or another callable, which then gets its inputs on the CPU.
        batch: the input tensor itself; ``(inputs, ...)``, of which the first element counts; or a mapping, whose
            entries become keywords, all but the labels.

    Returns:
        what the model returns.

    Raises:
        ValueError: if the batch has another layout or its inputs hold no tensor.

    Example:
        >>> run_batch(nn.Flatten(), (torch.zeros(2, 3, 3), torch.tensor([0, 1]))).shape
        torch.Size([2, 9])
    """
    inputs: Any = batch
    if isinstance(batch, Mapping):
        inputs = {key: value for key, value in batch.items() if key not in LABEL_KEYS}
    elif isinstance(batch, (tuple, list)):
        inputs = batch[0] if batch else None
    if not tensors_of(inputs):
        raise ValueError(
            f"the batch, {describe(batch)}, has no tensor to call the model with. Known are a tensor, (inputs, ...) "
            "and a mapping of keywords; for another layout give call=, e.g. "
            "call=lambda model, batch: model(batch['image'])."
        )
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    device = next((parameter.device for parameter in parameters), torch.device("cpu"))
    inputs = on_device(inputs, device)
    given: Inputs = ((), dict(inputs)) if isinstance(inputs, Mapping) else ((inputs,), {})
    return run_any_batch(model, given, fixed_batch(model) if isinstance(model, nn.Module) else None)


@torch.no_grad()
def first_inputs(
    model: nn.Module, part: nn.Module, batch: Any, call: RunBatch = run_batch
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a part of a model is called with for one batch.

    Args:
        model: the model.
        part: one of its modules, or itself.
        batch: data.
        call: how to run it, ``call(model, batch)``.

    Returns:
        positional and keyword inputs of its first call.

    Raises:
        ValueError: if it is not called.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> first_inputs(net, net[1], torch.zeros(3, 2, 2))[0][0].shape
        torch.Size([3, 4])
    """
    heard: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    listener = Listener(part, before=lambda args, kwargs, _: heard.append((args, kwargs)))
    try:
        call(model, batch)
    finally:
        listener.remove()
    if not heard:
        raise ValueError(
            f"{type(part).__name__} was not called for the first batch; for another layout of batches give call=, e.g. "
            "call=lambda model, batch: model(batch['image'])."
        )
    return heard[0]


def first_batches(batches: Iterable[Any], limit: int | None, who: str) -> Iterator[Any]:
    """At most ``limit`` batches, at least one.

    Args:
        batches: data, e.g. a DataLoader.
        limit: how many at most; None for all.
        who: name of the caller, for the message.

    Yields:
        the batches.

    Raises:
        ValueError: if the limit is below 1 or there is no batch.

    Example:
        >>> list(first_batches(range(9), 2, "calibrate"))
        [0, 1]
    """
    check_batches(batches, who)
    if limit is not None:
        check_integer(f"{who}: limit", limit, 100, least=1)
    empty = True
    for batch in islice(batches, limit):
        empty = False
        yield batch
    if empty:
        raise ValueError(f"{who} got no batch: the data loader is empty. Give at least one.")


def check_batches(batches: Any, who: str) -> None:
    """Refuse what is one batch, or none.

    Raises:
        TypeError: naming what came.

    Example:
        >>> check_batches(torch.zeros(8, 4), "calibrate()")
        Traceback (most recent call last):
        ...
        TypeError: calibrate(): batches is a Tensor; give several, such as a DataLoader, or a list of one: [x].
    """
    if isinstance(batches, (Tensor, Mapping, str, bytes, nn.Module)) or not isinstance(batches, Iterable):
        raise TypeError(
            f"{who}: batches is a {type(batches).__name__}; give several, such as a DataLoader, or a list of one: [x]."
        )


def reusable(batches: Iterable[Any], limit: int | None) -> Iterable[Any]:
    """The batches themselves if they can be gone through again, as a data loader can; else the first ones, kept.

    Example:
        >>> kept = reusable(iter(range(9)), 2)
        >>> list(kept), list(kept)
        ([0, 1], [0, 1])
    """
    check_batches(batches, "batches")
    return list(islice(batches, limit)) if iter(batches) is batches else batches

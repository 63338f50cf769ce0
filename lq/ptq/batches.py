"""What a model is called with when all that is known are the batches of a data loader."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice, takewhile
from typing import Any

import torch
from torch import Tensor, nn

from lq.checks import check_integer
from lq.conversion.graph import first_call_of
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
        batch: of a data loader; see :func:`call_of_batch`.

    Returns:
        what the model returns.

    Raises:
        ValueError: as :func:`call_of_batch`, or if the model does not take a mapping.

    Example:
        >>> run_batch(nn.Flatten(), (torch.zeros(2, 3, 3), torch.tensor([0, 1]))).shape
        torch.Size([2, 9])
    """
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    device = next((parameter.device for parameter in parameters), torch.device("cpu"))
    call: Inputs = on_device(call_of_batch(model, batch), device)
    try:
        return run_any_batch(model, call, fixed_batch(model) if isinstance(model, nn.Module) else None)
    except (TypeError, AttributeError) as error:
        if not (call[0] and isinstance(call[0][0], Mapping)):
            raise
        raise ValueError(
            f"{type(model).__name__} takes neither the batch, {describe(batch)}, nor its entries as keywords: {error}. "
            "Give call=, e.g. call=lambda model, batch: model(batch['image'])."
        ) from error


def call_of_batch(model: Callable[..., Any], batch: Any) -> Inputs:
    """The inputs of one call that a batch of a data loader holds: all but the labels.

    Args:
        model: that is called: a module, prepared or not, or another callable.
        batch: the input itself; a tuple or list, whose first elements are positional inputs; or a mapping, whose
            entries are keyword inputs, all but those named as labels are. Of a tuple, a prepared module takes as many
            elements as it got inputs when it was planned, another one as many as it cannot do without.

    Returns:
        positional and keyword arguments.

    Raises:
        ValueError: if the batch has another layout, its inputs hold no tensor, or ``forward`` does not take them.

    Example:
        >>> images, labels = torch.zeros(2, 3, 3), torch.tensor([0, 1])
        >>> args, kwargs = call_of_batch(nn.Flatten(), (images, labels))
        >>> len(args)
        1
        >>> args, kwargs = call_of_batch(nn.Bilinear(3, 3, 4), (images, images, labels))
        >>> len(args)
        2
    """
    parameters = _parameters(model)
    several = isinstance(batch, (tuple, list))
    first = batch[0] if several and batch else batch
    call: Inputs = (_leading(batch, model, parameters) if several else (batch,)), {}
    inputs: Any = call
    if isinstance(first, Mapping):
        inputs = _without_labels(first, parameters)
        call = ((), inputs) if _takes(parameters, inputs) else call
    if not tensors_of(inputs):
        raise ValueError(
            f"the batch, {describe(batch)}, has no tensor to call the model with. Known are a tensor, (inputs, ...) "
            "and a mapping of keywords; for another layout give call=, e.g. "
            "call=lambda model, batch: model(batch['image'])."
        )
    return call


def _parameters(model: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(model.forward if isinstance(model, nn.Module) else model).parameters
    except ValueError:  # some built-in functions have none
        return {}


def _without_labels(batch: Mapping[Any, Any], parameters: Mapping[str, inspect.Parameter]) -> dict[Any, Any]:
    needed = {name for name, parameter in parameters.items() if parameter.default is parameter.empty}
    return {key: value for key, value in batch.items() if key not in LABEL_KEYS or key in needed}


def _takes(parameters: Mapping[str, inspect.Parameter], keywords: Mapping[Any, Any]) -> bool:
    try:
        inspect.Signature(list(parameters.values())).bind(**keywords)
    except TypeError:
        return False
    return True


def _leading(
    batch: Sequence[Any], model: Callable[..., Any], parameters: Mapping[str, inspect.Parameter]
) -> tuple[Any, ...]:
    """The first elements of a batch, or all of it as one input, where that is what the model takes."""
    call = first_call_of(model) if isinstance(model, nn.Module) else None
    if call is None:
        return tuple(batch[: max(1, _number_needed(parameters))])
    args, kwargs = call
    if args and isinstance(args[0], (tuple, list)) and not (batch and isinstance(batch[0], (tuple, list))):
        return (batch,)
    by_keyword = list(takewhile(lambda name: name in kwargs, list(parameters)[len(args) :]))
    return tuple(batch[: max(1, len(args) + len(by_keyword))])


def _number_needed(parameters: Mapping[str, inspect.Parameter]) -> int:
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty for p in parameters.values())


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

"""Elements at places that are given by integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lq.export.formats.litert.call import OperatorCall, UnsupportedError, array
from lq.export.formats.litert.tensors import FixedBatchError, Value


def embedding(call: OperatorCall) -> Value:
    """Rows of a table.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(torch.nn.Embedding(9, 4), ids=torch.tensor([[0, 8]])))
        layer: float32 [1, 2, 4] = GATHER(layer/constant: float32 [9, 4], ids)
    """
    table, indices = call.taken(call["weight"]), _places(call, call["indices"])
    return call.write_in("GATHER", [table.tensor, indices.tensor], tuple(range(len(call.shape))), "GatherOptions")


def gather(call: OperatorCall) -> Value:
    """Elements of the last dimension at places that are computed, and differ from row to row.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> ids = torch.tensor([[0, 4, 4], [1, 2, 3]])
        >>> print(listing_of(lambda x, ids: x.gather(1, ids), x=torch.zeros(2, 5), ids=ids))
        gather: float32 [2, 3] = GATHER(x, ids, axis=1, batchDims=1)
    """
    x, places = call.net.plain(call.taken(call["self"])), _places(call, call["index"])
    shape, last = call.net.shape(x), len(call.shape) - 1
    if call["dim"] % (last + 1) != last:
        raise UnsupportedError(f"LiteRT has no operator for {call.name}, whose places are not in the last dimension")
    if shape[:-1] != call.shape[:-1]:
        raise UnsupportedError(f"LiteRT has no operator for {call.name}, which leaves rows of its input out")
    source = call.net.of(x)
    target = call.net.new(call.name, call.shape, source.grid, source.dtype)
    call.net.file.operator("GATHER", [x.tensor, places.tensor], [target], "GatherOptions", axis=last, batchDims=last)
    return Value(target, tuple(range(last + 1)))


def _places(call: OperatorCall, given: Any) -> Value:
    """Computed integers, which may be floats here."""
    places = call.net.plain(call.taken(given))
    return call.net.cast(places, "int32") if call.net.of(places).dtype == "float32" else places


def index(call: OperatorCall) -> Value:
    """Elements at constant places: of one dimension, or of the first ones together.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(lambda x: x[:, [0, -1]], x=torch.zeros(2, 5)))
        index: float32 [2, 2] = GATHER(x, [0, 4], axis=1)
    """
    known = {dimension: given for dimension, given in enumerate(call["indices"]) if given is not None}
    if not all(isinstance(given, Tensor) and given.dtype != torch.bool for given in known.values()):
        raise UnsupportedError(f"LiteRT has no operator for {call.name}, whose places are computed")
    if len(known) > 1 and list(known) != list(range(len(known))):
        raise UnsupportedError(f"LiteRT has no operator for {call.name}, whose places are not in the first dimensions")
    shape = call.net.shape(call["self"])
    if any(shape[dimension].changes for dimension in known):
        raise FixedBatchError(f"{call.name} takes a part of the batch")
    places = {dimension: given % shape[dimension].length for dimension, given in known.items()}
    return _along(call, *next(iter(places.items()))) if len(places) == 1 else _together(call, list(places.values()))


def _along(call: OperatorCall, dimension: int, places: Tensor) -> Value:
    x = call.net.settled(call["self"]) if places.dim() == 1 else call.net.plain(call["self"])
    order = x.order if places.dim() == 1 else tuple(range(len(call.shape)))
    return _gathered(call, "GATHER", x, places, order, "GatherOptions", axis=x.order.index(dimension))


def _together(call: OperatorCall, places: Sequence[Tensor]) -> Value:
    common = torch.broadcast_shapes(*(place.shape for place in places))  # type: ignore[no-untyped-call]
    joined = torch.stack([place.expand(common) for place in places], -1)
    x, order = call.net.plain(call["self"]), tuple(range(len(call.shape)))
    return _gathered(call, "GATHER_ND", x, joined, order, "GatherNdOptions")


def _gathered(
    call: OperatorCall, kind: str, x: Value, places: Tensor, order: tuple[int, ...], options: str, **settings: int
) -> Value:
    source = call.net.of(x)
    target = call.net.new(call.name, [call.shape[dimension] for dimension in order], source.grid, source.dtype)
    inputs = [x.tensor, call.net.constant(array(places.int()), f"{call.name}/places")]
    call.net.file.operator(kind, inputs, [target], options, **settings)
    return Value(target, order)

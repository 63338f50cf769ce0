"""What a checkpoint has to have in common with the model that loads it."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lq.fields import Field, parse_json

_EXTRA = "the text of names and flags of a prepared model"
_VERSIONS = "_metadata"  # where PyTorch keeps them; a copy of the entries alone would be one of the oldest version


def versions_of(state: Mapping[str, Any]) -> Any:
    """What a state dict knows of the versions of the modules that it is from; ``None`` if nothing.

    Example:
        >>> from torch import nn
        >>> versions_of(nn.Sequential(nn.BatchNorm1d(2)).state_dict())["0"]
        {'version': 2}
    """
    return getattr(state, _VERSIONS, None)


def part_of_state(state: Mapping[str, Any], part: str = "") -> OrderedDict[str, Any]:
    """A copy of a state dict, or of what of it belongs to a submodule, with the versions of the modules.

    Args:
        state: from ``state_dict()``.
        part: dotted name of the submodule; "" is all.

    Example:
        >>> from torch import nn
        >>> found = part_of_state(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).state_dict(), "1")
        >>> list(found), dict(versions_of(found))
        (['weight', 'bias'], {'': {'version': 1}})
    """
    prefix = f"{part}." if part else ""
    found = OrderedDict((key[len(prefix) :], value) for key, value in state.items() if key.startswith(prefix))
    versions = versions_of(state)
    if versions is not None:
        mine = {key[len(prefix) :]: version for key, version in versions.items() if f"{key}.".startswith(prefix)}
        setattr(found, _VERSIONS, OrderedDict(mine))
    return found


def as_bytes(names: Iterable[str], flags: Mapping[str, bool]) -> Tensor:
    """Names and flags of a prepared model as a tensor: the bytes of JSON, in a number that follows from the names.

    Whatever goes through the entries of a state dict, such as the averages of timm and of YOLO, or safetensors, takes
    them all for tensors, and those of two copies of a model for tensors of one shape.

    Example:
        >>> as_bytes(["fq_0"], {"observer": True}).shape, as_bytes(["fq_0"], {"observer": False}).shape
        (torch.Size([34]), torch.Size([34]))
    """
    text = json.dumps({"names": list(names), **{name: int(flag) for name, flag in flags.items()}})
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def from_bytes(extra: Any) -> Any:
    """What :func:`as_bytes` was given; what checkpoints of earlier versions have in its place comes back as it is.

    Raises:
        ValueError: if it is a tensor of anything else.

    Example:
        >>> from_bytes(as_bytes(["fq_0"], {"observer": True}))
        {'names': ['fq_0'], 'observer': True}
    """
    if not isinstance(extra, Tensor):
        return extra
    try:
        text = bytes(extra.tolist())
    except (TypeError, ValueError) as error:
        kind = f"a {extra.dtype} of shape {list(extra.shape)}"
        raise ValueError(f"Names and flags of a prepared model are bytes of JSON, and not {kind}.") from error
    entries = Field(parse_json(text, _EXTRA), _EXTRA).mapping()
    return {name: bool(value) if value in (0, 1) else value for name, value in entries.items()}


def require_same_slots(theirs: list[str], ours: list[str]) -> None:
    """Refuse a checkpoint that was prepared with another plan.

    Args:
        theirs: names of the checkpoint's fake quantizers.
        ours: names of the model's.

    Raises:
        ValueError: if they differ.

    Example:
        >>> require_same_slots(["fq_a", "fq_b"], ["fq_a"])
        Traceback (most recent call last):
        ...
        ValueError: The checkpoint was prepared with another plan: it has the fake quantizers ['fq_b'], which ...
    """
    if theirs == ours:
        return
    missing, extra = _difference(ours, theirs), _difference(theirs, ours)
    lacks = [f"it lacks the fake quantizers {missing}"] if missing else []
    has = [f"it has the fake quantizers {extra}, which this model lacks"] if extra else []
    if lacks or has:
        what = ", and ".join(lacks + has)
    else:
        a, b = next(pair for pair in zip(theirs, ours, strict=True) if pair[0] != pair[1])
        what = f"its fake quantizers run in another order, {a!r} where this model has {b!r}"
    raise ValueError(
        f"The checkpoint was prepared with another plan: {what}. "
        "Nothing was loaded; use the target, qconfig and architecture of that run."
    )


def _difference(a: Iterable[str], b: Iterable[str]) -> list[str]:
    other = set(b)
    found = [name for name in a if name not in other]
    return found[:5] + (["..."] if len(found) > 5 else [])

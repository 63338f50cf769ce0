"""What to compare in the output of a model, and where a batch keeps its labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lq.tracing.structure import tensors_of

LABEL_KEYS = ("labels", "label", "targets", "target", "y")


def main_tensor(output: Any) -> Tensor:
    """The tensor of an output that is compared: its first floating one with at least two dimensions.

    Args:
        output: a tensor, or tensors in dicts, tuples, lists and dataclasses of any depth (searched in their order).

    Returns:
        That tensor; the first floating one of any shape if none has two dimensions.

    Raises:
        ValueError: if the output holds no floating tensor.

    Example:
        >>> import torch
        >>> main_tensor({"loss": torch.tensor(0.1), "logits": torch.zeros(2, 10)}).shape
        torch.Size([2, 10])
    """
    return main_first(output)[0]


def main_first(output: Any) -> list[Tensor]:
    """All floating tensors of an output, the one that :func:`main_tensor` gives first.

    Raises:
        ValueError: if there is none.

    Example:
        >>> import torch
        >>> [tuple(t.shape) for t in main_first({"loss": torch.tensor(0.1), "logits": torch.zeros(2, 10)})]
        [(2, 10), ()]
    """
    floating = floating_tensors(output)
    if not floating:
        raise ValueError(
            f"the output, {describe(output)}, holds no floating tensor to compare; "
            "the target must return scores, e.g. logits of shape (N, C)."
        )
    main = next((i for i, tensor in enumerate(floating) if tensor.ndim >= 2), 0)
    return [floating.pop(main), *floating]


def floating_tensors(output: Any) -> list[Tensor]:
    """The floating tensors of an output, in order; complex ones as their real and imaginary parts, of shape (..., 2).

    Example:
        >>> import torch
        >>> [tuple(t.shape) for t in floating_tensors((torch.zeros(2), {"count": torch.tensor(3), "x": torch.ones(1)}))]
        [(2,), (1,)]
    """
    tensors = [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in tensors_of(output)]
    return [tensor for tensor in tensors if tensor.is_floating_point()]


def plain_targets_of(batch: Any) -> Any:
    """The labels of a batch that holds inputs and labels and nothing else; ``None`` for others, to guess at nothing.

    Example:
        >>> plain_targets_of(("images", "digits")), plain_targets_of(("images", "digits", "indices"))
        ('digits', None)
    """
    if isinstance(batch, Mapping):
        return next((batch[key] for key in LABEL_KEYS if key in batch), None)
    return batch[1] if isinstance(batch, (tuple, list)) and len(batch) == 2 else None


def targets_of(batch: Any) -> Any:
    """The labels of a batch in one of the usual layouts.

    Args:
        batch: a tuple or list whose last element is the labels, e.g. ``(x, y)``, or a mapping with a key
            ``"labels"``, ``"label"``, ``"targets"``, ``"target"`` or ``"y"``.

    Returns:
        The labels, untouched.

    Raises:
        ValueError: if the batch has another layout.

    Example:
        >>> targets_of(("images", "masks", "digits"))
        'digits'
        >>> targets_of({"input_ids": [[1, 2]], "labels": [0]})
        [0]
    """
    if isinstance(batch, Mapping):
        for key in LABEL_KEYS:
            if key in batch:
                return batch[key]
    elif isinstance(batch, (tuple, list)) and len(batch) >= 2:
        return batch[-1]
    raise ValueError(
        f"no labels found in the batch, {describe(batch)}. Known are (inputs, ..., labels) and a dict "
        f"with one of the keys {', '.join(LABEL_KEYS)}; for another one give target_fn, "
        "e.g. target_fn=lambda batch: batch['classes']."
    )


def describe(value: Any) -> str:
    """A structure in a few words for an error message, with the shapes of its tensors.

    Example:
        >>> import torch
        >>> describe({"logits": torch.zeros(2, 10), "n": 3})
        "dict {'logits': Tensor float32 (2, 10), 'n': int}"
    """
    kind = type(value).__name__
    if isinstance(value, Tensor):
        return f"{kind} {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key!r}: {describe(item)}" for key, item in value.items())
        return f"{kind} {{{inner}}}"
    if isinstance(value, (tuple, list)):
        shown = [describe(item) for item in value[:4]] + ["..."] * (len(value) > 4)
        return f"{kind} of {len(value)} ({', '.join(shown)})"
    return kind

"""Which tensors of a recorded call may lie in the same memory."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from lq.tracing.ops import SEEN

# Operations whose result may lie in the memory of their first input.
_VIEWS = frozenset(
    {
        "view", "reshape", "flatten", "permute", "transpose", "squeeze", "unsqueeze", "getitem", "chunk", "split",
        "unbind", "narrow", "select", "expand", "unflatten", "T", "mT", "detach", "contiguous", "swapaxes", "movedim",
        "dropout", "to", "float", "quant_stub", "dequant_stub",
    }
)  # fmt: skip
# Those that hand their input back where there is nothing to do.
_KEEPING = frozenset(
    {
        "to", "type", "float", "half", "bfloat16", "double", "contiguous", "type_as", "detach", "cpu", "cuda", "expand",
        "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "squeeze", "view",
        "reshape", "flatten", "requires_grad", "clone", "resolve_conj", "resolve_neg",
    }
)  # fmt: skip


def may_give_its_input(name: str, args: Any, kwargs: Any) -> bool:
    """Whether an operation whose result is its input itself has done nothing: the tensor was contiguous already, say.

    Example:
        >>> may_give_its_input("contiguous", (), {}), may_give_its_input("relu", (), {"inplace": True})
        (True, False)
        >>> may_give_its_input("dropout", (), {"inplace": True})
        False
    """
    drops_in_place = "dropout" in name and bool(args[3] if len(args) > 3 else kwargs.get("inplace", False))
    return name in _KEEPING and not drops_in_place


def views_of(node: fx.Node) -> list[fx.Node]:
    """The nodes whose memory a view may have in common."""
    found, waiting = [], [node]
    while waiting:
        current = waiting.pop()
        if _is_view(current) and current.args and isinstance(current.args[0], fx.Node):
            found.append(current.args[0])
            waiting.append(current.args[0])
    return found


def is_returned(node: fx.Node) -> bool:
    """Whether a recorded call returns a value, or a view of it, so that others may write into its memory.

    Example:
        >>> graph = fx.symbolic_trace(lambda x: (x * 2)[0]).graph
        >>> [is_returned(node) for node in graph.nodes]
        [False, True, True, False]
    """
    readers = [user for user in node.users if user.op == "output" or (_is_view(user) and user.args[:1] == (node,))]
    return any(user.op == "output" or is_returned(user) for user in readers)


def _is_view(node: fx.Node) -> bool:
    seen = node.meta.get(SEEN)
    return (seen is not None and seen.operation in _VIEWS) or node.target is operator.getitem

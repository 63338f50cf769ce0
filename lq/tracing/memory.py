"""Which tensors of a recorded call may lie in the same memory."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from lq.tracing.layer_calls import INPUT, argument
from lq.tracing.ops import SEEN

SHARED = "lq_shared"  # of a recorded call: whether its result lay in the memory of its first input
# Operations whose result may lie there, if it did in the recorded call or not.
_VIEWS = frozenset(
    {
        "view", "reshape", "flatten", "permute", "transpose", "squeeze", "unsqueeze", "getitem", "chunk", "split",
        "unbind", "narrow", "select", "expand", "unflatten", "T", "mT", "detach", "contiguous", "swapaxes", "movedim",
        "dropout", "to", "float", "quant_stub", "dequant_stub", "ravel", "reshape_as", "type_as",
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
    """The nodes whose memory a view may have in common.

    Example:
        >>> graph = fx.symbolic_trace(lambda x: (x * 2)[0][1]).graph
        >>> views_of(list(graph.nodes)[3])
        [getitem, mul]
    """
    found, waiting = [], [node]
    while waiting:
        current = waiting.pop()
        source = argument(INPUT, current.args, current.kwargs)
        if _is_view(current) and isinstance(source, fx.Node):
            found.append(source)
            waiting.append(source)
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
    listed = seen is not None and seen.operation in _VIEWS
    return listed or node.meta.get(SHARED, False) or node.target is operator.getitem

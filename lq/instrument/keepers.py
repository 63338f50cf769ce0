"""Whose hooks may keep a value on its way from the call that makes it to the one that reads it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx, nn

from lq.compat.torch_private import GLOBAL_FORWARD_HOOKS, GLOBAL_PRE_HOOKS, is_watched_in_backward
from lq.tracing.layers import seen_of


def left_and_entered(made: fx.Node, read: fx.Node) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The modules that a value leaves as an output, and that it enters as an input, on its way.

    Args:
        made: the recorded call that makes it.
        read: the one that reads it.

    Returns:
        dotted names of both.

    Example:
        >>> from lq.tracing.ops import SEEN
        >>> from lq.tracing.recording import Seen
        >>> made, read = fx.symbolic_trace(lambda x: x.exp().relu()).graph.find_nodes(op="call_method")
        >>> made.meta[SEEN], read.meta[SEEN] = Seen("exp", ("", "block", "block.exp")), Seen("relu", ("", "act"))
        >>> left_and_entered(made, read)
        (('block', 'block.exp'), ('act',))
    """
    left, entered = seen_of(made).stack, seen_of(read).stack
    return tuple(path for path in left if path not in entered), tuple(path for path in entered if path not in left)


def is_heard(left: Iterable[nn.Module], entered: Iterable[nn.Module]) -> bool:
    """Whether a hook of the user's may have kept a value.

    Args:
        left: the modules whose output it was.
        entered: those whose input it is.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> handle = layer.register_forward_pre_hook(print)
        >>> is_heard([layer], []), is_heard([], [layer])
        (False, True)
    """
    if GLOBAL_FORWARD_HOOKS or GLOBAL_PRE_HOOKS:
        return True
    of_inputs = any(module._forward_pre_hooks or module._forward_hooks for module in entered)
    if of_inputs or any(module._forward_hooks for module in left):
        return True
    return any(map(is_watched_in_backward, (*left, *entered)))  # its view must not be written into

"""What tracing refuses."""

from __future__ import annotations

from torch import fx


class UntraceableError(ValueError):
    """The module cannot be turned into a graph; the message names the line and the remedy.

    Args:
        reason: what has no graph, and where that is.
        remedy: what to write instead.
        path: dotted name of the submodule at fault inside the traced module; "" is that itself.

    Example:
        >>> error = UntraceableError("Net: net.py:7, in forward: `if x.sum() > 0:`", "Move that branch.", "head")
        >>> error.path, str(error)
        ('head', 'Net: net.py:7, in forward: `if x.sum() > 0:`. Move that branch.')
    """

    def __init__(self, reason: str, remedy: str = "", path: str = "") -> None:
        super().__init__(f"{reason}. {remedy}" if remedy else reason)
        self.reason, self.remedy, self.path = reason, remedy, path


def owner_of(node: fx.Node) -> str:
    """Dotted name of the submodule whose ``forward`` made this node; "" is the traced module itself."""
    stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    if node.op == "call_module" and stack:  # a leaf is the last entry of its own stack
        stack.pop()
    return stack[-1] if stack else ""

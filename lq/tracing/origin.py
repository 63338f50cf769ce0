"""Which line of the user's code the calls of a captured graph come from."""

from __future__ import annotations

from torch import fx

from lq.tracing.no_graph import line_in_text

_KEY = "lq_origin"  # in the ``meta`` of a node


def note_origin(new: fx.Node, old: fx.Node) -> None:
    """Note for a node of a captured graph which operation of ``torch.export`` it stands for, and the line of that.

    Example:
        >>> import torch
        >>> class Net(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x.relu()
        >>> program, graph = torch.export.export(Net(), (torch.ones(1),), strict=False), fx.symbolic_trace(Net())
        >>> for new, old in zip(graph.graph.nodes, program.graph.nodes):
        ...     note_origin(new, old)
        >>> line_of_call(graph, "relu")
        '...:3, in forward: `return x.relu()`'
    """
    new.meta[_KEY] = operation_of(old), line_in_text(old.meta.get("stack_trace") or "")


def operation_of(node: fx.Node) -> str:
    """The name of an ATen operation, whatever its overload; that of other functions as it is.

    Example:
        >>> import torch
        >>> graph = fx.Graph()
        >>> operation_of(graph.call_function(torch.ops.aten.add.Tensor, (1, 2)))
        'add'
    """
    return str(getattr(node.target, "_opname", node.target))


def line_of_call(graph: fx.GraphModule, operation: str, number: int | None = 0) -> str:
    """The line that makes a call, "file:line, in function: `code`"; "" if it is not known.

    Args:
        graph: as it was captured.
        operation: of :func:`operation_of`.
        number: of the call among those of this operation; ``None`` if all come from one line, or it is not known.

    Example:
        >>> import torch
        >>> line_of_call(fx.symbolic_trace(torch.nn.ReLU()), "relu")
        ''
    """
    origins = (node.meta.get(_KEY, ("", "")) for node in graph.graph.nodes)
    lines = [line for name, line in origins if name == operation]
    if number is None:
        return lines[0] if len(set(lines)) == 1 else ""
    return lines[number] if number < len(lines) else ""

"""Names of calls that people recognise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import fx, nn

from lq.core.own_class import own_class
from lq.tracing.recording import Seen

Calls = Sequence[tuple[Seen, fx.Node | None]]


def labels_of(calls: Calls, modules: Mapping[str, nn.Module]) -> dict[fx.Node, str]:
    """A name for each call: the module that makes it, or the operation in there.

    Args:
        calls: in the order in which they were made.
        modules: of the model, by their dotted names.

    Example:
        >>> net = nn.Sequential(nn.ReLU())
        >>> node = fx.symbolic_trace(net).graph.find_nodes(op="call_module", target="0")[0]
        >>> labels_of([(Seen("relu", ("", "0")), node), (Seen("add", ("",)), None)], dict(net.named_modules()))
        {_0: '0'}
    """
    counts: Counter[tuple[str, str]] = Counter()
    found = {}
    for seen, node in calls:
        path = seen.stack[-1]
        is_leaf = path and is_of_torch(modules[path]) and not any(True for _ in modules[path].children())
        name = path if is_leaf else f"{path}.{seen.operation}".lstrip(".")
        nth = counts[path, seen.operation]
        counts[path, seen.operation] += 1
        if node is not None:
            found[node] = name if nth == 0 else f"{name}_{nth}"
    return found


def is_of_torch(module: nn.Module) -> bool:
    """Whether the class of a module is one of PyTorch's."""
    return own_class(module).__module__.startswith(("torch.nn.", "torch.ao."))

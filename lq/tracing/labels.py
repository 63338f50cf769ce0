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
        name = path if path and is_leaf(modules[path]) else f"{path}.{seen.operation}".lstrip(".")
        nth = counts[path, seen.operation]
        counts[path, seen.operation] += 1
        if node is not None:
            found[node] = name if nth == 0 else f"{name}_{nth}"
    return found


def is_leaf(module: nn.Module) -> bool:
    """Whether the name of a module says what it computes: one of PyTorch's that holds no other and makes no steps.

    Example:
        >>> is_leaf(nn.ReLU()), is_leaf(nn.LSTM(2, 2)), is_leaf(nn.Sequential(nn.ReLU()))
        (True, False, False)
    """
    is_recurrent = isinstance(module, (nn.RNNBase, nn.RNNCellBase))
    return is_of_torch(module) and not is_recurrent and not any(True for _ in module.children())


def is_of_torch(module: nn.Module) -> bool:
    """Whether the class of a module is one of PyTorch's.

    Example:
        >>> class Own(nn.ReLU): ...
        >>> is_of_torch(nn.ReLU()), is_of_torch(Own())
        (True, False)
    """
    return own_class(module).__module__.startswith(("torch.nn.", "torch.ao."))

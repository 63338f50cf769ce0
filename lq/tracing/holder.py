"""What a captured graph holds: tensors and layers under their names in the model, shared with it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from lq.compat.torch_private import BatchNorm
from lq.core.layer import QATLayer
from lq.tracing.names import free_name

# Names that a model may use, but that mean something else to its graph: "code", "graph", "meta".
_OF_A_GRAPH = frozenset(dir(fx.GraphModule({}, fx.Graph())))


class Holder:
    """The root of a captured graph.

    Args:
        target: the model.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 2))
        >>> holder = Holder(net)
        >>> holder.tensor("0.weight", net[0].weight)
        '0.weight'
        >>> holder.root.get_parameter("0.weight") is net[0].weight
        True
    """

    def __init__(self, target: nn.Module) -> None:
        self.target, self.root = target, nn.Module()
        self._modules = dict(target.named_modules(remove_duplicate=False))

    def is_leaf(self, path: str) -> bool:
        """Whether the module of the model under this path has no modules inside."""
        module = self._modules.get(path)
        return module is not None and next(module.children(), None) is None

    def tensor(self, name: str, tensor: Tensor) -> str:
        """Where the root has a tensor, which it takes if it is new."""

        def is_it(value: object) -> bool:
            return value is tensor

        def put(owner: nn.Module, last: str) -> None:
            if isinstance(tensor, nn.Parameter):
                owner.register_parameter(last, tensor)
            else:
                owner.register_buffer(last, tensor, persistent=False)

        return self._place(name, is_it, put)

    def layer(self, name: str, layer: QATLayer) -> str:
        """Where the root has a layer that computes the same, or now this one."""

        def is_it(value: object) -> bool:
            return isinstance(value, QATLayer) and _equal(value, layer)

        return self._place(name, is_it, lambda owner, last: owner.add_module(last, layer))

    def norm(self, name: str, norm: BatchNorm) -> str:
        """Where the root has a BatchNorm of the same tensors, or now this one."""

        def is_it(value: object) -> bool:
            return isinstance(value, BatchNorm) and value.running_mean is norm.running_mean and _equal(value, norm)

        return self._place(name, is_it, lambda owner, last: owner.add_module(last, norm))

    def _place(self, name: str, is_it: Callable[[object], bool], put: Callable[[nn.Module, str], None]) -> str:
        """The name under which something is, or is put now: ``name``, or one like it if another thing has that."""
        first, *others = name.split(".")
        *holders, wanted = [f"{first}_" if first in _OF_A_GRAPH else first, *others]
        owner = self.root
        path: list[str] = []
        for part in holders:
            child = getattr(owner, part, None)
            if child is None:
                child = nn.Module()
                owner.add_module(part, child)
            if not isinstance(child, nn.Module):
                owner, path, wanted = self.root, [], name.replace(".", "_")
                break
            owner = child
            path.append(part)
        last = free_name(wanted, lambda name: hasattr(owner, name) and not is_it(getattr(owner, name)))
        if not hasattr(owner, last):
            put(owner, last)
        return ".".join([*path, last])


def _equal(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules of one class have the same tensors and hyperparameters."""
    if type(one) is not type(other):
        return False
    plain = {key: value for key, value in one.__dict__.items() if isinstance(value, (bool, int, float, str, tuple))}
    return all(_same(one._parameters[key], other._parameters[key]) for key in one._parameters) and all(
        getattr(other, key, None) == value for key, value in plain.items()
    )


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is b or a is None or b is None:
        return a is b
    return a.shape == b.shape and torch.equal(a, b)

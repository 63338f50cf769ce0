"""The calls of a module read off its code, where there are no inputs to call it with."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from lq.compat.torch_private import BatchNorm, InstanceNorm
from lq.core.kept import as_it_was
from lq.tracing.arguments import give_input_by_position
from lq.tracing.functions import is_frozen_batch_norm, operation
from lq.tracing.labels import Calls
from lq.tracing.ops import CALLED, SAME_GRID, SEEN
from lq.tracing.recording import CLOSED, KEPT, Seen, users_line
from lq.tracing.stubs import functional_that_calls, mark_functional, stub_function

_SEVERAL = frozenset({"chunk", "split", "unbind", "tensor_split", "lstm", "gru", "rnn_tanh", "rnn_relu"})
_CLOSED = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, InstanceNorm, torch.jit.ScriptModule)


class NotPlainError(Exception):
    """What a module does with its tensors cannot be read from its code with certainty.

    Example:
        >>> class Net(nn.Module):
        ...     def forward(self, x):
        ...         return x if x.sum() > 0 else -x
        >>> read_calls(Net())
        Traceback (most recent call last):
        lq.tracing.symbolic.NotPlainError: symbolically traced variables cannot be used as inputs to control flow
    """


class _Proxy(fx.Proxy):
    """Knows ``x += y`` from ``x = x + y``, which other proxies take for one."""

    def __iadd__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __imul__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __isub__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __itruediv__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class _Reader(fx.Tracer):
    """Follows every call down to functions of torch."""

    proxy_buffer_attributes = True

    def __init__(self, root: nn.Module, stubs: bool) -> None:
        super().__init__()
        self.stubs = stubs
        self.outside = users_line()[0]  # what has called us, and is no code of the module
        self.tensors = {**dict(root.named_parameters()), **dict(root.named_buffers())}
        self.calls: list[tuple[Seen, fx.Node | None]] = []

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _CLOSED) or is_frozen_batch_norm(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self.is_leaf_module(m, ""):
            self.calls.append((Seen(CLOSED, (*self._stack(), self.path_of_module(m))), None))
        if self.stubs:
            owner = functional_that_calls(self.root, self.path_of_module(m))
            if owner is not None:
                mark_functional(args[0].node, owner)
            if stub_function(m) is not None:
                forward = partial(self._stub, stub_function(m))
        if isinstance(m, BatchNorm) and type(m).forward in (BatchNorm.forward, nn.SyncBatchNorm.forward):
            forward = partial(_batch_norm, m)  # without its look at the number of dimensions, which nobody knows
        return super().call_module(m, forward, args, kwargs)

    def _stub(self, function: Any, x: Any) -> Any:
        return self.create_proxy("call_function", function, (x,), {})

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Leave parameters at their defaults."""
        fn, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        parameters = list(inspect.signature(inspect.unwrap(root_fn)).parameters.values())
        if len(parameters) != len(args):  # *args or **kwargs: no defaults to keep
            return fn, args
        both = zip(parameters, args, strict=True)
        return fn, [arg if p.default is inspect.Parameter.empty else p.default for p, arg in both]

    def _stack(self) -> tuple[str, ...]:
        return ("", *(path for path, _ in self.module_stack.values() if path))

    def create_node(
        self, kind: str, target: Any, args: Any, kwargs: Any, name: Any = None, type_expr: Any = None
    ) -> Any:
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        if kind == "get_attr":
            node.meta["constant"] = True
            found = self.tensors.get(str(target))  # not getattr, which the tracer would trace
            if found is not None:
                node.meta["shape"], node.meta["dtype"] = tuple(found.shape), found.dtype
        elif kind in ("call_function", "call_method"):
            self._note(node)
        return node

    def _note(self, node: fx.Node) -> None:
        if node.target is getattr and node.args[1] in ("T", "mT"):
            node.meta["constant"] = all(n.meta.get("constant") for n in node.all_input_nodes)
        if node.target in (operator.getitem, getattr) or getattr(node.target, "__module__", "") == "builtins":
            return
        name = operation(_Method(node.target)) if isinstance(node.target, str) else operation(node.target)
        sources = node.all_input_nodes
        node.meta["constant"] = bool(sources) and all(n.meta.get("constant") for n in sources)
        if name in ("matmul", "mm") and any(n.meta.get("constant") for n in sources):
            raise NotPlainError(f"whether {node.name} is a layer depends on the shape of its weight")
        line = users_line()[0]
        seen = Seen(name, self._stack(), "" if line == self.outside else line)
        node.meta[SEEN], node.meta[CALLED] = seen, (node.args, node.kwargs)
        if name not in _SEVERAL:
            node.meta.setdefault("shape", None)
        self.calls.append((node.meta[SEEN], node))
        # ``x += y`` and ``x = x + y`` are one thing to a proxy: it may be that x is overwritten.
        if sources and (_works_in_place(node) or node.target in (operator.add, operator.mul)):
            sources[0].meta.setdefault("writers", []).append(node)


def _batch_norm(norm: Any, x: Any) -> Any:
    statistics = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    return F.batch_norm(x, *statistics, False, norm.momentum, norm.eps)


def _inplace_argument(node: fx.Node) -> bool:
    """Whether a function is called with ``inplace=True``."""
    try:
        parameters = list(inspect.signature(node.target).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # built-in functions have no signature, and no such argument
        return False
    if "inplace" not in parameters:
        return False
    index = parameters.index("inplace")
    return (node.args[index] if len(node.args) > index else node.kwargs.get("inplace", False)) is True


class _Method:
    def __init__(self, name: str) -> None:
        self.__name__ = name


def _works_in_place(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else str(getattr(node.target, "__name__", ""))
    inplace = (node.op == "call_function" and _inplace_argument(node)) or name in (
        "iadd",
        "imul",
        "isub",
        "itruediv",
    )
    return inplace or (name.endswith("_") and not name.startswith("_"))


def read_calls(root: nn.Module, stubs: bool = False) -> tuple[fx.Graph, Calls, Calls]:
    """The calls that a module makes, as :class:`lq.tracing.recording.Recorder` notes them.

    Args:
        root: the module, which stays as it is.
        stubs: whether to note the stubs and FloatFunctionals of a model that is annotated by hand.

    Returns:
        the graph in evaluation, without shapes and work; all calls in evaluation; and those in training, none if they
        cannot be read.

    Raises:
        NotPlainError: if its code branches on values, or writes into a tensor that it reads under another name.

    Example:
        >>> graph, calls, training = read_calls(nn.Sequential(nn.Linear(4, 2), nn.ReLU()))
        >>> [seen.operation for seen, _ in calls]
        ['linear', 'relu']
    """
    reader, in_training = _Reader(root, stubs), _Reader(root, stubs)
    try:
        with as_it_was(root):
            graph = reader.trace(root.eval())
            _note_kept(root)
    except Exception as error:
        raise NotPlainError(str(error)) from error
    try:
        with as_it_was(root):
            in_training.trace(root.train())
            _note_kept(root)
    except Exception:  # as where a call in training cannot be recorded
        in_training.calls.clear()
    for node in graph.nodes:
        if _works_in_place(node) and node.op in ("call_function", "call_method"):
            _check_result_is_read(node)
    give_input_by_position(graph)
    return graph, reader.calls, in_training.calls


def _note_kept(root: nn.Module) -> None:
    """Note which values the modules hold as attributes, or in lists of those, once they have been read."""
    for value in (value for module in root.modules() for value in vars(module).values()):
        for held in value if type(value) in (list, tuple) else (value,):
            if isinstance(held, fx.Proxy):
                held.node.meta[KEPT] = True


def _check_result_is_read(node: fx.Node) -> None:
    source = node.all_input_nodes[0]
    later = [user for user in source.users if user is not node and _comes_after(user, node)]
    seen = source.meta.get(SEEN)
    is_view = source.target is operator.getitem or (seen is not None and seen.operation in SAME_GRID)
    if later or is_view or not node.users:
        raise NotPlainError(f"{node.name} writes into a tensor that is read elsewhere")


def _comes_after(node: fx.Node, other: fx.Node) -> bool:
    while node.op != "root":
        if node is other:
            return True
        node = node.prev
    return False

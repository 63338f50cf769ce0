"""One real call of a module as a graph: which function, called in which module's ``forward``, reads what."""

from __future__ import annotations

import linecache
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lq.compat.torch_private import (
    HigherOrderOperator,
    is_transformed,
    times_computed,
    tree_leaves,
    without_torch_functions,
)
from lq.core.memory import address
from lq.core.own_class import is_plain_leaf
from lq.tracing.arguments import give_input_by_position
from lq.tracing.functions import is_frozen_batch_norm, operation, writes
from lq.tracing.inputs import input_tensors
from lq.tracing.layer_calls import INPUT, PARAMETER, argument, first_argument
from lq.tracing.memory import SHARED, may_give_its_input, views_of
from lq.tracing.opened import OPENABLE, OPENED, number_of_steps, step_by_step
from lq.tracing.ops import CALLED, SEEN
from lq.tracing.structure import tensors_of
from lq.tracing.stubs import functional_that_calls, mark_functional, stub_function
from lq.tracing.work import multiply_accumulates

LEAF = "lq_leaf"  # of a call that is all that a module of torch does: the name of that module
TENSOR = "lq_tensor"  # of a tensor of which nobody saw how it was made: itself
KEPT = "lq_kept"  # whether a module holds the tensor, after the call, as an attribute
DROPPED = "lq_dropped"  # whether a dropout, which does nothing in evaluation, makes another tensor of it in training
CLOSED = "closed"  # in the place of all that a module calls, where nobody has looked into it


Opens = Callable[[str, str], bool]


@dataclass(frozen=True)
class Seen:
    """What is known of a recorded call.

    Args:
        operation: its name.
        stack: dotted names of the modules whose ``forward`` was running, outermost first; "" is the root.
        line: of the user's code, "file:line, in function".
        work: multiply-accumulates.
        opaque: where it runs, if that is a place where nothing can be quantized; else "".
        whole: whether it stands for all that its module does.

    Example:
        >>> from lq.instrument.record import record
        >>> seen, _ = record(nn.Sequential(nn.Linear(4, 2)), (torch.ones(3, 4),), {}).evaluation.calls[0]
        >>> seen.operation, seen.stack, seen.work  # 3 samples, 2 x 4 weights
        ('linear', ('', '0'), 24)
    """

    operation: str
    stack: tuple[str, ...]
    line: str = ""
    work: int = 0
    opaque: str = ""
    whole: bool = False


def overwritten(value: Any, by: Any) -> Any:
    """Stands in a graph for a tensor of whose memory something else has written a part.

    Example:
        >>> from lq.instrument.record import record
        >>> class Net(nn.Module):
        ...     def forward(self, x):
        ...         y = x * 2
        ...         y[0].add_(1)
        ...         return y
        >>> list(record(Net(), (torch.ones(2, 2),), {}).evaluation.graph.nodes)
        [x, mul, getitem, add, overwritten, output]
    """
    return value


def unknown(name: str) -> Any:
    """Stands in a graph for a tensor of which nobody saw how it was made.

    Example:
        >>> from lq.instrument.record import record
        >>> class Net(nn.Module):
        ...     def forward(self, x):
        ...         return x + torch.from_numpy(x.numpy())
        >>> list(record(Net(), (torch.ones(2),), {}).evaluation.graph.nodes)
        [x, unknown, add, output]
    """
    return name


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _attributes(module: nn.Module) -> list[Tensor]:
    """Tensors that a module holds as plain attributes, and in containers of those."""
    return [t for name, value in vars(module).items() if name not in _OF_EVERY_MODULE for t in _held(value)]


def _held(value: Any, depth: int = 3) -> Iterator[Tensor]:
    """Not deeper, as what users keep may hold itself."""
    if isinstance(value, Tensor):
        yield value
    elif depth and type(value) in (list, tuple, dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _held(inner, depth - 1)


def _identities(tensors: list[Tensor]) -> list[int]:
    return list(map(id, tensors))


class Recorder(TorchFunctionMode):
    """Follows tensors by their identity through one call.

    Args:
        root: the module; its parameters and buffers are constants of the graph.
        stubs: whether stubs and FloatFunctionals count, see :mod:`lq.tracing.stubs`.
        opens: whether an operation in the module of a dotted name is recorded step by step, if that is possible.

    Example:
        >>> from lq.instrument.record import record
        >>> recorder = record(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), (torch.ones(3, 4),), {}).evaluation
        >>> list(recorder.graph.nodes)
        [input_1, _0_weight, _0_bias, _0, _1, output]
        >>> [seen.operation for seen, _ in recorder.calls]
        ['linear', 'relu']
    """

    def __init__(self, root: nn.Module, stubs: bool = False, opens: Opens | None = None) -> None:
        super().__init__()
        self.graph, self.root, self.stubs, self.opens = fx.Graph(), root, stubs, opens
        self.stack: list[str] = []
        self._nodes: dict[int, fx.Node] = {}
        self._memory: dict[int, list[Tensor]] = {}
        self._stale: dict[int, fx.Node] = {}  # tensors that an activation has overwritten, as long as nobody reads them
        self._kept: list[Any] = []  # an identity is one as long as its object lives
        self._constants = {id(t): name for name, t in [*root.named_parameters(), *root.named_buffers()]}
        self._attributes = [(module, _attributes(module)) for module in root.modules()]
        self._kept += [*root.parameters(), *root.buffers()]
        self._labels: dict[str, int] = {}
        self._plain_leaf: list[bool] = []
        self.calls: list[tuple[Seen, fx.Node | None]] = []
        self.unknown: list[str] = []
        self._unknown: list[tuple[Tensor, str]] = []
        self.opened: list[tuple[str, str, int]] = []  # module, operation and steps of calls recorded step by step

    # ---- modules ------------------------------------------------------------------------------------------------

    def run(self, place: Any, module: nn.Module, body: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run the ``forward`` of a module, and note what it calls as its own."""
        self.stack.append(place.path)
        self._plain_leaf.append(is_plain_leaf(module))
        try:
            if is_frozen_batch_norm(module):
                return self._whole(module, body, args, kwargs)
            if self.stubs and args:
                self._note_functional(place.path, args[0])
                if stub_function(module) is not None and isinstance(args[0], Tensor):
                    return self._stub(stub_function(module), args[0])
            before = len(self.calls)
            out = body(module, *args, **kwargs)
            if self._plain_leaf[-1] and len(self.calls) == before + 1 and not kwargs:
                self._note_leaf(place.path, self.calls[-1][1], args, out)
            return out
        finally:
            self.stack.pop()
            self._plain_leaf.pop()

    def _note_leaf(self, path: str, node: fx.Node | None, args: Any, out: Any) -> None:
        """Note on a call that it is all that its module does, with one tensor and with parameters of its own."""
        if node is None or len(args) != 1 or not all(isinstance(value, Tensor) for value in (args[0], out)):
            return
        if self._nodes.get(id(out)) is node and self._nodes.get(id(args[0])) in node.all_input_nodes[:1]:
            held = [str(n.target).rpartition(".")[0] for n in node.all_input_nodes[1:] if n.op == "get_attr"]
            if held == [path] * (len(node.all_input_nodes) - 1):
                node.meta[LEAF] = path

    def _note_functional(self, path: str, value: Any) -> None:
        owner = functional_that_calls(self.root, path)
        if owner is not None and id(value) in self._nodes:
            mark_functional(self._nodes[id(value)], owner)

    def _stub(self, function: Any, x: Tensor) -> Tensor:
        with without_torch_functions():
            out = x.view_as(x)  # another object, so that those who read the one and the other are told apart
        self._note(function, (x,), {}, out)
        return out

    def _whole(self, module: Any, body: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        with without_torch_functions():
            out = body(module, *args, **kwargs)
        statistics = (module.running_mean, module.running_var, module.weight, module.bias)
        self._note(F.batch_norm, (first_argument(args, kwargs), *statistics), {}, out, whole=True)
        return out

    # ---- values -------------------------------------------------------------------------------------------------

    def take_inputs(self, named: Mapping[str, Any]) -> None:
        """Make every tensor of the call's arguments an input of the graph."""
        for path, tensor in input_tensors(named):
            self._remember(tensor, self.graph.placeholder(self._label(path)))

    def give_output(self, output: Any) -> None:
        """End the graph."""
        self.graph.output(tuple(self._node(t) for t in tensors_of(output)))
        give_input_by_position(self.graph)
        self._note_kept()
        # Plain attributes that the call has left as they were, such as the anchors of a detector, are constants.
        as_before = [held for module, held in self._attributes if _identities(held) == _identities(_attributes(module))]
        constants = {identity for held in as_before for identity in _identities(held)}
        self.unknown = [line for tensor, line in self._unknown if id(tensor) not in constants]

    def _note_kept(self) -> None:
        """Note which tensors the modules hold now; not those that an activation has overwritten since."""
        modules = [module for module, _ in self._attributes]
        for tensor in [t for module in modules for t in (*_attributes(module), *module._buffers.values())]:
            if id(tensor) in self._nodes and id(tensor) not in self._stale:
                self._nodes[id(tensor)].meta[KEPT] = True

    def _remember(self, tensor: Tensor, node: fx.Node) -> None:
        self._kept.append(tensor)
        self._nodes[id(tensor)] = node
        self._stale.pop(id(tensor), None)
        node.meta.setdefault("shape", tuple(tensor.shape))
        node.meta.setdefault("dtype", tensor.dtype)
        where = address(tensor)
        if where:
            self._memory.setdefault(where, []).append(tensor)

    def _node(self, tensor: Tensor) -> fx.Node:
        by = self._stale.pop(id(tensor), None)
        if by is not None:
            self._overwrite(tensor, by)
        node = self._nodes.get(id(tensor))
        if node is not None:
            return node
        name = self._constants.get(id(tensor))
        if name is not None:
            node = self.graph.create_node("get_attr", name, name=self._label(name))
            node.meta["constant"], node.meta[PARAMETER] = True, isinstance(tensor, nn.Parameter)
        else:
            node = self.graph.create_node("call_function", unknown, (f"{tuple(tensor.shape)}",), name="unknown")
            node.meta["unknown"], node.meta[TENSOR] = users_line()[0], tensor
            self._unknown.append((tensor, node.meta["unknown"]))
        self._remember(tensor, node)
        return node

    def _label(self, wanted: str) -> str:
        name = wanted.replace(".", "_")
        count = self._labels.get(name, 0)
        self._labels[name] = count + 1
        return name if count == 0 else f"{name}_{count}"

    # ---- calls --------------------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        _refuse_control_flow(func)
        opened = self._opened(func, args)
        if opened is not None:
            with self:
                return opened(*args, **kwargs)
        out = func(*args, **kwargs)
        if args and out is args[0] and operation(func) in _ACTIVATIONS and address(out):
            with without_torch_functions():
                out = out.view_as(out)  # another object, so that it is seen who reads what it was written into
            self._note(func, args, kwargs, out, written=args[0])
            self._stale[id(args[0])] = self._nodes[id(out)]
            return out
        self._note(func, args, kwargs, out)
        return out

    def _opened(self, func: Any, args: Any) -> Callable[..., Any] | None:
        if func not in OPENABLE or self.opens is None or not self.stack:
            return OPENED.get(func)
        found = step_by_step(func, args)
        if found is None or not self.opens(self.stack[-1], OPENABLE[func]):
            return None
        self.opened.append((self.stack[-1], OPENABLE[func], number_of_steps(func, args)))
        return found

    def _note(
        self, func: Any, args: Any, kwargs: Any, out: Any, whole: bool = False, written: Tensor | None = None
    ) -> None:
        name = operation(func)
        results = [args[0]] if name == "setitem" else [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if not results or not self.stack:
            return
        line, opaque = users_line()
        work = multiply_accumulates(name, args, kwargs, results[0])
        seen = Seen(name, tuple(self.stack), line, work and work * times_computed(results[0]), opaque, whole)
        same = bool(args) and out is args[0]
        if same and may_give_its_input(name, args, kwargs):
            self.calls.append((seen, None))
            if "dropout" in name and id(out) in self._nodes:
                self._nodes[id(out)].meta[DROPPED] = True
            return
        node = self._create(func, name, args, kwargs)
        node.meta[SEEN] = seen
        self.calls.append((seen, node))
        sources = node.all_input_nodes
        node.meta["constant"] = bool(sources) and all(n.meta.get("constant") for n in sources)
        node.meta[PARAMETER] = node.meta["constant"] and any(n.meta.get(PARAMETER) for n in sources)
        if written is None:
            written = args[0] if same or (args and writes(func)) else kwargs.get("out")
        if isinstance(written, Tensor):
            self._mark_overwritten(written, node)
        else:
            node.meta[SHARED] = _share_memory(argument(INPUT, args, kwargs), results)
        for index, tensor in enumerate(results):
            result = node
            if isinstance(out, (tuple, list)):
                result = self.graph.call_function(operator.getitem, (node, index))
                result.meta |= {key: node.meta[key] for key in ("constant", PARAMETER)}
            self._remember(tensor, result)

    def _create(self, func: Any, name: str, args: Any, kwargs: Any) -> fx.Node:
        node_args, node_kwargs = tuple(map(self._as_node, args)), {k: self._as_node(v) for k, v in kwargs.items()}
        target = func if len(args) != 2 or kwargs else _OPERATORS.get(name, func)
        label = self.stack[-1] if self._plain_leaf[-1] else f"{self.stack[-1]}.{name}".lstrip(".")
        node = self.graph.create_node("call_function", target, node_args, node_kwargs, name=self._label(label))
        node.meta[CALLED] = (node.args, node.kwargs)
        return node

    def _as_node(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._node(value)
        if isinstance(value, (tuple, list)):
            parts = [self._as_node(part) for part in value]
            return parts if isinstance(value, list) else tuple(parts)
        return {k: self._as_node(v) for k, v in value.items()} if type(value) is dict else _plain(value)

    def _mark_overwritten(self, written: Tensor, by: fx.Node) -> None:
        for other in self._memory.get(address(written), ()):
            if id(other) in self._stale:
                self._stale[id(other)] = by
            elif other is not written and self._nodes.get(id(other)) is not by:
                self._overwrite(other, by)
        written_node = self._nodes.get(id(written))
        for source in [] if written_node is None else [written_node, *views_of(written_node)]:
            source.meta.setdefault("writers", []).append(by)

    def _overwrite(self, tensor: Tensor, by: fx.Node) -> None:
        before = self._nodes[id(tensor)]
        node = self.graph.call_function(overwritten, (before, by))
        node.meta["constant"] = bool(before.meta.get("constant") and by.meta["constant"])
        self._nodes[id(tensor)] = node


def _share_memory(source: Any, results: list[Tensor]) -> bool:
    where = address(source) if isinstance(source, Tensor) else 0
    return where != 0 and any(address(result) == where for result in results)


_ACTIVATIONS = frozenset({"relu", "relu6", "hardtanh", "clamp", "clip", "clamp_min"})
_OPERATORS: Mapping[str, Any] = {"add": operator.add, "mul": operator.mul, "cat": torch.cat}


_PLAIN = (
    bool, int, float, complex, str, type(None), type(...), slice, torch.dtype, torch.device, torch.layout,
    torch.memory_format,
)  # fmt: skip


def _plain(value: Any) -> Any:
    return value if isinstance(value, _PLAIN) else str(type(value))


_CONTROL_FLOW = frozenset({"cond", "while_loop", "map_impl", "scan", "associative_scan"})


def _refuse_control_flow(func: Any) -> None:
    if isinstance(func, HigherOrderOperator) and operation(func) in _CONTROL_FLOW:
        raise ValueError(
            f"{users_line()[0]} calls torch.{operation(func)}, which traces its branches itself, so lq can neither see "
            "nor quantize the calls in them. Write it in Python or with torch.where, or name an inner module without "
            "it, QATCallback(target=...)."
        )


_OURS = ("lq.", "torch.")


def users_line() -> tuple[str, str]:
    """The innermost line outside of torch and lq, and what runs there, inside of the module, that nobody may change.

    Example:
        >>> names = {"__name__": "train", "train": lambda: users_line()}
        >>> exec(compile("found = train()", "train.py", "exec"), names)
        >>> names["found"]
        ('train.py:1, in <module>', '')
    """
    frame: FrameType | None = sys._getframe(2)
    opaque, outside = "a transform of torch.func" if is_transformed() else "", False
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        outside = outside or (frame.f_code.co_name == "run" and module == __name__)
        held = frame.f_locals.get("ctx") if not outside and "ctx" in frame.f_code.co_varnames else None
        if isinstance(held, torch.autograd.function.FunctionCtx):
            opaque = "an autograd function, whose backward pass is not ours"
        if not (module.startswith(_OURS) or module == "torch"):
            return _place_in_code(frame), opaque
        frame = frame.f_back
    return "", opaque


def _place_in_code(frame: FrameType) -> str:
    file, line = frame.f_code.co_filename, frame.f_lineno
    if file.startswith("<eval_with_key>"):  # a graph of torch.fx: each has a number, that of training, too
        return f"`{linecache.getline(file, line).partition(';')[0].strip()}` in a graph of torch.fx"
    return f"{file}:{line}, in {frame.f_code.co_name}"

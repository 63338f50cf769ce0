"""A recorded call as the ATen graph that quantizers know, each of whose nodes says which recorded one it comes from."""

from __future__ import annotations

import copy
import inspect
import operator
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from lq.backends.base import Recorded
from lq.compat.torch_private import BatchNorm, tree_leaves, tree_map_only
from lq.core.own_class import own_class
from lq.tracing.functions import property_of
from lq.tracing.inputs import input_tensors, named_arguments
from lq.tracing.layer_calls import is_layer
from lq.tracing.layers import seen_of
from lq.tracing.ops import SEEN, recorded
from lq.tracing.recording import LEAF, TENSOR
from lq.tracing.structure import Inputs

_STEP = re.compile(r"lq_step_(\d+)\b")
STEP = "lq_step"
RESULT = "lq_result"


class _Step(nn.Module):
    """One recorded call as a module of its own: torch.export notes of each operation in which it ran.

    Args:
        node: the call.
        module: of torch, if that does nothing but the call; quantizers know layers by their classes.
    """

    def __init__(self, node: fx.Node, module: nn.Module | None) -> None:
        super().__init__()
        self.module = module
        self.target = None if module is not None else _callable(node.target)
        self.returns_input = recorded(node) == "setitem"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.module is not None:
            return self.module(args[0])
        assert self.target is not None
        out = self.target(*args, **kwargs)
        return args[0] if self.returns_input else out


def _callable(target: Any) -> Any:
    """A function that torch.export follows: it does not know the methods of tensors as functions."""
    name = property_of(target)
    if name is not None:
        return lambda x: getattr(x, name)
    name = str(getattr(target, "__name__", ""))
    if getattr(torch.Tensor, name, None) is not target:
        return target
    plain = getattr(operator, name, None) if name.startswith("__") else None
    return plain or (lambda x, *args, **kwargs: getattr(x, name)(*args, **kwargs))


def capture(call: Recorded, training: bool = True) -> fx.GraphModule:
    """Export a recorded call.

    Args:
        call: of a module, which is left as it is.
        training: the mode of the module in which it is exported.

    Returns:
        an ATen graph; ``node.meta["lq_step"]`` is the recorded node that a node was made by, and ``nn_module_stack``
        names the modules that the user knows.

    Raises:
        ValueError: if torch.export refuses the call.

    Example:
        >>> from lq.backends.base import recorded_call
        >>> net = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
        >>> captured = capture(recorded_call(net, (torch.ones(2, 4),)))
        >>> [(str(node.target), node.meta[STEP].name) for node in captured.graph.nodes if node.op == "call_function"]
        [('aten.linear.default', '_0'), ('aten.relu.default', '_1')]
    """
    assert call.example is not None
    steps = list(call.graph.nodes)
    # A copy, for what exporting does to modes and statistics.
    twin = copy.deepcopy(_in_steps(call, steps))
    for module in twin.modules():
        if isinstance(module, BatchNorm) and module.momentum is None:
            module.momentum = 0.1  # a cumulative average depends on the value of its counter, which export refuses
    args, kwargs = copy.deepcopy(call.example)
    tensors = tuple(tensor for _, tensor in input_tensors(named_arguments(call.root, args, kwargs)))
    try:
        # Not without strict=True: quantizers look for the sources that only it notes (torchao 0.18).
        program: Any = torch.export.export(twin.train(training), tensors, strict=True)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise ValueError(
            f"backend='pt2e' exports the model, and torch.export refuses {own_class(call.root).__name__}: "
            f"{type(error).__name__}: {first.rstrip('.')}. Quantize a submodule that can be exported, "
            "QATCallback(target=...), or use QConfig(backend='fx')."
        ) from error
    quiet = {"check_guards": False} if "check_guards" in inspect.signature(program.module).parameters else {}
    captured: fx.GraphModule = program.module(**quiet)
    _say_where_from(captured, steps, call.finder.modules)
    return captured


def _say_where_from(captured: fx.GraphModule, steps: list[fx.Node], modules: Mapping[str, nn.Module]) -> None:
    inputs = iter([step for step in steps if step.op == "placeholder"])
    for node in captured.graph.nodes:
        index = _step_of(node)
        node.meta.pop(STEP, None)
        if index is not None:
            node.meta[STEP] = steps[index]
            node.meta["nn_module_stack"] = (
                {path: (f"L['self'].{path}", own_class(modules[path])) for path in seen_of(steps[index]).stack if path}
                if SEEN in steps[index].meta
                else {}
            )
        elif node.op == "placeholder":
            node.meta[STEP] = next(inputs)


def has_batch_norm(captured: fx.GraphModule) -> bool:
    """Whether any layer of a captured graph is followed by a BatchNorm.

    Example:
        >>> from lq.backends.base import recorded_call
        >>> net = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
        >>> has_batch_norm(capture(recorded_call(net, (torch.ones(2, 4),))))
        True
    """
    return any(_follows_layer(node) for node in captured.graph.nodes)


def without_batch_norm(captured: fx.GraphModule) -> fx.GraphModule:
    """Leave out each BatchNorm that follows a layer, as ``prepare_pt2e`` does before it asks a quantizer.

    Args:
        captured: in evaluation mode; it is changed. Its weights stay as they are, for no quantizer reads them.

    Returns:
        the same graph; ``node.meta["lq_result"]`` of such a layer is the recorded BatchNorm.

    Example:
        >>> from lq.backends.base import recorded_call
        >>> net = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
        >>> captured = without_batch_norm(capture(recorded_call(net, (torch.ones(2, 4),)), training=False))
        >>> [(str(node.target), node.meta[RESULT].name) for node in captured.graph.nodes if node.op == "call_function"]
        [('aten.linear.default', '_1')]
    """
    for node in list(captured.graph.nodes):
        if _follows_layer(node):
            layer = node.args[0]
            layer.meta[RESULT] = node.meta[STEP]
            node.replace_all_uses_with(layer)
            captured.graph.erase_node(node)
    captured.graph.eliminate_dead_code()
    captured.recompile()
    return captured


def _follows_layer(node: fx.Node) -> bool:
    if node.target is not torch.ops.aten.batch_norm.default or not isinstance(node.args[0], fx.Node):
        return False
    layer = node.args[0]
    return STEP in node.meta and STEP in layer.meta and is_layer(layer.meta[STEP]) and len(layer.users) == 1


def several(example: Inputs) -> Inputs:
    """Inputs of a call, a single sample doubled, because BatchNorm wants more than one in training.

    Example:
        >>> [tuple(x.shape) for x in several(((torch.ones(1, 3),), {}))[0]]
        [(2, 3)]
    """
    leaves = [leaf for leaf in tree_leaves(example) if isinstance(leaf, Tensor)]
    if not all(leaf.dim() and leaf.shape[0] == 1 for leaf in leaves):
        return example
    doubled: Inputs = tree_map_only(Tensor, lambda leaf: leaf.repeat(2, *[1] * (leaf.dim() - 1)), example)
    return doubled


def _in_steps(call: Recorded, steps: list[fx.Node]) -> fx.GraphModule:
    graph, root = fx.Graph(), nn.Module()
    new: dict[fx.Node, fx.Node] = {}
    for index, node in enumerate(steps):
        name = f"{STEP}_{index}"
        if node.op == "get_attr" or TENSOR in node.meta:
            value = node.meta[TENSOR] if TENSOR in node.meta else _attribute(call.root, str(node.target))
            if isinstance(value, nn.Parameter):
                root.register_parameter(name, value)
            else:
                root.register_buffer(name, value, persistent=False)
            new[node] = graph.get_attr(name)
        elif node.op == "call_function":
            module = call.finder.modules[node.meta[LEAF]] if LEAF in node.meta else None
            root.add_module(name, _Step(node, module))
            given = (node.args, node.kwargs) if module is None else (node.args[:1], {})
            new[node] = graph.call_module(name, *fx.map_arg(given, lambda n: new[n]))
        else:
            new[node] = graph.node_copy(node, lambda n: new[n])
    return fx.GraphModule(root, graph, class_name=own_class(call.root).__name__)


def _attribute(module: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)


def _step_of(node: fx.Node) -> int | None:
    for key, (path, _) in node.meta.get("nn_module_stack", {}).items():
        found = _STEP.search(str(path)) or _STEP.search(str(key))
        if found:
            return int(found.group(1))
    return None

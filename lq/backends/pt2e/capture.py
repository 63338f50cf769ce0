"""A traced module as the ATen graph that quantizers know, each of whose nodes says which traced node it comes from."""

from __future__ import annotations

import copy
import inspect
import re
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map_only

from lq.backends.base import Inputs
from lq.tracing.errors import owner_of

_STEP = re.compile(r"lq_step_(\d+)\b")
STEP = "lq_step"


class _Step(nn.Module):
    """One call of a traced graph as a module of its own: torch.export notes of each operation in which it ran."""

    def __init__(self, node: fx.Node, module: nn.Module | None) -> None:
        super().__init__()
        self.module = module
        self.target = node.target if module is None else None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.module is not None:
            return self.module(*args, **kwargs)
        if isinstance(self.target, str):
            return getattr(args[0], self.target)(*args[1:], **kwargs)
        assert callable(self.target)
        return self.target(*args, **kwargs)


def capture(graph_module: fx.GraphModule, example: Inputs) -> fx.GraphModule:
    """Export a traced module in training mode, which is left as it is.

    Args:
        graph_module: from :func:`lq.tracing.trace.trace`.
        example: inputs of one call; a single sample is doubled, because BatchNorm wants more than one in training.

    Returns:
        an ATen graph; ``node.meta["lq_step"]`` is the traced node that a node was made by, and ``nn_module_stack``
        names the modules that the user knows.

    Raises:
        ValueError: if torch.export refuses the module.
    """
    steps = list(graph_module.graph.nodes)
    # A copy, for what exporting does to modes and statistics.
    twin = copy.deepcopy(_in_steps(graph_module, steps))
    for module in twin.modules():
        if isinstance(module, _BatchNorm) and module.momentum is None:
            module.momentum = 0.1  # a cumulative average depends on the value of its counter, which export refuses
    args, kwargs = _several(example)
    try:
        # Not without strict=True: quantizers look for the sources that only it notes (torchao 0.18).
        program: Any = torch.export.export(twin.train(), args, kwargs, strict=True)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise ValueError(
            f"backend='pt2e' exports the model, and torch.export refuses {type(graph_module).__name__}: "
            f"{type(error).__name__}: {first} Quantize a submodule that can be exported, QATCallback(target=...), or "
            "use QConfig(backend='fx')."
        ) from error
    quiet = {"check_guards": False} if "check_guards" in inspect.signature(program.module).parameters else {}
    captured: fx.GraphModule = program.module(**quiet)
    for node in captured.graph.nodes:
        step = _step_of(node)
        node.meta.pop("lq_step", None)
        if step is not None:
            node.meta[STEP] = steps[step]
            node.meta["nn_module_stack"] = _users_stack(steps[step])
    return captured


def _several(example: Inputs) -> Inputs:
    leaves = [leaf for leaf in tree_leaves(example) if isinstance(leaf, Tensor)]
    if not all(leaf.dim() and leaf.shape[0] == 1 for leaf in leaves):
        return example
    doubled: Inputs = tree_map_only(Tensor, lambda leaf: leaf.repeat(2, *[1] * (leaf.dim() - 1)), example)
    return doubled


def _in_steps(graph_module: fx.GraphModule, steps: list[fx.Node]) -> fx.GraphModule:
    graph, root = fx.Graph(), nn.Module()
    new: dict[fx.Node, fx.Node] = {}
    modules = dict(graph_module.named_modules())
    for index, node in enumerate(steps):
        if node.op in ("call_module", "call_function", "call_method"):
            name = f"{STEP}_{index}"
            root.add_module(name, _Step(node, modules[str(node.target)] if node.op == "call_module" else None))
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: new[n])
            new[node] = graph.call_module(name, args, kwargs)
        elif node.op == "get_attr":
            new[node] = graph.get_attr(_attach(root, graph_module, str(node.target), index))
        else:
            new[node] = graph.node_copy(node, lambda n: new[n])
    return fx.GraphModule(root, graph, class_name=type(graph_module).__name__)


def _attach(root: nn.Module, source: nn.Module, target: str, index: int) -> str:
    owner, _, last = target.rpartition(".")
    value, name = getattr(source.get_submodule(owner), last), f"lq_constant_{index}"
    if isinstance(value, nn.Parameter):
        root.register_parameter(name, value)
    elif isinstance(value, torch.Tensor):
        root.register_buffer(name, value, persistent=False)
    else:
        setattr(root, name, value)
    return name


def _step_of(node: fx.Node) -> int | None:
    for key, (path, _) in node.meta.get("nn_module_stack", {}).items():
        found = _STEP.search(str(path)) or _STEP.search(str(key))
        if found:
            return int(found.group(1))
    return None


def _users_stack(step: fx.Node) -> dict[str, tuple[str, Any]]:
    stack = dict(step.meta.get("nn_module_stack", {}))
    if step.op == "call_module" and owner_of(step) != str(step.target):
        stack.setdefault(str(step.target), (str(step.target), None))
    return {str(key): (f"L['self'].{path}", kind) for key, (path, kind) in stack.items()}

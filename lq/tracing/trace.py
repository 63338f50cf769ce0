"""Any module -> one ``torch.fx`` GraphModule that is right in training and in evaluation."""

from __future__ import annotations

import inspect
from typing import Any

from torch import fx, nn

from lq.core.fake_quantize import ModeSwitch, TrainingFlag
from lq.core.modes import modes_kept
from lq.core.state import STATE
from lq.tracing.arguments import give_input_by_position
from lq.tracing.errors import UntraceableError
from lq.tracing.inplace import read_results_of_inplace_operations
from lq.tracing.modes import merge_modes
from lq.tracing.stubs import mark_functional
from lq.tracing.tracer import is_batch_norm_act, is_default, trace_once

__all__ = ["copy_modes", "passed_parameters", "trace", "untraceable_parts"]

_UNTRACEABLE = "lq_untraceable"


def trace(root: nn.Module, optional: frozenset[str] = frozenset()) -> fx.GraphModule:
    """Trace ``root`` without baking its ``training`` flag in.

    The module is traced twice, in training and in evaluation mode. Where the two graphs differ by a flag only
    (``F.dropout(x, p, self.training)``) the graph reads the flag when it runs; where training returns more than
    evaluation (auxiliary heads) the graph picks its output when it runs. Small modules that branch on
    ``self.training`` and hold no quantizable layer (StochasticDepth, DropPath) stay modules, and so do the stubs of
    models that are annotated by hand and a submodule whose ``forward`` has no graph: see :func:`untraceable_parts`.

    Args:
        root: the module; its own flags and hooks are left as they were.
        optional: names of ``forward`` parameters with a default that calls do pass; all others keep their default.

    Returns:
        a GraphModule that shares every parameter and leaf module with ``root``.

    Raises:
        UntraceableError: if the ``forward`` of ``root`` itself has no graph, naming the line, and what to do.

    Example:
        >>> graph_module = trace(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)))
        >>> [node.op for node in graph_module.graph.nodes]
        ['placeholder', 'call_module', 'call_module', 'output']
    """
    leaves: dict[str, str] = {}
    while True:
        try:
            graph, constants = _trace_both_modes(root, optional, leaves)
            break
        except UntraceableError as error:
            reason = f"{type(root.get_submodule(error.path)).__name__} cannot be traced: {error.reason}"
            if not error.path:
                raise UntraceableError(reason, error.remedy) from error
            leaves = {path: why for path, why in leaves.items() if not path.startswith(f"{error.path}.")}
            leaves[error.path] = reason
    graph_module = _assemble(root, graph, constants)
    graph_module.meta[_UNTRACEABLE] = leaves
    return graph_module


def untraceable_parts(graph_module: fx.GraphModule) -> dict[str, str]:
    """Dotted names of the submodules that :func:`trace` had to leave as they are, each with the reason.

    Example:
        >>> class Branch(nn.Module):
        ...     def forward(self, x):
        ...         return x if x.sum() > 0 else -x
        >>> graph_module = trace(nn.Sequential(nn.Linear(4, 4), Branch()))
        >>> {name: reason[:23] for name, reason in untraceable_parts(graph_module).items()}
        {'1': 'Branch cannot be traced'}
    """
    return dict(graph_module.meta[_UNTRACEABLE])


def _trace_both_modes(
    root: nn.Module, optional: frozenset[str], leaves: dict[str, str]
) -> tuple[fx.Graph, dict[str, Any]]:
    with modes_kept(root):
        graph, constants = trace_once(root.train(), optional, leaves)
        eval_graph, _ = trace_once(root.eval(), optional, leaves)
    merge_modes(graph, eval_graph)
    modules = dict(root.named_modules())
    give_input_by_position(graph, modules)
    read_results_of_inplace_operations(graph, modules)
    return graph, constants


def _assemble(root: nn.Module, graph: fx.Graph, constants: dict[str, Any]) -> fx.GraphModule:
    holder = _with_state_child(root)
    holder.__dict__.update(constants)
    for node in graph.nodes:
        node.type = None  # pickling looks annotations up by name, and fails (torch 2.6) where they are text
    graph_module = fx.GraphModule(holder, graph, class_name=type(root).__name__)
    graph_module._non_persistent_buffers_set.update(constants)
    _keep_unused(root, graph_module)
    _replace_batch_norm_acts(graph_module)
    _erase_identities(root, graph_module)
    # Copies take it from the graph.
    graph_module._tracer_cls = graph_module.graph._tracer_cls = (
        None  # unpickling retraces, and must not keep defaults or split modules again
    )
    copy_modes(root, graph_module)
    return graph_module


def copy_modes(source: nn.Module, target: nn.Module) -> None:
    """Give every module of ``target`` the mode of its namesake in ``source``; users put single ones into eval mode."""
    modes = {name: module.training for name, module in source.named_modules(remove_duplicate=False)}
    for name, module in target.named_modules():
        module.training = modes.get(name, source.training)


def _with_state_child(root: nn.Module) -> nn.Module:
    """A shallow copy of ``root`` that also holds the mode helpers, so that ``root`` itself stays untouched."""
    if hasattr(root, STATE):
        raise ValueError(f"{type(root).__name__} already has an attribute {STATE!r}; rename it, lq needs that name.")
    holder = nn.Module()
    holder.__dict__.update({k: v for k, v in root.__dict__.items() if k not in ("_modules", "forward")})
    holder.__dict__["_modules"] = dict(root._modules)
    helpers = nn.Module()
    helpers.training_flag, helpers.mode_switch = TrainingFlag(), ModeSwitch()
    holder.add_module(STATE, helpers)
    return holder


def _keep_unused(root: nn.Module, graph_module: fx.GraphModule) -> None:
    """Attach what the graph does not use, so that a checkpoint of one fits the other."""
    present = dict(graph_module.named_modules(remove_duplicate=False))
    for name, module in root.named_modules(remove_duplicate=False):
        if not name:
            owner: nn.Module = graph_module
        elif name in present:
            owner = present[name]
        elif any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False)):
            graph_module.add_submodule(name, module)
            continue
        else:
            continue
        for key, parameter in module._parameters.items():
            if key not in owner._parameters:
                owner.register_parameter(key, parameter)
        for key, buffer in module._buffers.items():
            if key not in owner._buffers:
                owner.register_buffer(key, buffer, persistent=key not in module._non_persistent_buffers_set)


def _replace_batch_norm_acts(graph_module: fx.GraphModule) -> None:
    for name in {str(node.target) for node in graph_module.graph.nodes if node.op == "call_module"}:
        module = graph_module.get_submodule(name)
        if not is_batch_norm_act(module):
            continue
        plain = nn.BatchNorm2d.__new__(nn.BatchNorm2d)
        plain.__dict__.update(module.__dict__)
        graph_module.set_submodule(name, plain)


def _erase_identities(root: nn.Module, graph_module: fx.GraphModule) -> None:
    """Drop the calls of ``nn.Identity``, which would stand between a layer and its activation."""
    for node in list(graph_module.graph.nodes):
        if node.op == "call_module" and type(graph_module.get_submodule(str(node.target))) is nn.Identity:
            mark_functional(root, node)
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)
    graph_module.recompile()


def passed_parameters(root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> frozenset[str]:
    """Names of the ``forward`` parameters that this call passes, but for those to which it passes their default."""
    signature = inspect.signature(root.forward)
    defaults = {name: parameter.default for name, parameter in signature.parameters.items()}
    try:
        passed = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise ValueError(f"The example inputs do not fit {type(root).__name__}.forward: {error}.") from None
    return frozenset(name for name, value in passed.items() if not is_default(value, defaults[name]))

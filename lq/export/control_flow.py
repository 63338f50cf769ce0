"""Branches that depend on values: a trace keeps the one that the example took, a script keeps both."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import fx, nn

from lq.deprecations import quiet_torchscript


def script_control_flow(model: nn.Module) -> nn.Module:
    """Script the parts of a graph that cannot be traced, so that tracing the whole keeps all their branches.

    Args:
        model: a float or int8 model, in evaluation mode; only a GraphModule knows its parts.

    Returns:
        ``model`` itself if it has no such part, else a copy. A part that TorchScript cannot compile either is left as
        it is, with a warning.

    Example:
        >>> graph_module = fx.symbolic_trace(nn.Sequential(nn.Linear(4, 2)))
        >>> script_control_flow(graph_module) is graph_module
        True
    """
    if not isinstance(model, fx.GraphModule):
        return model
    called = {str(node.target) for node in model.graph.nodes if node.op == "call_module"}
    parts = [name for name in sorted(called) if not _has_graph(model.get_submodule(name))]
    if not parts:
        return model
    twin = copy.deepcopy(model)
    for name in parts:
        compiled = _script(name, twin.get_submodule(name))
        if compiled is not None:
            twin.set_submodule(name, compiled)
    return twin


def _has_graph(module: nn.Module) -> bool:
    if type(module).__module__.startswith(("torch.", "lq.")):
        return True
    try:
        fx.Tracer().trace(module)
    except Exception:  # whatever the user's code does with a stand-in for a tensor
        return False
    return True


def _script(name: str, module: nn.Module) -> torch.jit.ScriptModule | None:
    try:
        with quiet_torchscript():
            compiled: torch.jit.ScriptModule = torch.jit.script(module)
            return compiled
    except Exception as error:  # TorchScript knows a part of Python
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(
            f"lq: {name} ({type(module).__name__}) can neither be traced nor compiled by torch.jit.script ({reason}): "
            "where it branches by values, the exported model takes the branch that the example took. Write that part "
            "in TorchScript's Python, or name an inner module without it: QATCallback(target=...).",
            stacklevel=3,
        )
        return None

"""Any module -> one ``torch.fx`` GraphModule that is right in training and in evaluation."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lq.core.fake_quantize import ModeSwitch, TrainingFlag
from lq.core.modules import QAT_LAYERS
from lq.tracing.errors import UntraceableError
from lq.tracing.inplace import read_results_of_inplace_operations

STATE = "qat_state"


def trace(root: nn.Module, optional: frozenset[str] = frozenset()) -> fx.GraphModule:
    """Trace ``root`` without baking its ``training`` flag in.

    The module is traced twice, in training and in evaluation mode. Where the two graphs differ by a flag only
    (``F.dropout(x, p, self.training)``) the graph reads the flag when it runs; where training returns more than
    evaluation (auxiliary heads) the graph picks its output when it runs; anything else is refused. Small modules that
    branch on ``self.training`` and hold no quantizable layer (StochasticDepth, DropPath) stay modules.

    Args:
        root: the module; its own flags and hooks are left as they were.
        optional: names of ``forward`` parameters with a default that calls do pass; all others keep their default.

    Returns:
        a GraphModule that shares every parameter and leaf module with ``root``.

    Raises:
        UntraceableError: naming the line of code that cannot be traced, and what to do.

    Example:
        >>> graph_module = trace(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)))
        >>> [node.op for node in graph_module.graph.nodes]
        ['placeholder', 'call_module', 'call_module', 'output']
    """
    modes = {name: module.training for name, module in root.named_modules()}
    try:
        train_graph, constants = _trace_once(root.train(), optional)
        eval_graph, _ = _trace_once(root.eval(), optional)
    finally:
        for name, module in root.named_modules():
            module.training = modes[name]
    _merge_modes(train_graph, eval_graph, type(root).__name__)
    read_results_of_inplace_operations(train_graph, dict(root.named_modules()))
    holder = _with_state_child(root)
    holder.__dict__.update(constants)
    graph_module = fx.GraphModule(holder, train_graph, class_name=type(root).__name__)
    graph_module._non_persistent_buffers_set.update(constants)
    _keep_unused(root, graph_module)
    _replace_batch_norm_acts(graph_module)
    _erase_identities(graph_module)
    graph_module._tracer_cls = None  # unpickling retraces, and must not keep defaults or split modules again
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


@fx.wrap
def require_default(value: Any, default: Any, name: str) -> None:
    """Refuse a call that passes another value than the one that the graph was traced with."""
    if value is not default and (isinstance(value, torch.Tensor) or value != default):
        raise ValueError(
            f"The model was traced with {name}={default!r}, but this call passes {name} as {type(value).__name__}. "
            "Give prepare() an example that passes it (LightningModule.example_input_array, a dict for keywords)."
        )


class _Tracer(fx.Tracer):
    def __init__(self, optional: frozenset[str]) -> None:
        super().__init__()
        self.optional = optional

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, tuple(QAT_LAYERS)):  # a subclass with a forward of its own has to show in the plan
            return True
        return super().is_leaf_module(m, module_qualified_name) or (_reads_training(m) and not _has_quantizable(m))

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if not is_batch_norm_act(m):
            return super().call_module(m, forward, args, kwargs)
        y: Any = self.create_proxy("call_module", self.path_of_module(m), args, kwargs)
        for child in m.children():  # timm's order: drop, then act
            y = child(y)
        return y

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        fn, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        parameters = list(inspect.signature(inspect.unwrap(root_fn)).parameters.values())
        if len(parameters) != len(args):  # *args or **kwargs: no defaults to keep
            return fn, args
        kept = [
            arg if p.default is inspect.Parameter.empty or p.name in self.optional else p.default
            for p, arg in zip(parameters, args, strict=True)
        ]
        for parameter, arg, value in zip(parameters, args, kept, strict=True):
            if value is not arg and isinstance(arg, fx.Proxy):
                arg.node.meta["default"] = parameter.default
        return fn, kept


def _trace_once(root: nn.Module, optional: frozenset[str]) -> tuple[fx.Graph, dict[str, Any]]:
    """The graph, and the constants that the tracer left on ``root``, which loses them again."""
    before = set(root.__dict__)
    try:
        graph = _Tracer(optional).trace(root)
        return graph, {name: root.__dict__.pop(name) for name in set(root.__dict__) - before}
    except Exception as error:
        frame = _users_frame(error)
        where = f"{frame.filename}:{frame.lineno}, in {frame.name}: `{frame.line}`" if frame else "an unknown line"
        raise UntraceableError(
            f"{type(root).__name__} cannot be traced: {where} ({type(error).__name__}: {error}). Control flow that "
            "depends on tensor values or shapes has no graph. Either quantize a submodule that has none "
            "(QATCallback(target='backbone')), or move that branch into a small module of its own without layers and "
            "decorate its function with torch.fx.wrap."
        ) from error


def _users_frame(error: BaseException) -> traceback.FrameSummary | None:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/torch/" not in f.filename.replace("\\", "/") and f.filename != __file__]
    own = [f for f in own if f.filename != "<eval_with_key>"]
    return own[-1] if own else None


def _reads_training(module: nn.Module) -> bool:
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and "training" in code.co_names


def _has_quantizable(module: nn.Module) -> bool:
    return any(isinstance(m, tuple(QAT_LAYERS)) for m in module.modules())


def is_batch_norm_act(module: nn.Module) -> bool:
    """Whether ``module`` is a BatchNorm that also drops and activates (timm's ``BatchNormAct2d``)."""
    own_forward = type(module).forward is not _BatchNorm.forward
    return isinstance(module, _BatchNorm) and own_forward and [n for n, _ in module.named_children()] == ["drop", "act"]


_PLAIN = {"BatchNormAct2d": nn.BatchNorm2d, "BatchNormAct3d": nn.BatchNorm3d}


def _replace_batch_norm_acts(graph_module: fx.GraphModule) -> None:
    for name, module in list(graph_module.named_modules()):
        if not is_batch_norm_act(module):
            continue
        plain = nn.BatchNorm2d.__new__(nn.BatchNorm2d)
        plain.__dict__.update(module.__dict__)
        graph_module.set_submodule(name, plain)


def _erase_identities(graph_module: fx.GraphModule) -> None:
    """Drop the calls of ``nn.Identity``, which would stand between a layer and its activation."""
    for node in list(graph_module.graph.nodes):
        if node.op == "call_module" and type(graph_module.get_submodule(str(node.target))) is nn.Identity:
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)
    graph_module.recompile()


# ---- one graph out of two -------------------------------------------------------------------------------------


def _merge_modes(train_graph: fx.Graph, eval_graph: fx.Graph, name: str) -> None:
    """Make ``train_graph`` right in both modes, using ``eval_graph``."""
    twins = dict(_align(train_graph, eval_graph, name))
    _guard_defaults(train_graph)
    flag: fx.Node | None = None
    for train_node, eval_node in list(twins.items()):
        if train_node.op == "output":
            continue
        if _mapped(train_node, twins) == (eval_node.args, eval_node.kwargs):
            continue
        if flag is None:
            with train_graph.inserting_before(next(iter(train_graph.nodes))):
                flag = train_graph.call_module(f"{STATE}.training_flag")
            first = next(n for n in train_graph.nodes if n.op not in ("placeholder",) and n is not flag)
            first.prepend(flag)
        train_node.args = _with_flag(train_node.args, eval_node.args, twins, flag, name)
        train_node.kwargs = _with_flag(train_node.kwargs, eval_node.kwargs, twins, flag, name)
    _merge_outputs(train_graph, eval_graph, twins)


def _guard_defaults(graph: fx.Graph) -> None:
    fixed = [n for n in graph.nodes if n.op == "placeholder" and "default" in n.meta]
    if not fixed:
        return
    last = [n for n in graph.nodes if n.op == "placeholder"][-1]
    with graph.inserting_after(last):
        for node in fixed:
            guard = graph.call_function(require_default, (node, node.meta["default"], str(node.target)))
            guard.meta["is_wrapped"] = True  # unpickling traces the code once more, and has to keep the call


def _align(train_graph: fx.Graph, eval_graph: fx.Graph, name: str) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Pairs of nodes that do the same in both graphs, in order; the training graph may hold more."""
    waiting = iter(train_graph.nodes)
    for eval_node in eval_graph.nodes:
        for train_node in waiting:
            if (train_node.op, train_node.target) == (eval_node.op, eval_node.target):
                yield train_node, eval_node
                break
        else:
            raise UntraceableError(
                f"{name} computes `{eval_node.format_node()}` in evaluation but not in training; such a model has no "
                "single graph. Quantize a submodule that behaves alike in both (QATCallback(target=...))."
            )


def _mapped(node: fx.Node, twins: dict[fx.Node, fx.Node]) -> tuple[Any, Any]:
    return fx.map_arg((node.args, node.kwargs), lambda n: twins.get(n, n))


def _with_flag(train_arg: Any, eval_arg: Any, twins: dict[fx.Node, fx.Node], flag: fx.Node, name: str) -> Any:
    if train_arg is True and eval_arg is False:
        return flag
    if isinstance(train_arg, (tuple, list)) and isinstance(eval_arg, (tuple, list)) and len(train_arg) == len(eval_arg):
        return type(train_arg)(_with_flag(a, b, twins, flag, name) for a, b in zip(train_arg, eval_arg, strict=True))
    if isinstance(train_arg, dict) and isinstance(eval_arg, dict) and train_arg.keys() == eval_arg.keys():
        return {k: _with_flag(train_arg[k], eval_arg[k], twins, flag, name) for k in train_arg}
    if fx.map_arg(train_arg, lambda n: twins.get(n, n)) == eval_arg:
        return train_arg
    raise UntraceableError(
        f"{name} passes {train_arg!r} in training where it passes {eval_arg!r} in evaluation; such a model has no "
        "single graph. Move that choice into a small module of its own, without layers, that reads self.training."
    )


def _merge_outputs(train_graph: fx.Graph, eval_graph: fx.Graph, twins: dict[fx.Node, fx.Node]) -> None:
    train_out, eval_out = train_graph.output_node(), eval_graph.output_node()
    back = {eval_node: train_node for train_node, eval_node in twins.items()}
    wanted = fx.map_arg(eval_out.args[0], lambda n: back[n])
    if wanted == train_out.args[0]:
        return
    with train_graph.inserting_before(train_out):
        switch = train_graph.call_module(f"{STATE}.mode_switch", (train_out.args[0], wanted))
    train_out.args = (switch,)


def passed_parameters(root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> frozenset[str]:
    """Names of the ``forward`` parameters that this call passes."""
    try:
        return frozenset(inspect.signature(root.forward).bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise ValueError(f"The example inputs do not fit {type(root).__name__}.forward: {error}.") from None

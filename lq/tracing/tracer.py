"""One trace of a module in one mode, and whose code is at fault where there is none."""

from __future__ import annotations

import inspect
import traceback
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lq.core.modules import QAT_LAYERS
from lq.tracing.errors import UntraceableError
from lq.tracing.stubs import is_stub

_REMEDY = (
    "Control flow that depends on tensor values or shapes has no graph. Move that branch into a module of its own: it "
    "then stays float, and the rest is quantized. Or quantize a submodule that has no such branch, e.g. "
    "QATCallback(target='backbone')."
)


@fx.wrap
def require_default(value: Any, default: Any, name: str) -> None:
    """Refuse a call that passes another value than the one that the graph was traced with."""
    if not is_default(value, default):
        raise ValueError(
            f"The model was traced with {name}={default!r}, but this call passes {name} as {type(value).__name__}. "
            "Give prepare() an example that passes something else than the default "
            "(LightningModule.example_input_array, a dict for keywords)."
        )


def is_default(value: Any, default: Any) -> bool:
    """Whether a call that passes ``value`` does the same as one that leaves it out."""
    return value is default or (not isinstance(value, torch.Tensor) and bool(value == default))


@fx.wrap
def ordered_dict(items: list[tuple[Any, Any]]) -> OrderedDict[Any, Any]:
    """An ``OrderedDict``, of which a graph would make a plain ``dict``."""
    return OrderedDict(items)


_ordered_dict = ordered_dict  # while it traces, fx has a substitute under the name of what is wrapped


def trace_once(
    root: nn.Module, optional: frozenset[str], leaves: Collection[str] = ()
) -> tuple[fx.Graph, dict[str, Any]]:
    """Trace ``root`` in its current mode.

    Args:
        root: the module.
        optional: names of ``forward`` parameters with a default that calls do pass.
        leaves: dotted names of submodules to leave as single calls.

    Returns:
        the graph, and the constants that the tracer left on ``root``, which loses them again.

    Raises:
        UntraceableError: naming the line, and the innermost submodule whose ``forward`` ran.
    """
    before = set(root.__dict__)
    tracer = OneTrace(optional, leaves)
    try:
        graph = tracer.trace(root)
    except Exception as error:
        raise UntraceableError(_where(error), _REMEDY, tracer.running_when(error)) from error
    finally:
        constants = {name: root.__dict__.pop(name) for name in set(root.__dict__) - before}
    return graph, constants


class OneTrace(fx.Tracer):
    """Traces a module in its present mode.

    Args:
        optional: names of ``forward`` parameters with a default that calls do pass.
        leaves: dotted names of submodules to leave as single calls.
    """

    def __init__(self, optional: frozenset[str], leaves: Collection[str] = ()) -> None:
        super().__init__()
        self.optional, self.leaves = optional, leaves
        self._failure: tuple[Exception | None, str] = None, ""

    def running_when(self, error: Exception) -> str:
        """The innermost submodule whose ``forward`` raised ``error``."""
        raised, path = self._failure
        return path if raised is error else ""

    def create_arg(self, a: Any) -> Any:
        """Keep an ``OrderedDict`` one."""
        if type(a) is OrderedDict:
            made = self.create_proxy("call_function", _ordered_dict, (list(a.items()),), {})
            made.node.meta["is_wrapped"] = True  # unpickling traces the code once more, and has to keep the call
            return made.node
        return super().create_arg(a)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module stays a single call."""
        if module_qualified_name in self.leaves or isinstance(m, tuple(QAT_LAYERS)) or is_stub(m):
            return True  # a layer with a forward of its own has to show in the plan
        return super().is_leaf_module(m, module_qualified_name) or (_reads_training(m) and not _has_quantizable(m))

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Trace a module, and note whose ``forward`` fails."""
        path = self.path_of_module(m)
        if not is_batch_norm_act(m):
            if self.is_leaf_module(m, path):
                return super().call_module(m, forward, args, kwargs)
            return self._call_inner(path, m, forward, args, kwargs)
        y: Any = self.create_proxy("call_module", path, args, kwargs)
        for child in m.children():  # timm's order: drop, then act
            y = child(y)
        return y

    def _call_inner(self, path: str, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:
            if self._failure[0] is not error:
                self._failure = error, path
            raise

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Leave parameters at their defaults, unless calls pass them."""
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


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/torch/" not in f.filename.replace("\\", "/") and f.filename != __file__]
    own = [f for f in own if f.filename != "<eval_with_key>"]
    where = f"{own[-1].filename}:{own[-1].lineno}, in {own[-1].name}: `{own[-1].line}`" if own else "an unknown line"
    return f"{where} ({type(error).__name__}: {str(error).rstrip('.')})"


def _reads_training(module: nn.Module) -> bool:
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and "training" in code.co_names


def _has_quantizable(module: nn.Module) -> bool:
    return any(isinstance(m, tuple(QAT_LAYERS)) for m in module.modules())


def is_batch_norm_act(module: nn.Module) -> bool:
    """Whether ``module`` is a BatchNorm that also drops and activates (timm's ``BatchNormAct2d``)."""
    own_forward = type(module).forward is not _BatchNorm.forward
    return isinstance(module, _BatchNorm) and own_forward and [n for n, _ in module.named_children()] == ["drop", "act"]

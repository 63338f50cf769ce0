"""``torch``: the int8 model as frozen TorchScript, which loads without the code that made it; float models too."""

from __future__ import annotations

import copy
import inspect
import io
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from lq.backends.prepare import plan_of, qconfig_of
from lq.compat.deprecations import quiet_properties, quiet_torchscript
from lq.compat.torch_private import TracerWarning, is_traced, tree_leaves
from lq.conversion.convert import convert, in_float
from lq.conversion.int8 import Int8Layer
from lq.export.artifact.calls import in_order, smallest_call
from lq.export.artifact.files import write_file
from lq.export.artifact.manifest import MANIFEST_NAME
from lq.export.artifact.program_check import read_archive
from lq.export.artifact.signature import Signature
from lq.export.formats.libraries import import_libraries, libraries_of
from lq.export.formats.low_bits import stored_archive
from lq.fields import Field
from lq.tracing.call_signature import opened_output
from lq.tracing.origin import operation_of
from lq.tracing.structure import Flattener, Inputs, restore, tensors_of

FILE = "int8.pt"
_NO_KERNEL = "PyTorch multiplies two activations in float"  # so does torch.ops.quantized.matmul of 2.14, inside

_MORE_THAN_COMPUTES = re.compile(
    r"def\s+__(?:setstate|getstate|init)__|\b(?:from_file|save|load|_?fork|rpc_\w+|file_\w+|Open|Load|Save)\s*\(|ops\.(?:image|video)\.\w+"
    r"|torch\.classes\.(?!quantized\b)\w+"
)


@contextmanager
def int8_kernels() -> Iterator[None]:
    """Run int8 kernels though deterministic algorithms are asked for (``Trainer(deterministic=True)``).

    They are deterministic, but not on torch's list (2.15: ``quantized_resize_cpu_``), which makes it refuse them.

    Example:
        >>> torch.use_deterministic_algorithms(True)
        >>> with int8_kernels():
        ...     torch.are_deterministic_algorithms_enabled()
        False
        >>> torch.are_deterministic_algorithms_enabled()
        True
        >>> torch.use_deterministic_algorithms(False)
    """
    if not torch.are_deterministic_algorithms_enabled():
        yield  # setting what is set already takes a tenth of a millisecond
        return
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=warn_only)


def export_torchscript(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None, optimize: bool = False
) -> torch.jit.ScriptModule:
    """Trace ``model`` and freeze it.

    Args:
        model: in evaluation mode, on the CPU.
        args: positional inputs of one call, on the CPU.
        kwargs: keyword inputs of that call.
        optimize: also fuse for inference (folds BatchNorm of float models).

    Returns:
        the frozen module, which takes what :func:`tensor_inputs` returns; the batch size may be another one. It returns
        what the model does, or a tuple of its tensors, where TorchScript has no type for that and the inputs have no
        names.

    Example:
        >>> frozen = export_torchscript(nn.Linear(4, 2).eval(), (torch.ones(1, 4),))
        >>> frozen(torch.ones(3, 4)).shape
        torch.Size([3, 2])
    """
    positional, named = tensor_inputs(model, args, kwargs)
    if _own_arguments(model, args, kwargs or {}) is None:
        model = _OfTensors(model.eval(), in_order(model, (args, dict(kwargs or {}))))
    given: dict[str, Any] = {"example_kwarg_inputs": named} if named else {"example_inputs": positional}
    with quiet_torchscript(), quiet_properties(), int8_kernels(), torch.no_grad(), warnings.catch_warnings():
        # Shapes that the traced code reads become constants, which the comparison with real batches would show.
        warnings.filterwarnings("ignore", category=TracerWarning)
        # Of numbers, which are tensors in a trace: torchvision's detectors make tensors of them.
        warnings.filterwarnings("ignore", message="To copy construct from a tensor")
        trace: Any = torch.jit.trace
        if not named and _is_structure(model.eval()(*copy.deepcopy(positional))):
            model = _Leaves(model)
        traced = trace(model.eval(), **given, strict=False, check_trace=False)
        frozen: torch.jit.ScriptModule = torch.jit.freeze(traced.eval())
        return torch.jit.optimize_for_inference(frozen) if optimize else frozen


def with_traced_sizes(model: fx.GraphModule) -> fx.GraphModule:
    """The model with functions that take what a trace knows sizes as: tensors.

    Example:
        >>> model = with_traced_sizes(fx.symbolic_trace(lambda x: x[: torch.sym_min(x.shape[0], 2)]))
        >>> traced = export_torchscript(model, (torch.ones(5),))
        >>> traced(torch.ones(1)), traced(torch.ones(3))  # the 2 is a constant, the size is none
        (tensor([1.]), tensor([1., 1.]))
    """
    for node in model.graph.nodes:
        node.target = _OF_SIZES.get(node.target, _public(node))
    model.recompile()
    return model


def _public(node: fx.Node) -> Any:
    """The function of torch for an ATen operation that is given sizes, of which a trace would make constants."""
    target: Any = node.target
    if getattr(target, "namespace", "") != "aten":
        return target
    arguments = target._schema.arguments
    given = {**{argument.name: value for argument, value in zip(arguments, node.args, strict=False)}, **node.kwargs}
    numbers = [given.get(argument.name) for argument in arguments if str(argument.type) in _SIZES]
    takes_sizes = any(isinstance(part, fx.Node) for part in tree_leaves(numbers))
    return getattr(torch, operation_of(node), target) if takes_sizes else target


def _smaller(a: Any, b: Any) -> Any:
    return torch.minimum(*map(torch.as_tensor, (a, b))) if is_traced() else min(a, b)


def _larger(a: Any, b: Any) -> Any:
    return torch.maximum(*map(torch.as_tensor, (a, b))) if is_traced() else max(a, b)


_SIZES = ("int", "List[int]", "Optional[int]", "Optional[List[int]]")
_OF_SIZES: dict[Any, Callable[[Any, Any], Any]] = {torch.sym_min: _smaller, torch.sym_max: _larger}


def export(prepared: fx.GraphModule, example: Inputs, directory: Path) -> dict[str, Any]:
    """Write ``int8.pt``.

    Returns:
        the engine whose weight layout it holds, how it is called, whether it returns a tuple of tensors in place of a
        structure that TorchScript has no type for, and which layers run in int8 and in float; of those that were to run
        in int8 also why.

    Example:
        >>> import tempfile
        >>> from lq.ptq.static import prepare_static
        >>> x = torch.rand(8, 4)
        >>> prepared = prepare_static(nn.Sequential(nn.Linear(4, 2)), [x])
        >>> with tempfile.TemporaryDirectory() as place:
        ...     info = export(prepared, ((x,), {}), Path(place))
        >>> info["int8_layers"], info["float_layers"], info["flat_output"]
        ({'Linear': 1}, [], False)
    """
    int8 = with_traced_sizes(convert(prepared))
    reasons = in_float(int8) | {row.name: _NO_KERNEL for row in plan_of(prepared).int8_products}
    with torch.no_grad(), quiet_torchscript(), int8_kernels():
        sample = smallest_call(prepared, example)
        flat = not _has_type(int8(*copy.deepcopy(sample[0]), **copy.deepcopy(sample[1])))
    scripted = export_torchscript(_flattened(int8) if flat else int8, *sample)
    content = io.BytesIO()
    with quiet_torchscript():
        torch.jit.save(scripted, content)
    write_file(directory / FILE, stored_archive(content, prepared))
    return {
        "engine": qconfig_of(prepared).resolved_engine,
        "arguments": list(tensor_inputs(int8, *sample)[1]),
        "flat_output": flat,
        "libraries": libraries_of(scripted),
        "int8_layers": dict(Counter(m.kind for m in int8.modules() if isinstance(m, Int8Layer))),
        "float_layers": [*reasons, *_planned_float_layers(prepared)],
        "float_reasons": reasons,
    }


def _planned_float_layers(prepared: fx.GraphModule) -> list[str]:
    return [row.name for row in plan_of(prepared).layers if row.weight is None]


def load(
    directory: Path, signature: Signature, info: Mapping[str, Any], threads: int | None = None
) -> Callable[..., Any]:
    """``int8.pt``, with the engine selected that it was exported for; ``threads`` is torch's own setting.

    Raises:
        ValueError: if this build of PyTorch lacks the engine.

    Example:
        >>> import tempfile
        >>> from lq.ptq.static import prepare_static
        >>> x = torch.rand(8, 4)
        >>> prepared = prepare_static(nn.Sequential(nn.Linear(4, 2)), [x])
        >>> with tempfile.TemporaryDirectory() as place:
        ...     info = export(prepared, ((x,), {}), Path(place))
        ...     model = load(Path(place), Signature.of(prepared, ((x,), {}), prepared(x)), info)
        >>> model(x[:3]).shape
        torch.Size([3, 2])
    """
    given = Field(info, f"{directory / MANIFEST_NAME}: artifacts.torch")
    names, flat = [name.text() for name in given["arguments"].each()], given["flat_output"].flag()
    _select_engine(directory, given["engine"].text())
    import_libraries(info)
    with quiet_torchscript():
        scripted: Callable[..., Any] = torch.jit.load(str(directory / FILE), map_location="cpu")  # type: ignore[no-untyped-call]

    def call(*args: Any, **kwargs: Any) -> Any:
        tensors = signature.tensors(args, kwargs)
        with int8_kernels():
            output = scripted(**dict(zip(names, tensors, strict=True))) if names else scripted(*tensors)
        return signature.restore(tree_leaves(output)) if flat else output

    return call


def check_file(directory: Path) -> None:
    """Refuse a file that does more than compute; lq writes none like that.

    TorchScript has no operating system, but functions that open files, and ``__setstate__`` methods that run while a
    file is loaded.

    Raises:
        ValueError: naming what was found.

    Example:
        >>> import tempfile
        >>> frozen, more = export_torchscript(nn.ReLU(), (torch.ones(1),)), {"more.py": "torch.from_file('secrets')"}
        >>> with tempfile.TemporaryDirectory() as place, quiet_torchscript():
        ...     torch.jit.save(frozen, f"{place}/{FILE}", _extra_files=more)
        ...     check_file(Path(place))
        Traceback (most recent call last):
        ValueError: ... holds 'from_file(', which does more than compute. If you trust where the file comes from, ...
    """
    path = directory / FILE
    for name, content in read_archive(path):
        if not name.endswith(".py"):
            continue
        found = _MORE_THAN_COMPUTES.search(content.decode("utf-8", "replace"))
        if found is not None:
            raise ValueError(
                f"{path}: {name} holds {found.group().strip()!r}, which does more than compute. If you trust where the "
                "file comes from, give trust=True."
            )


def _has_type(output: Any) -> bool:
    """Whether TorchScript can return this: it wants one type for all values of a list or dict, and for all keys."""
    if isinstance(output, tuple):
        return all(_has_type(value) for value in output)
    if isinstance(output, dict) and {type(key) for key in output} not in ({str}, {int}):
        return False
    values = output.values() if isinstance(output, dict) else output if isinstance(output, list) else [output]
    return all(isinstance(value, Tensor) for value in values)


def _is_structure(output: Any) -> bool:
    """Whether it holds tensors alone, in a structure that TorchScript has no type for."""
    return not _has_type(output) and all(isinstance(leaf, Tensor) for leaf in tree_leaves(output))


def _flattened(model: fx.GraphModule) -> fx.GraphModule:
    """The model that returns the tensors of its output in a tuple."""
    twin = copy.deepcopy(model)
    output = next(node for node in twin.graph.nodes if node.op == "output")
    tensors: list[fx.Node] = []
    fx.map_arg(opened_output(output.args[0]), tensors.append)
    output.args = (tuple(tensors),)
    twin.recompile()
    return twin


def _select_engine(directory: Path, engine: str) -> None:
    """Make ``engine`` the one that runs quantized kernels in this process.

    Raises:
        ValueError: if this build of PyTorch lacks it.
    """
    supported = [name for name in torch.backends.quantized.supported_engines if name != "none"]
    if engine not in supported:
        raise ValueError(
            f"{directory} was exported for the quantized engine {engine!r}, which this build of PyTorch lacks; "
            f"it has {', '.join(supported) or 'none'}. Export again with a preset for one of these."
        )
    torch.backends.quantized.engine = engine


def like_original(
    scripted: torch.jit.ScriptModule, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Callable[..., Any]:
    """``scripted``, if it can be called as ``model`` is by these inputs; else a function that adapts such calls.

    Example:
        >>> class Scale(nn.Module):
        ...     def forward(self, x, double=False):
        ...         return 2 * x if double else x
        >>> x = torch.ones(1)
        >>> scripted = export_torchscript(Scale(), (x,), {"double": True})
        >>> like_original(scripted, Scale(), (x,), {"double": True})(x, double=True)
        tensor([2.])
    """
    taken = tensor_inputs(model, args, kwargs)
    same = len(taken[0]) == len(args) and all(a is b for a, b in zip(taken[0], args, strict=True))
    if same and taken[1].keys() == kwargs.keys():
        return scripted

    def call(*args: Any, **kwargs: Any) -> Any:
        positional, named = tensor_inputs(model, args, kwargs)
        return scripted(*positional, **named)

    return call


def tensor_inputs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Inputs:
    """What the TorchScript module of a model takes in the place of a call: tensors alone.

    Arguments that are tensors keep their places and names, if all others have their defaults. Otherwise all tensors
    come by position, in the order of the parameters, and what else the call holds is fixed in the module.

    Args:
        model: the module that was exported, for the signature of its ``forward``.
        args: positional inputs of the call.
        kwargs: keyword inputs.

    Returns:
        ``(args, kwargs)``, one of which is empty: the tracer takes one kind at a time.

    Example:
        >>> class Scale(nn.Module):
        ...     def forward(self, x, double=False):
        ...         return 2 * x if double else x
        >>> tensor_inputs(Scale(), (torch.ones(1),), {"double": False})
        ((), {'x': tensor([1.])})
        >>> tensor_inputs(Scale(), ([torch.ones(1)],), {"double": True})
        ((tensor([1.]),), {})
    """
    own = _own_arguments(model, args, kwargs or {})
    return (tuple(tensors_of(in_order(model, (args, dict(kwargs or {}))))), {}) if own is None else own


def _own_arguments(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Inputs | None:
    """The call without what has its default, if tensors are all that is left."""
    if not kwargs and all(isinstance(value, Tensor) for value in args):
        return args, {}
    signature = inspect.signature(model.forward)
    bound = signature.bind(*args, **kwargs).arguments
    held = {name: value for name, value in bound.items() if not _is_default(value, signature.parameters[name].default)}
    return ((), held) if all(isinstance(value, Tensor) for value in held.values()) else None


def _is_default(value: Any, default: Any) -> bool:
    return not tensors_of(value) and bool(value is default or value == default)


class _OfTensors(nn.Module):
    """A model that is called with the tensors of a call, by position."""

    def __init__(self, model: nn.Module, example: Inputs) -> None:
        super().__init__()
        self.model, self.structure = model, Flattener().take(example)

    def forward(self, *tensors: Tensor) -> Any:
        args, kwargs = restore(self.structure, tensors)
        return self.model(*args, **kwargs)


class _Leaves(nn.Module):
    """A model that returns the tensors of its output in a tuple."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tree_leaves(self.model(*tensors)))

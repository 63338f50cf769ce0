"""A module as an ATen graph: ``torch.export`` with flat tensors in and out, and nothing of the module changed by it."""

from __future__ import annotations

import linecache
import logging
import re
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.nn.utils.rnn import PackedSequence

import lq.core.marks  # noqa: F401  # registers what the graphs hold
from lq.compat.torch_private import quiet_export
from lq.compat.torchvision_private import boxes_without_branches
from lq.core.kept import as_it_was
from lq.tracing.batch import FixedBatch, where_sizes_become_constants
from lq.tracing.closeness import difference
from lq.tracing.functional import functional
from lq.tracing.images import check_one_size, image_list, is_of_each_image
from lq.tracing.samples import batch_size, filled_up
from lq.tracing.structure import Flattener, Inputs, map_tensors, restore


@dataclass(frozen=True)
class Exported:
    """A functional graph, and what its ends stand for.

    Args:
        graph: of ATen operations.
        inputs: placeholders of the tensors of the example, in order.
        constants: the tensors that other placeholders stand for, each with its dotted name in the module, which is
            empty for a tensor that the code makes.
        results: nodes of the tensors that the module returns, in order.
        arguments: the structure of the call, with leaves in the places of its tensors.
        output: the structure of the result.
        batch: the only batch size that the graph is right for, if there is but one.
        constant_sizes: first dimensions that the graph holds as numbers, where the tensors share none.
    """

    graph: fx.Graph
    inputs: list[fx.Node]
    constants: dict[fx.Node, tuple[str, Tensor]]
    results: list[Any]
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    output: Any
    batch: FixedBatch | None = None
    constant_sizes: frozenset[int] = frozenset()

    def run(self, tensors: list[Tensor]) -> list[Tensor]:
        """What the graph computes of these inputs."""
        given = {node: tensor for node, (_, tensor) in self.constants.items()} | dict(
            zip(self.inputs, tensors, strict=True)
        )
        placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
        outputs = fx.Interpreter(fx.GraphModule({}, self.graph)).run(*(given[node] for node in placeholders))
        named = dict(zip(self.graph.output_node().args[0], outputs, strict=True))  # type: ignore[arg-type]
        return [named[node] for node in self.results]


class _Returned:
    structure: Any = None


class _Flat(nn.Module):
    """The target with a list of tensors as its input and a tuple of tensors as its output."""

    def __init__(self, target: nn.Module, arguments: Any) -> None:
        super().__init__()
        self.target = target
        self.training = False
        self.arguments = arguments
        self.returned = _Returned()  # torch.export takes back what is assigned to modules

    def forward(self, tensors: list[Tensor]) -> tuple[Any, ...]:
        args, kwargs = restore(self.arguments, tensors)
        flattener = Flattener()
        self.returned.structure = flattener.take(self.target(*args, **kwargs))
        return tuple(_as_tensor(value) for value in flattener.tensors)


def _as_tensor(value: Tensor | torch.SymInt) -> Tensor:
    """A number that depends on the batch size as a tensor: others are constants of a file."""
    return value if isinstance(value, Tensor) else torch.scalar_tensor(value, dtype=torch.int64)


def export(
    target: nn.Module, example: Inputs, marking: Callable[[], AbstractContextManager[Any]], inner: str = ""
) -> Exported:
    """Export ``target`` in evaluation mode, its batch dynamic where the code allows it.

    Args:
        target: is left as it is, modes, buffers and attributes included.
        example: inputs of one call.
        marking: entered around the export.
        inner: dotted name of a module to recommend if the whole cannot be exported.

    Raises:
        ValueError: if it cannot be exported, naming the line.
    """
    flattener = Flattener()
    arguments = flattener.take(example)
    flat = _Flat(target, arguments)
    with as_it_was(target), marking(), torch.no_grad(), quiet(), boxes_without_branches(target):
        target.eval()
        with where_sizes_become_constants() as stacks:
            program, graph = functional(_program(flat, flattener.tensors, inner))
        exported = _read(target, program, graph, arguments, flat.returned.structure)
        batch = _fixed_batch(exported, flat, flattener.tensors, stacks)
        return replace(exported, batch=batch, constant_sizes=_constant_sizes(exported))


def _fixed_batch(
    exported: Exported, flat: _Flat, tensors: list[Tensor], stacks: list[traceback.StackSummary]
) -> FixedBatch | None:
    """The batch of the example, if the graph holds it as a number and computes something else with another one."""
    images = image_list(restore(exported.arguments, tensors))
    if images is not None and is_of_each_image(exported.output, images):
        check_one_size(images, type(flat.target).__name__)
        return FixedBatch(len(images), images=True)
    from torch.fx.experimental.symbolic_shapes import is_concrete_int  # brings sympy

    sizes = {t.shape[0] for t in tensors if t.dim()}
    shapes = [node.meta["val"].shape for node in exported.inputs if node.users]
    if len(sizes) != 1 or not all(is_concrete_int(shape[0]) for shape in shapes if shape):
        return None
    more = [torch.cat([t, t[:1]]) if t.dim() else t for t in tensors]
    try:
        expected = flat([t.clone() for t in more])
        if all(difference(a, b) is None for a, b in zip(expected, exported.run(more), strict=True)):
            return None
    except Exception:
        logging.getLogger(__name__).debug("no batch but that of the example", exc_info=True)
    lines = (_line_of([(f.filename, f.lineno or 0, f.name, f.line or "") for f in stack]) for stack in stacks)
    (size,), independent = sizes, _are_independent(exported, flat, tensors)
    return FixedBatch(size, next(filter(None, lines), ""), independent=independent)


def _constant_sizes(exported: Exported) -> frozenset[int]:
    from torch.fx.experimental.symbolic_shapes import is_concrete_int  # brings sympy

    shapes = [node.meta["val"].shape for node in exported.inputs]
    return frozenset(int(shape[0]) for shape in shapes if shape and is_concrete_int(shape[0]))


def _are_independent(exported: Exported, flat: _Flat, tensors: list[Tensor]) -> bool:
    """Whether the graph computes of fewer samples, filled up, what the module computes of them alone."""
    size = batch_size((tuple(tensors), {}))
    if size is None or size == 1:
        return False
    fewer, _ = map_tensors((tuple(tensors), {}), lambda t: t[: size - 1].clone() if t.dim() else t)
    filled, _ = filled_up((fewer, {}), size)
    try:
        expected, got = flat(list(fewer)), exported.run(list(filled))
        same_constants = bool(flat.returned.structure == exported.output)  # a size among them is another one
    except Exception:
        logging.getLogger(__name__).debug("not of fewer samples", exc_info=True)
        return False
    of_batch = same_constants and all(t.dim() and len(t) == size for t in got)
    return of_batch and all(difference(a, b[:-1]) is None for a, b in zip(expected, got, strict=True))


def _program(flat: _Flat, tensors: list[Tensor], inner: str) -> ExportedProgram:
    batches = {t.shape[0] for t in tensors if t.dim()}
    attempts: list[tuple[list[Tensor], Any]] = [(tensors, None)]
    if batches:
        dims = [{0: Dim.AUTO} if t.dim() and t.shape[0] > 1 else None for t in tensors]
        attempts.insert(0, (tensors, [dims]))
    if len(batches) == 1:
        batch = Dim("batch")
        # torch.export takes a size of 0 or 1 for a constant.
        larger = [torch.cat([t, t]) if t.dim() else t for t in tensors] if batches == {1} else tensors
        attempts.insert(0, (larger, [[{0: batch} if t.dim() else None for t in tensors]]))
    for given, shapes in attempts:
        # The same tensor twice would be one input.
        own = [t.view_as(t) if any(t is other for other in given[:i]) else t for i, t in enumerate(given)]
        try:
            shapes = None if shapes is None else {"tensors": shapes[0]}
            return torch.export.export(flat, (own,), dynamic_shapes=shapes, strict=False)
        except Exception as error:
            logging.getLogger(__name__).debug("torch.export failed", exc_info=True)
            failure = error
    _check_call(flat, tensors)
    raise ValueError(_reason(flat.target, failure, inner)) from failure


def _check_call(flat: _Flat, tensors: list[Tensor]) -> None:
    """Refuse inputs that the module itself cannot take."""
    try:
        flat([t.clone() for t in tensors])
    except Exception as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
        raise ValueError(
            f"{type(flat.target).__name__} cannot be called with inputs of the shapes {shapes}: {_said(error)}. Give "
            "such as it was prepared or trained with."
        ) from error


def _read(target: nn.Module, program: ExportedProgram, graph: fx.Graph, arguments: Any, output: Any) -> Exported:
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    inputs: list[fx.Node] = []
    constants: dict[fx.Node, tuple[str, Tensor]] = {}
    signature = program.graph_signature
    for node, spec in zip(placeholders, signature.input_specs, strict=True):
        name = str(spec.target).removeprefix("target.")
        if spec.kind == InputKind.USER_INPUT:
            inputs.append(node)
        elif spec.kind == InputKind.PARAMETER:
            constants[node] = name, target.get_parameter(name)
        elif spec.kind == InputKind.BUFFER:
            constants[node] = name, target.get_buffer(name)
        elif spec.kind == InputKind.CONSTANT_TENSOR:
            value: Any = program.constants[str(spec.target)]
            constants[node] = "", value
        else:
            raise ValueError(f"{type(target).__name__} uses {node.name}, a {spec.kind.name}, which has no graph.")
    last: Any = graph.output_node().args[0]
    kinds = [spec.kind for spec in signature.output_specs]
    results = [value for value, kind in zip(last, kinds, strict=True) if kind == OutputKind.USER_OUTPUT]
    return Exported(graph, inputs, constants, results, arguments, output)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch.export warns of, logs and prints about attempts that are repeated in another way."""
    with quiet_export(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


_VALUES = re.compile(r"data-dependent|DynamicControlFlow|unbacked|GuardOnDataDependent|\.item\(\)", re.IGNORECASE)

_TAKEN_OUT = re.compile(r"fake tensor in the exported program constant's list")

_TO_NUMPY = re.compile(r"\.numpy\(\) is not supported")


def _reason(target: nn.Module, error: Exception, inner: str) -> str:
    inner = "" if _is_inside(target, inner, error) else inner
    instead = f"QATCallback(target={inner!r})" if inner else "QATCallback(target=...)"
    place = _where(error)
    if _VALUES.search(f"{type(error).__name__} {error}") and "`assert " in place:
        remedy = (
            "An assertion on the values of a tensor is a branch, which no graph can take. Put it under "
            f"`if not torch.compiler.is_exporting():`; or name an inner module without it: {instead}."
        )
    elif _VALUES.search(f"{type(error).__name__} {error}"):
        remedy = (
            "That line takes a branch, or a size, from the values of a tensor, which no graph can. Write it with "
            f"tensor operations (torch.where), or name an inner module without it: {instead}."
        )
    elif _TAKEN_OUT.search(str(error)):
        remedy = "It takes a tensor out of the graph, as `x.data` does: write x.detach()."
    elif _TO_NUMPY.search(str(error)):
        remedy = (
            "No graph holds arrays of NumPy. Write it with tensor operations, or, if no output depends on it, under "
            f"`if not torch.compiler.is_exporting():`; or name an inner module without it: {instead}."
        )
    elif _holds_packed_sequence(error):
        remedy = (
            "torch.export cannot follow packed sequences. Give the layer the padded tensor, and mask what lies beyond "
            f"the lengths; or name an inner module without it: {instead}."
        )
    else:
        remedy = f"Train and export the inner module that does most of the work: {instead}." if inner else ""
    problem = f"{type(target).__name__} has no graph that could be exported: {place} ({_said(error)})"
    return f"{problem}. {remedy}".rstrip()


def _is_inside(target: nn.Module, inner: str, error: BaseException) -> bool:
    """Whether the error went through the module to recommend, which has no graph either then."""
    through = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    parts = [part for name, part in target.named_modules() if name and f".{inner}".endswith(f".{name}")]
    return any(part is one for part in parts for one in through)


def _holds_packed_sequence(error: BaseException) -> bool:
    """Whether a function that the error went through works on one."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(isinstance(value, PackedSequence) for frame, _ in frames for value in frame.f_locals.values())


def _said(error: Exception) -> str:
    text = re.split(r"\n\s*\n|\nCaused by|\nThe following call", str(error).strip())[0]
    return f"{type(error).__name__}: {' '.join(text.split()).rstrip('.')}"


def _where(error: BaseException) -> str:
    frames = [(f.filename, f.lineno or 0, f.name, f.line or "") for f in traceback.extract_tb(error.__traceback__)]
    for file, line, name in re.findall(r'File "([^"]+)", line (\d+), in (\S+)', str(error)):
        frames.append((file, int(line), name, linecache.getline(file, int(line)).strip()))
    return _line_of(frames) or "somewhere inside of it"


def _line_of(frames: list[tuple[str, int, str, str]]) -> str:
    """The innermost of the user's own lines; "" if there is none."""
    own = [frame for frame in frames if not re.search(r"[/\\](torch|lq)[/\\]|^<", frame[0])]
    if not own:
        return ""
    file, line, name, code = own[-1]
    return f"{file}:{line}, in {name}" + (f": `{code}`" if code else "")

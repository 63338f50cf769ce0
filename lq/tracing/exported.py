"""A module as an ATen graph: ``torch.export`` with flat tensors in and out, and nothing of the module changed by it."""

from __future__ import annotations

import logging
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

import lq.core.marks  # noqa: F401  # registers what the graphs hold
from lq.compat.torch_private import layers_of_any_length, let_go_of_export, quiet_export
from lq.compat.torchvision_private import boxes_without_branches
from lq.core.kept import as_it_was
from lq.tracing.axes import Axes, axes_of, named_tensors
from lq.tracing.batch import FixedBatch, where_sizes_become_constants
from lq.tracing.closeness import difference
from lq.tracing.exported_axes import check_other_sizes, named_open_axes
from lq.tracing.functional import functional
from lq.tracing.images import check_one_size, image_list, is_of_each_image
from lq.tracing.no_graph import line_in, reason, said
from lq.tracing.samples import batch_size, filled_up
from lq.tracing.structure import Flattener, Inputs, Leaf, leaves_and_numbers, map_tensors, restore


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
        axes: which other dimensions it leaves open; those of one size have one name.

    Example:
        >>> from contextlib import nullcontext
        >>> exported = export(nn.Linear(4, 2), ((torch.ones(3, 4),), {}), nullcontext)
        >>> exported.inputs, exported.arguments, exported.output, [name for name, _ in exported.constants.values()]
        ([tensors_0], ((Leaf(index=0),), {}), Leaf(index=0), ['weight', 'bias'])
        >>> exported.batch, exported.sizes
        (None, [(None, 4)])
    """

    graph: fx.Graph
    inputs: list[fx.Node]
    constants: dict[fx.Node, tuple[str, Tensor]]
    results: list[Any]
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    output: Any
    batch: FixedBatch | None = None
    constant_sizes: frozenset[int] = frozenset()
    axes: Axes = field(default_factory=dict)

    @property
    def sizes(self) -> list[tuple[int | None, ...]]:
        """The sizes of each input, ``None`` where the graph takes any; of the first dimension ``batch`` says more."""
        from torch.fx.experimental.symbolic_shapes import is_concrete_int  # brings sympy

        shapes = [node.meta["val"].shape for node in self.inputs]
        return [
            tuple(int(size) if dim and is_concrete_int(size) else None for dim, size in enumerate(shape))
            for shape in shapes
        ]

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

    def like(self, output: Any, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What the target returns in the places of the leaves of ``output``: it may be a number there."""
        results = self([tensor.clone() for tensor in tensors])
        items, wanted = leaves_and_numbers(self.returned.structure), leaves_and_numbers(output)
        if len(items) != len(wanted):
            return list(results)
        found = [item for item, want in zip(items, wanted, strict=True) if isinstance(want, Leaf)]
        return [results[item.index] if isinstance(item, Leaf) else torch.tensor(item) for item in found]


def _as_tensor(value: Any) -> Tensor:
    """A number that depends on a dynamic size as a tensor: others are constants of a file."""
    if isinstance(value, Tensor):
        return value
    types = {torch.SymInt: torch.int64, torch.SymFloat: torch.float32, torch.SymBool: torch.bool}
    return torch.scalar_tensor(value, dtype=types[type(value)])


def export(
    target: nn.Module,
    example: Inputs,
    marking: Callable[[], AbstractContextManager[Any]],
    inner: str = "",
    wanted: Axes | None = None,
) -> Exported:
    """Export ``target`` in evaluation mode, its batch dynamic where the code allows it.

    Args:
        target: is left as it is, modes, buffers and attributes included.
        example: inputs of one call.
        marking: entered around the export.
        inner: dotted name of a module to recommend if the whole cannot be exported.
        wanted: dimensions of inputs that shall be dynamic, too.

    Raises:
        ValueError: if it cannot be exported, or makes a constant of a size that shall be dynamic, naming the line.

    Example:
        >>> from contextlib import nullcontext
        >>> exported = export(nn.Softmax(-1), ((torch.zeros(3, 4),), {}), nullcontext)
        >>> exported.run([torch.zeros(1, 4)])  # another batch size
        [tensor([[0.2500, 0.2500, 0.2500, 0.2500]])]
    """
    axes = axes_of(target, example, wanted or {})
    flattener = Flattener()
    arguments = flattener.take(example)
    flat = _Flat(target, arguments)
    with as_it_was(target), marking(), torch.no_grad(), quiet(), boxes_without_branches(target):
        target.eval()
        with where_sizes_become_constants() as stacks:
            program, graph = functional(_program(flat, flattener.tensors, _by_tensor(target, example, axes), inner))
        exported = _read(target, program, graph, arguments, flat.returned.structure)
        batch = _fixed_batch(exported, flat, flattener.tensors, stacks)
        exported = replace(exported, batch=batch, constant_sizes=_constant_sizes(exported))
        let_go_of_export(graph)
        if not axes:
            return exported
        named = named_open_axes(target, example, axes, exported.inputs, stacks)
        check_other_sizes(target, example, axes, partial(flat.like, exported.output), exported.run)
        return replace(exported, axes=named)


def _by_tensor(target: nn.Module, example: Inputs, axes: Axes) -> dict[int, Mapping[int, str]]:
    """The dimensions of each tensor, by its ``id``."""
    return {id(tensor): axes[name] for name, tensor in named_tensors(target, example).items() if name in axes}


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
        expected = flat.like(exported.output, more)
        if all(difference(a, b) is None for a, b in zip(expected, exported.run(more), strict=True)):
            return None
    except Exception:
        logging.getLogger(__name__).debug("no batch but that of the example", exc_info=True)
    (size,), independent = sizes, _are_independent(exported, flat, tensors)
    return FixedBatch(size, next(filter(None, map(line_in, stacks)), ""), independent=independent)


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
        expected, got = flat.like(exported.output, fewer), exported.run(list(filled))
        same_constants = bool(flat.returned.structure == exported.output)  # a size among them is another one
    except Exception:
        logging.getLogger(__name__).debug("not of fewer samples", exc_info=True)
        return False
    of_batch = same_constants and all(t.dim() and len(t) == size for t in got)
    return of_batch and all(difference(a, b[:-1]) is None for a, b in zip(expected, got, strict=True))


def _program(flat: _Flat, tensors: list[Tensor], axes: Mapping[int, Mapping[int, str]], inner: str) -> ExportedProgram:
    batches = {t.shape[0] for t in tensors if t.dim()}
    others = [dict.fromkeys(axes.get(id(t), {}), Dim.AUTO) for t in tensors]
    attempts: list[tuple[list[Tensor], Any]] = [(tensors, [others] if axes else None)]
    if batches:
        firsts = [{0: Dim.AUTO} if t.dim() and t.shape[0] > 1 else {} for t in tensors]
        attempts.insert(0, (tensors, [[first | more for first, more in zip(firsts, others, strict=True)]]))
    if len(batches) == 1:
        batch = Dim("batch")
        # torch.export takes a size of 0 or 1 for a constant.
        larger = [torch.cat([t, t]) if t.dim() else t for t in tensors] if batches == {1} else tensors
        attempts.insert(
            0, (larger, [[more | {0: batch} if t.dim() else {} for t, more in zip(tensors, others, strict=True)]])
        )
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
    raise ValueError(reason(flat.target, failure, inner)) from failure


def _check_call(flat: _Flat, tensors: list[Tensor]) -> None:
    """Refuse inputs that the module itself cannot take."""
    try:
        flat([t.clone() for t in tensors])
    except Exception as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
        raise ValueError(
            f"{type(flat.target).__name__} cannot be called with inputs of the shapes {shapes}: {said(error)}. Give "
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
    """Without what torch.export warns of, logs and prints about attempts that are repeated in another way.

    Example:
        >>> with quiet():
        ...     warnings.warn("this attempt failed")
        ...     logging.getLogger("torch.export").isEnabledFor(logging.ERROR)
        False
    """
    with quiet_export(), layers_of_any_length(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

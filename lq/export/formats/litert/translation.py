"""A ``torch.export`` program, quantized or float, as the tensors and operators of a ``.tflite`` file."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from lq.export.formats.litert import nodes
from lq.export.formats.litert.call import OperatorCall, UnsupportedError, Weight, array
from lq.export.formats.litert.ends import Ends
from lq.export.formats.litert.file import LiteRTGrid
from lq.export.formats.litert.nibbles import with_int4_weights
from lq.export.formats.litert.operators import BATCH_NORMS, OPERATORS
from lq.export.formats.litert.operators.normalization import affine, folded
from lq.export.formats.litert.packing import packed
from lq.export.formats.litert.pending import Pending, has_integers, write_in_float, write_on_integers
from lq.export.formats.litert.tensors import FixedBatchError, Tensors, Value

_FLOAT_ENDS = Ends()
_CONVOLUTIONS = ("conv1d", "conv2d")


@dataclass
class Translated:
    """What a program has become.

    Args:
        net: tensors and operators.
        inputs: what the user gives, in order, by name.
        outputs: what comes out, in order.
        floating: what computes in float: names, and the operations.

    Example:
        >>> from lq.export.formats.program import float_program
        >>> program, _ = float_program(torch.nn.Softplus(), ((torch.zeros(4, 2),), {}))
        >>> made = translate(program)
        >>> list(made.inputs), [made.net.shape(value) for value in made.outputs], made.floating
        (['input'], [(Size(length=1, changes=True), Size(length=2, changes=False))], {'softplus': 'softplus'})
        >>> len(made.content(["made"], "a function")) > 1000
        True
    """

    net: Tensors = field(default_factory=Tensors)
    inputs: dict[str, Value] = field(default_factory=dict)
    outputs: list[Value] = field(default_factory=list)
    floating: dict[str, str] = field(default_factory=dict)

    def content(
        self, outputs: Sequence[str], about: str, ends: Ends = _FLOAT_ENDS, int4_weights: bool = False
    ) -> bytes:
        """The bytes of the file.

        Args:
            outputs: their names.
            about: what the model is.
            ends: as for :func:`translate`.
            int4_weights: whether weights of four bits are stored in four.
        """
        named = zip(outputs, self.outputs, strict=True)
        leaving = {name: ends.leaving(self.net, value, name) for name, value in named}
        file = with_int4_weights(self.net.file) if int4_weights else self.net.file
        return packed(file, {name: value.tensor for name, value in self.inputs.items()}, leaving, about)


def translate(program: ExportedProgram, ends: Ends = _FLOAT_ENDS) -> Translated:
    """Write a program operation by operation.

    Args:
        program: of :func:`lq.export.formats.program.export_program` with int8 activations, or a float one.
        ends: what inputs and outputs are.

    Returns:
        all that goes into the file.

    Raises:
        UnsupportedError: naming the operation that LiteRT has no operator for.
        FixedBatchError: if it cannot be written for a batch of any size.

    Example:
        >>> from lq.export.formats.litert.listing import listing
        >>> from lq.export.formats.program import export_program
        >>> from lq.ptq.static import prepare_static
        >>> x = torch.tensor([[-1.0, 1.0]])
        >>> prepared = prepare_static(torch.nn.Sequential(torch.nn.Linear(2, 9), torch.nn.ReLU()), [x], "litert")
        >>> program, _ = export_program(prepared, ((x,), {}), signed=True)
        >>> print(listing(translate(program).net.file))
        quantize_per_tensor: 0.007843 * (int8 + 1) [batch, 2] = QUANTIZE(input)
        0: ... * (int8 + 128) [batch, 9] = FULLY_CONNECTED(quantize_per_tensor, 0/weight: scales * int8 [9, 2],
        0/bias: scales * int32 [9], keepNumDims=True)
    """
    return _Translator(nodes.in_known_operations(program, frozenset(OPERATORS)), ends).run()


class _Translator:
    def __init__(self, program: ExportedProgram, ends: Ends) -> None:
        self.program, self.ends = program, ends
        self.constants = nodes.ProgramConstants.of(program)
        self.done = Translated()
        self.net = self.done.net
        self.values: dict[Any, Any] = {}

    def run(self) -> Translated:
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                held = self.constants.tensors
                self.values[node] = held[node.name] if node.name in held else self._input(node)
            elif node.op == "call_function":
                self.values[node] = self._call(node)
            elif node.op == "output":
                self.done.outputs = [self._output(source) for source in node.args[0] if isinstance(source, fx.Node)]
        return self.done

    def _output(self, node: fx.Node) -> Value:
        """A result in its own type: integers may have been computed as floats."""
        value, dtype = self._value(node), node.meta["val"].dtype
        if isinstance(value, Tensor):
            value = Value(self.net.constant(array(value), node.name), tuple(range(value.dim())))
        return value if dtype.is_floating_point else self.net.cast(value, str(dtype).removeprefix("torch."))

    def _input(self, node: fx.Node) -> Value | None:
        example = node.meta.get("val")
        if not isinstance(example, Tensor):
            return None
        shape, dtype = nodes.sizes_of(example), str(example.dtype).removeprefix("torch.")
        if example.is_floating_point() and dtype != "float32":
            raise UnsupportedError(
                f"input {node.name!r} is {dtype}, and LiteRT computes in float32: give the model float32, and cast it "
                "in the forward if the code needs another type"
            )
        order = self.ends.order(len(shape))
        grid = nodes.grid_of_input(node) if self.ends.int8_inputs and example.is_floating_point() else None
        value = Value(self.net.new(node.name, [shape[d] for d in order], grid, dtype), order)
        self.done.inputs[node.name] = value
        return value

    # ---- one node -----------------------------------------------------------------------------------------------

    def _call(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            return self.values[node.args[0]][node.args[1]]
        if not nodes.gives_tensors(node):
            return None  # a size
        name = nodes.operation(node)
        if name == nodes.QUANTIZE:
            return self._quantized(node)
        if name in (nodes.DEQUANTIZE, nodes.DEQUANTIZE_CHANNELS):
            return self._dequantized(node)
        if all(isinstance(self.values[source], (Tensor, Weight)) for source in node.all_input_nodes):
            return self._computed(node)
        if name not in OPERATORS and all(self.values[source] is None for source in node.all_input_nodes):
            raise FixedBatchError(f"{node.name} makes a tensor of the batch's size")
        if name not in OPERATORS:
            raise UnsupportedError(f"LiteRT has no operator for {name} ({node.name})")
        return self._activation(node) or self._batch_norm(node) or self._operation(node)

    def _computed(self, node: fx.Node) -> Any:
        """What depends on constants alone."""
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._plainly)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _plainly(self, node: fx.Node) -> Any:
        value = self.values[node]
        return value.real() if isinstance(value, Weight) else value

    def _activation(self, node: fx.Node) -> Pending | None:
        """An activation behind an operation that is not written yet, so that both can be one."""
        source, bounds = self.values.get(node.args[0]) if node.args else None, nodes.bounds_of(node)
        if bounds is None or not isinstance(source, Pending):
            return None
        both = replace(source, bounds=source.bounds.within(bounds))
        return both if len(node.users) == 1 or both.bounds.activation else None

    def _batch_norm(self, node: fx.Node) -> Pending | list[Any] | None:
        """A BatchNorm of a float model, folded into the convolution in front of it where there is one."""
        name = nodes.operation(node)
        if name not in BATCH_NORMS:
            return None
        given = nodes.named(node)
        constants = {key: self.values[held] for key, held in given.items() if isinstance(held, fx.Node)}
        source = self.values[node.args[0]]
        folds = isinstance(source, Pending) and nodes.operation(source.node) in _CONVOLUTIONS
        if folds and isinstance(self.values[source.node.args[1]], Tensor):
            made: Any = replace(source, affine=affine(constants, given["eps"]))
        else:
            made = self._written(Pending(node), None)
        return [made] if name != BATCH_NORMS[0] else made

    def _operation(self, node: fx.Node) -> Any:
        known = OPERATORS[nodes.operation(node)]
        if known.moves:
            self._round_before(node)
            call = _with_tensors(self._described(node))
            if not known.leaves_grid(call):
                return known.build(call)
        waits = (known.int8 or known.fuses) and len(node.users) == 1
        return Pending(node) if waits else self._written(Pending(node), None)

    def _round_before(self, move: fx.Node) -> None:
        """Write what a move gets on the grid that its result is rounded to: which of the two is first is the same."""
        source = self.values.get(move.args[0])
        ahead = move
        while len(ahead.users) == 1 and _moves(ahead):
            ahead = next(iter(ahead.users))
        if isinstance(source, Pending) and nodes.operation(ahead) == nodes.QUANTIZE:
            self.values[move.args[0]] = self._written(source, nodes.grid_of(ahead))

    def _quantized(self, node: fx.Node) -> Value:
        source, grid = self.values[node.args[0]], nodes.grid_of(node)
        if isinstance(source, Pending):
            return self._written(source, grid)
        if isinstance(source, Tensor):  # as the state that a recurrence starts from
            assert callable(node.target)
            integers = node.target(source, *node.args[1:])
            return Value(self.net.constant(array(integers), node.name, grid), tuple(range(integers.dim())))
        return self.net.on_grid(source, grid, node.name)

    def _dequantized(self, node: fx.Node) -> Any:
        given, scale = node.args[:2]
        source = self.values[given]
        if not isinstance(source, Tensor):
            return source
        name = self.constants.layers.get(str(given), node.name)
        if nodes.operation(node) == nodes.DEQUANTIZE:
            return Weight(source, torch.tensor(scale), 0, name)
        axis = node.args[3]
        assert isinstance(axis, int)
        return Weight(source, self.values[scale], axis, name)

    # ---- writing ------------------------------------------------------------------------------------------------

    def _value(self, node: fx.Node) -> Any:
        """What a node has become, written now if it was not yet."""
        if isinstance(self.values[node], Pending):
            self.values[node] = self._written(self.values[node], None)
        return self.values[node]

    def _written(self, pending: Pending, grid: LiteRTGrid | None) -> Value:
        """The operation with its result on a grid if LiteRT can, else rounded to it afterwards."""
        name = nodes.operation(pending.node)
        known, call = OPERATORS[name], self._described(pending.node)
        if pending.affine is not None:
            call = folded(call, *pending.affine)
        on_integers = known.int8 and not known.only_float(call) and (known.clamps or has_integers(call))
        is_coarse = grid is not None and known.rounds_twice and pending.bounds.width < 127 * grid.scale
        if grid is not None and on_integers and not is_coarse:
            return write_on_integers(known, call, pending.bounds, grid)
        self.done.floating[call.name] = name
        made = write_in_float(known, call, pending.bounds)
        return made if grid is None else self.net.on_grid(made, grid, f"{call.name}/quantize")

    def _described(self, node: fx.Node) -> OperatorCall:
        given = nodes.named(node)
        resolved = {name: _mapped(argument, self._value) for name, argument in given.items()}
        example = node.meta["val"]
        example = example[0] if nodes.operation(node) in BATCH_NORMS[1:] else example
        shape = nodes.sizes_of(example) if isinstance(example, Tensor) else ()
        return OperatorCall(self.net, self._name(node, given, resolved), resolved, shape)

    def _name(self, node: fx.Node, given: Mapping[str, Any], resolved: Mapping[str, Any]) -> str:
        """That of the layer, or else of the node."""
        weight, source = resolved.get("weight"), str(given.get("weight"))
        return weight.name if isinstance(weight, Weight) else self.constants.layers.get(source, node.name)


def _moves(node: fx.Node) -> bool:
    known = OPERATORS.get(nodes.operation(node))
    return known is not None and known.moves


def _with_tensors(call: OperatorCall) -> OperatorCall:
    """With constants that are moved as tensors of the file."""
    arguments = {name: call.taken(a) if isinstance(a, Tensor) else a for name, a in call.arguments.items()}
    return replace(call, arguments=arguments)


def _mapped(argument: Any, function: Callable[[fx.Node], Any]) -> Any:
    if isinstance(argument, (list, tuple)):
        return [_mapped(part, function) for part in argument]
    return function(argument) if isinstance(argument, fx.Node) else argument

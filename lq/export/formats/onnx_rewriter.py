"""Writes calls into a ``torch.export`` program, and refuses those that no file can hold."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

from lq.compat.torch_private import computed_as_exported


class RefusedCallError(ValueError):
    """A call that a file cannot hold.

    Args:
        reason: what is wrong, and what to do.
        operation: as :func:`lq.tracing.origin.operation_of` has it.
        number: of the call among those of this operation; ``None`` if it is not known.

    Example:
        >>> import torch
        >>> from lq.export.formats.onnx_calls import calls_for_onnx
        >>> try:
        ...     calls_for_onnx(lambda x: torch.diagonal_scatter(x, x[0]), torch.ones(2, 2))
        ... except RefusedCallError as error:
        ...     print(error.operation, error.number, error)
        diagonal_scatter 0 torch.onnx has no translation of aten.diagonal_scatter: ...
    """

    def __init__(self, reason: str, operation: str, number: int | None = 0) -> None:
        super().__init__(reason)
        self.operation, self.number = operation, number


class Rewriter:
    """Writes calls in front of a node of a graph.

    Args:
        graph: of the program.
        node: the call to replace.
        program: where constants go; without one there can be none.

    Example:
        >>> import torch
        >>> program = torch.export.export(torch.nn.ReLU(), (torch.ones(2),))
        >>> relu = next(node for node in program.graph.nodes if node.op == "call_function")
        >>> made = Rewriter(program.graph, relu, program).call(torch.ops.aten.neg.default, relu.args[0])
        >>> made.next is relu, made.meta["val"].shape
        (True, torch.Size([2]))
    """

    def __init__(self, graph: fx.Graph, node: fx.Node, program: ExportedProgram | None = None) -> None:
        self.graph, self.node, self.program = graph, node, program

    def call(self, operation: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A call of an operation, with what exporters ask of a node."""
        values = fx.map_arg((args, kwargs), lambda node: node.meta["val"])
        with self.graph.inserting_before(self.node):
            made = self.graph.call_function(operation, args, kwargs)
        made.meta = {**self.node.meta, "val": computed_as_exported(operation, *values[0], **values[1])}
        return made

    def constant(self, value: Tensor) -> fx.Node:
        """A tensor that the program holds."""
        assert self.program is not None
        name = f"lq_constant_{len(self.program.constants)}"
        with self.graph.inserting_before(next(iter(self.graph.nodes))):
            made = self.graph.placeholder(name)
        made.meta["val"] = self.node.meta["val"].fake_mode.from_tensor(value, static_shapes=True)
        self.program.constants[name] = value
        held = InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(made.name), target=name, persistent=None)
        self.program.graph_signature.input_specs.insert(0, held)
        return made

    def held(self, node: fx.Node) -> Tensor | None:
        """The tensor that the program holds for a node; ``None`` if that is computed."""
        assert self.program is not None
        specs = self.program.graph_signature.input_specs
        target = next((spec.target for spec in specs if getattr(spec.arg, "name", None) == node.name), None)
        return None if target is None else {**self.program.state_dict, **self.program.constants}.get(target)


def no_translation(operation: str) -> str:
    """What is said of an operation that torch.onnx cannot write, and what to do.

    Example:
        >>> no_translation("aten.cummax").partition(":")[0]
        'has no translation of aten.cummax'
    """
    return (
        f"has no translation of {operation}: write it with other operations, or export 'torch' or 'pt2', which take it"
    )

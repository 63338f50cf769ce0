"""How an exported model is called: its tensors in order, whatever arguments the original one takes them from."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from lq.compat.torch_private import tree_flatten, tree_leaves, tree_map, tree_unflatten, treespec_dumps, treespec_loads
from lq.export.artifact.calls import in_float32
from lq.export.artifact.plain import as_plain, holds_tensors, is_plain, is_plain_data
from lq.export.artifact.tensor_spec import TensorSpec
from lq.export.artifact.treespec import load_treespec, nothing_to_import
from lq.fields import Field
from lq.tracing.axes import named_after, named_tensors, open_axes
from lq.tracing.batch import FixedBatch, fixed_batch
from lq.tracing.images import images_of
from lq.tracing.structure import Inputs, in_plain_containers, in_plain_tuples

_TENSOR = "tensor"
_HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Signature:
    """The call that a model was exported for.

    Args:
        parameters: names of the arguments of the original ``forward``, in order.
        constants: what its arguments that are no tensors were, or have as default: the exported model knows no other.
        inputs: its tensors, in the order in which the exported model takes them.
        output: structure of what it returns, as :func:`torch.utils._pytree.treespec_dumps` writes it.
        leaves: what stands in the places of that structure: "tensor", or a constant.
        fixed_batch: the only batch size that it is right for, where the code of the model has made it a constant.
        images: whether the batch is a list of ``fixed_batch`` images of one size.
        independent: whether a batch may be filled up to ``fixed_batch``, as its samples do not depend on each other.
        spec: ``output`` as torch has read it.

    Example:
        >>> net = nn.Linear(4, 2)
        >>> signature = Signature.of(net, ((torch.zeros(8, 4),), {}), net(torch.zeros(8, 4)))
        >>> print(signature)
        (input: float32(batch, 4))
        >>> [tuple(t.shape) for t in signature.tensors((), {"input": torch.zeros(3, 4)})]
        [(3, 4)]
    """

    parameters: tuple[str, ...]
    constants: Mapping[str, Any]
    inputs: tuple[TensorSpec, ...]
    output: str
    leaves: tuple[Any, ...]
    fixed_batch: int | None = None
    images: bool = False
    independent: bool = False
    spec: Any = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, model: nn.Module, example: Inputs, output: Any) -> Signature:
        """The signature of a call of ``model`` by ``example`` that returned ``output``."""
        declared = inspect.signature(model.forward).parameters
        parameters = tuple(declared)
        named = in_plain_containers(named_after(parameters, *example))
        defaults = {name: p.default for name, p in declared.items() if p.default is not p.empty}
        constants = {
            name: as_plain(value)
            for name, value in {**defaults, **named}.items()
            if not holds_tensors(value) and (name in named or is_plain_data(value))
        }
        unknown = [name for name, value in constants.items() if not is_plain_data(value)]
        if unknown:
            raise ValueError(
                f"forward was called with {unknown[0]}={named[unknown[0]]!r}, and a file cannot hold a "
                f"{type(named[unknown[0]]).__name__}. Make it an attribute of the module, or give text, numbers, or "
                "lists, tuples and dicts (with text as keys) of those."
            )
        fixed = fixed_batch(model)
        specs = []
        for (name, tensor), axes in zip(named_tensors(model, example).items(), open_axes(model, example), strict=True):
            shape = tuple(axes.get(dim, size) for dim, size in enumerate(tensor.shape))
            dtype = str(in_float32(model, tensor).dtype).removeprefix("torch.")
            specs.append(TensorSpec(name, shape, dtype, tuple(tensor.shape)))
        leaves, spec = tree_flatten(in_plain_tuples(output))
        found = () if fixed is None else (fixed.size, fixed.images, fixed.independent)
        structure = _dumps(spec, len(leaves))
        return cls(parameters, constants, tuple(specs), structure, tuple(map(_constant, leaves)), *found)

    def arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call that hold tensors, by name and in order.

        Raises:
            ValueError: if another one is not what the model was exported with.
        """
        named = in_plain_containers(named_after(self.parameters, args, kwargs))
        for name, value in named.items():
            if holds_tensors(value):
                known = any(spec.name == name or spec.name.startswith(f"{name}_") for spec in self.inputs)
                if not known and (name in kwargs or name in self.parameters):
                    remedy = "; leave it out in evaluation" if name in self.constants else ""
                    raise ValueError(f"the exported model takes {self}, but was called with {name}=...{remedy}")
            elif hasattr(value, "__array__"):
                raise ValueError(
                    f"{name} is a {type(value).__name__}, but the exported model takes tensors: torch.as_tensor(x)."
                )
            elif as_plain(value) != self.constants.get(name):
                how = f"with {name}={self.constants[name]!r}" if name in self.constants else f"without {name}"
                raise ValueError(
                    f"the model was exported {how}, which is fixed in it, but was called with {name}={value!r}."
                )
        return {name: self._in_float32(value) for name, value in named.items() if holds_tensors(value)}

    def _in_float32(self, held: Any) -> Any:
        """With float32 in the place of types that no int8 model takes, whatever the original one was trained in."""
        if any(spec.dtype in ("float64", "bfloat16", "float16") for spec in self.inputs):
            return held
        return tree_map(lambda t: t.float() if isinstance(t, Tensor) and t.dtype in _HALVES else t, held)

    def tensors(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The tensors of a call in the order of ``inputs``.

        Raises:
            ValueError: if they are not as many, or another argument is not what the model was exported with.
        """
        named = self.arguments(args, kwargs)
        found = [leaf for value in named.values() for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
        if len(found) != len(self.inputs):
            lacking = [spec.name for spec in self.inputs if spec.name not in named]
            how = f"without {', '.join(lacking)}" if len(found) + len(lacking) == len(self.inputs) else ""
            plural = "" if len(found) == 1 else "s"
            how = how or f"with {len(found)} tensor{plural}"
            raise ValueError(f"the exported model takes {self}, but was called {how}.")
        return found

    def check_types(self, tensors: Sequence[Tensor]) -> None:
        """Refuse tensors of another type than the model was exported for.

        Args:
            tensors: of a call, in the order of ``inputs``.

        Raises:
            ValueError: naming the first, and how to convert it.

        Example:
            >>> net = nn.Linear(4, 2)
            >>> signature = Signature.of(net, ((torch.zeros(1, 4),), {}), torch.zeros(1, 2))
            >>> signature.check_types([torch.zeros(1, 4, dtype=torch.uint8)])
            Traceback (most recent call last):
            ValueError: the exported model takes input as float32, but got uint8. Convert it: input.to(torch.float32).
        """
        for spec, tensor in zip(self.inputs, tensors, strict=True):
            given = str(tensor.dtype).removeprefix("torch.")
            if given != spec.dtype:
                raise ValueError(
                    f"the exported model takes {spec.name} as {spec.dtype}, but got {given}. Convert it: "
                    f"{spec.name}.to(torch.{spec.dtype})."
                )

    def restore(self, tensors: Sequence[Tensor]) -> Any:
        """The output as the original model returns it, from its tensors.

        Example:
            >>> net = nn.Linear(4, 2)
            >>> signature = Signature.of(net, ((torch.zeros(1, 4),), {}), {"logits": torch.zeros(1, 2), "loss": None})
            >>> signature.restore([torch.ones(1)])
            {'logits': tensor([1.]), 'loss': None}
        """
        rest = iter(tensors)
        spec = load_treespec(self.output, "output") if self.spec is None else self.spec
        return tree_unflatten([next(rest) if leaf == _TENSOR else leaf for leaf in self.leaves], spec)

    @property
    def static(self) -> Signature:
        """The same for a file that holds the sizes of the example, but for the batch."""
        return replace(self, inputs=tuple(spec.static for spec in self.inputs))

    @property
    def outputs(self) -> int:
        """Number of output tensors."""
        return self.leaves.count(_TENSOR)

    @property
    def batch(self) -> FixedBatch | None:
        """The only batch that it is right for."""
        if self.fixed_batch is None:
            return None
        return FixedBatch(self.fixed_batch, images=self.images, independent=self.independent)

    def check_batch(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Refuse a batch that the model would compute wrong numbers for, and no error.

        Raises:
            ValueError: if the batch size is fixed and that of the call is another one.
        """
        batch = self.batch
        if batch is not None and not (batch.images or batch.independent):
            batch.check(t.shape[0] for t in self.tensors(args, kwargs) if t.dim())

    def check_images(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Refuse images of another size, for which a graph would compute something else.

        Raises:
            ValueError: if there are any.
        """
        images = images_of((tuple(args), dict(kwargs))) if self.images else None
        wanted = self.inputs[0].shape if images else ()
        others = sorted({tuple(image.shape) for image in images or ()} - {wanted})
        if others:
            raise ValueError(
                f"the model was exported for images of the size {wanted}, but was called with "
                f"{', '.join(map(str, others))}. Resize them to that size."
            )

    def resized(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, list[int]]:
        """The dimensions in which a call differs from the sizes that the model was exported for, by input.

        The batch is not among them; :meth:`check_batch` looks at it.
        """
        if self.images:
            return {}
        first, found = 0 if self.fixed_batch is None else 1, dict[str, list[int]]()
        for spec, tensor in zip(self.inputs, self.tensors(args, kwargs), strict=True):
            if tensor.dim() == len(spec.shape):
                sizes = list(enumerate(zip(spec.shape, tensor.shape, strict=True)))[first:]
                dims = [dim for dim, (want, got) in sizes if not isinstance(want, str) and want != got]
                found |= {spec.name: dims} if dims else {}
        return found

    def misfit(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
        """What is wrong with a call, in words; ``None`` if its tensors are as those of the example."""
        tensors = self.tensors(args, kwargs)
        wrong = [
            f"{spec.name} is {str(t.dtype).removeprefix('torch.')}{tuple(t.shape)}"
            for spec, t in zip(self.inputs, tensors, strict=True)
            if not spec.fits(t)
        ]
        return f"the model was exported for {self}, but {', '.join(wrong)}" if wrong else None

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.inputs))})"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        inputs = [{**asdict(spec), "shape": list(spec.shape), "sizes": list(spec.sizes)} for spec in self.inputs]
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "spec"}
        return {**plain, "inputs": inputs, "constants": dict(self.constants)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "signature", trust: bool = False) -> Signature:
        """From plain data, of whatever origin.

        Args:
            data: what :meth:`to_dict` has returned.
            where: file and field that it comes from, for messages.
            trust: import what the structure of the output names.

        Raises:
            ValueError: naming file and field that are not as :meth:`to_dict` makes them.
        """
        given = Field(data, where)
        signature = cls(
            tuple(name.text() for name in given["parameters"].each()),
            {name: _checked_data(value) for name, value in given["constants"].items()},
            tuple(TensorSpec.read(entry) for entry in given["inputs"].each()),
            given["output"].text(),
            tuple(_checked_constant(leaf) for leaf in given["leaves"].each()),
            None if given["fixed_batch"].value is None else given["fixed_batch"].integer(1),
            given.get("images", False).flag(),
            given.get("independent", False).flag(),
        )
        output = given["output"]
        spec = treespec_loads(output.text()) if trust else load_treespec(output.text(), output.where)
        if spec.num_leaves != len(signature.leaves):
            raise given["leaves"].error(f"a list of {spec.num_leaves} entries, as many as 'output' has leaves")
        # Read once, as it was checked: a class that is registered later must not change what the text means.
        return replace(signature, spec=spec)


def _constant(leaf: Any) -> Any:
    return _TENSOR if isinstance(leaf, Tensor) else leaf if is_plain(leaf) else None


def _dumps(spec: Any, count: int) -> str:
    # What torch cannot write down, as keys that are tuples, or would have to import: what it holds comes as a tuple.
    try:
        text = treespec_dumps(spec)
    except Exception:
        text = ""
    return text if text and nothing_to_import(text) else treespec_dumps(tree_flatten(tuple(range(count)))[1])


def _checked_constant(given: Field) -> Any:
    if not is_plain(given.value):
        raise given.error("text, a number, true, false or null")
    return given.value


def _checked_data(given: Field) -> Any:
    if not is_plain_data(given.value):
        raise given.error("text, a number, true, false, null, or lists and mappings of those")
    return given.value

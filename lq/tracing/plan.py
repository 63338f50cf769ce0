"""The plan: plain data that says what was quantized, how, and what stays float and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lq.messages import some_of

if TYPE_CHECKING:
    from lq.tracing.sites import Sites


@dataclass(frozen=True)
class LayerPlan:
    """One quantizable layer.

    Args:
        name: dotted module name.
        kind: class name of the float layer.
        fused: what runs inside its quantized kernel, e.g. ``("BatchNorm2d", "ReLU6")``.
        weight: grid of the weight, or ``None`` if the layer stays float.
        reason: why it stays float, else empty.
        work: multiply-accumulates of one call of the model with the example; 0 if unknown.
        line: the user's line that calls it, "file:line, in function"; "" if unknown.

    Example:
        >>> from torch import nn
        >>> from lq.backends.prepare import plan_of, prepare
        >>> row = plan_of(prepare(nn.Sequential(nn.Linear(4, 2), nn.ReLU()))).layers[0]
        >>> row.name, row.kind, row.fused, row.weight
        ('0', 'Linear', ('ReLU',), 'int7 [-63, 63] per channel')
    """

    name: str
    kind: str
    fused: tuple[str, ...] = ()
    weight: str | None = None
    reason: str = ""
    work: int = 0
    line: str = ""


@dataclass(frozen=True)
class ProductPlan:
    """A product of matrices that is no layer, such as attention's two.

    Args:
        name: the operation, in the module that calls it.
        kind: the operation.
        work: multiply-accumulates.
        line: the user's line.
        reason: why it computes in float; "" if it is one of integers.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lq.backends.prepare import plan_of, prepare
        >>> net = nn.TransformerEncoderLayer(4, 1, 8, batch_first=True)
        >>> (product,) = plan_of(prepare(net, example_args=(torch.ones(1, 3, 4),))).products
        >>> product.name, product.work  # two times 3 x 3 x 4
        ('self_attn.scaled_dot_product_attention', 72)
        >>> product.reason
        "attention computes in float unless QConfig(attention='int8') says otherwise"
    """

    name: str
    kind: str
    work: int
    line: str
    reason: str


@dataclass(frozen=True)
class TensorPlan:
    """One fake quantizer.

    Args:
        name: in the state of the model.
        after: the tensor that it stands behind.
        grid: of that.
        absorbs: the activation that its clamp computes.

    Example:
        >>> from torch import nn
        >>> from lq.backends.prepare import plan_of, prepare
        >>> plan_of(prepare(nn.Sequential(nn.Linear(4, 2), nn.ReLU()))).tensors[1]
        TensorPlan(name='fq_0', after='0', grid='uint8 [0, 255] affine, moving_average_minmax', absorbs='relu')
    """

    name: str
    after: str
    grid: str
    absorbs: str = "none"


@dataclass(frozen=True)
class Plan:
    """What is quantized, what stays in float, and why.

    Args:
        model: class name.
        qconfig: name of the preset, and of the backend if that is not "fx".
        layers: one row for every quantizable layer.
        tensors: one row for every fake quantizer.
        float_ops: names of the operations that compute in float.
        notes: notes of the backend on the model.
        sites: where the module quantizes.
        products: matrix products that are not layers, such as attention's.
        inputs: what one call of the model takes, without values; see :func:`lq.tracing.inputs.describe_inputs`.
        modules: dotted name and class of every module, so that another architecture is noticed.
        kept: names of the layers and tensors at the ends of the network that keep the bits of the preset.

    Example:
        >>> plan = Plan("Net", "portable", (LayerPlan("fc", "Linear", ("ReLU",), "int7 [-63, 63] per channel"),), ())
        >>> print(plan)
        Net, qconfig portable: 1 of 1 layers quantized, 0 fake quantizers, other operations in float: 0
          fc  Linear + ReLU  weight int7 [-63, 63] per channel
    """

    model: str
    qconfig: str
    layers: tuple[LayerPlan, ...]
    tensors: tuple[TensorPlan, ...]
    float_ops: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    sites: Sites | None = None
    products: tuple[ProductPlan, ...] = ()
    inputs: Any = None
    modules: tuple[tuple[str, str], ...] = ()
    kept: tuple[str, ...] = ()

    @property
    def work(self) -> int:
        """All multiply-accumulates that were counted."""
        return sum(row.work for row in self.layers) + sum(row.work for row in self.products)

    @property
    def share(self) -> float | None:
        """Share of the multiply-accumulates that are done in int8, in [0, 1]; ``None`` if nobody has counted them."""
        done = sum(row.work for row in self.quantized) + sum(row.work for row in self.int8_products)
        return done / self.work if self.work else None

    @property
    def warning(self) -> str | None:
        """What to say if less than half of the work runs in int8.

        Example:
            >>> rows = (LayerPlan("a", "Linear", weight="int8", work=1), LayerPlan("b", "Linear", reason="x", work=3))
            >>> Plan("Net", "portable", rows, ()).warning
            'only 25% of the work of Net runs in int8; the largest part that does not is b: x'
        """
        if self.share is None or self.share >= 0.5 or not self.in_float:
            return None
        return (
            f"only {self.share:.0%} of the work of {self.model} runs in int8; the largest part that does not is "
            f"{_in_float(self.in_float[0])}"
        )

    @property
    def in_float(self) -> tuple[LayerPlan | ProductPlan, ...]:
        """What does its work in float, the largest part first."""
        rows: list[LayerPlan | ProductPlan] = [row for row in self.layers if row.weight is None and row.work]
        rows += [row for row in self.products if row.reason]
        return tuple(sorted(rows, key=lambda row: -row.work))

    @property
    def int8_products(self) -> tuple[ProductPlan, ...]:
        """The products of two activations that are quantized."""
        return tuple(row for row in self.products if not row.reason)

    @property
    def quantized(self) -> tuple[LayerPlan, ...]:
        """The layers that are quantized."""
        return tuple(layer for layer in self.layers if layer.weight is not None)

    @property
    def about_ends(self) -> str | None:
        """What to say if the ends of the network have more bits than the rest of it.

        Example:
            >>> Plan("Net", "portable", (), (), kept=("conv1", "fc")).about_ends
            "first and last layers keep the preset's bits: conv1, fc; QConfig(keep='nothing') gives them fewer, too"
        """
        if not self.kept:
            return None
        kept = some_of(self.kept, 6)
        return f"first and last layers keep the preset's bits: {kept}; QConfig(keep='nothing') gives them fewer, too"

    def summary(self) -> str:
        """One line."""
        share = "" if self.share is None else f", {self.share:.0%} of the work"
        products = f" and {len(self.int8_products)} products of attention" if self.int8_products else ""
        return (
            f"{self.model}, qconfig {self.qconfig}: {len(self.quantized)} of {len(self.layers)} layers{products} "
            f"quantized{share}, {len(self.tensors)} fake quantizers, other operations in float: {len(self.float_ops)}"
        )

    def __str__(self) -> str:
        width = max((len(layer.name) for layer in self.layers), default=0)
        rows = [self.summary()]
        for layer in self.layers:
            what = " + ".join((layer.kind, *layer.fused))
            rows.append(f"  {layer.name:<{width}}  {what}  " + _state(layer))
        rows += [f"  {row.name}  {row.kind} of two activations" for row in self.int8_products]
        for tensor in self.tensors:
            absorbs = "" if tensor.absorbs == "none" else f", absorbs {tensor.absorbs}"
            rows.append(f"  fake quantizer {tensor.name} behind {tensor.after}: {tensor.grid}{absorbs}")
        if self.float_ops:
            kinds = dict(self.modules)
            names = (f"{name} ({kinds[name]})" if name in kinds else name for name in self.float_ops)
            rows.append(f"  in float: {', '.join(names)}")
        total = self.work
        rows += [f"  {row.work / total:.1%} of the work in float: {_in_float(row)}" for row in self.in_float[:5]]
        rows += [f"  {note}" for note in (self.about_ends, *self.notes) if note]
        return "\n".join(rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for manifests."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Plan:
        """What :meth:`to_dict` made plain.

        Example:
            >>> plan = Plan("Net", "portable", (LayerPlan("fc", "Linear", ("ReLU",)),), (), notes=("a note",))
            >>> Plan.from_dict(plan.to_dict()) == plan
            True
        """
        from lq.tracing.sites import Sites  # which imports nothing of this room

        kinds = {"layers": LayerPlan, "tensors": TensorPlan, "products": ProductPlan}
        values: dict[str, Any] = {
            name: _rows(kinds[name], rows) if name in kinds else rows for name, rows in plain.items()
        }
        values |= {name: tuple(plain[name]) for name in ("float_ops", "notes", "kept")}
        values["modules"] = tuple((path, kind) for path, kind in plain["modules"])
        values["sites"] = None if plain["sites"] is None else Sites.from_dict(plain["sites"])
        return cls(**values)


def _rows(kind: Any, plain: Any) -> tuple[Any, ...]:
    return tuple(kind(**{**row, **({"fused": tuple(row["fused"])} if "fused" in row else {})}) for row in plain)


def _in_float(row: LayerPlan | ProductPlan) -> str:
    where = f" ({row.line})" if row.line else ""
    return f"{row.name}{where}: {row.reason}"


def _state(layer: LayerPlan) -> str:
    return f"weight {layer.weight}" if layer.weight else f"stays float: {layer.reason}"

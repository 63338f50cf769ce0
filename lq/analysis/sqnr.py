"""Signal-to-quantization-noise ratio of every weight and every activation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypedDict

from torch import Tensor, fx, nn
from torch.utils.hooks import RemovableHandle

from lq.analysis.tensors import QuantizedTensor, evaluating, finite_output, require_ranges, tensors_of
from lq.backends.prepare import state_of
from lq.console import BatchCounter
from lq.conversion.convert import convert
from lq.conversion.graph import as_graph
from lq.conversion.int8 import Int8Layer
from lq.metrics import SQNR, sqnr
from lq.ptq.batches import RunBatch, first_batches, run_batch
from lq.ptq.layers import layers_of
from lq.ptq.weights import folded_weights
from lq.tracing.choice import behind_choices

_DEAD = 1e-6  # channels that are smaller than this share of the largest one have nothing to lose


class SqnrRow(TypedDict):
    """One tensor.

    Args:
        name: the layer, the operation behind which it stands, or "output".
        kind: "weight", "activation" or "output".
        grid: the integers it is rounded to.
        sqnr_db: this tensor alone rounded, against itself in float; None for the output.
        worst_channel_db: the same for the output channel of a weight that fares worst; None for activations. Where
            channels are uneven it is far below ``sqnr_db``, which the largest ones dominate.
        accumulated_db: the tensor in the fake-quantized model against that in the float one, everything before it
            quantized too; None for weights.
        int8_db: the same for the int8 model; None where it has no such tensor or was not asked for.

    Example:
        >>> import torch
        >>> from lq.ptq.static import prepare_static
        >>> prepared = prepare_static(nn.Sequential(nn.Linear(4, 2)), [torch.eye(4)])
        >>> rows = sqnr_per_layer(prepared, [torch.eye(4)])
        >>> [(row["name"], row["grid"]) for row in rows]
        [('input_1', 'uint8 [0, 255] affine, histogram'), ('0', 'int7 [-63, 63] per channel'),
         ('0', 'uint8 [0, 255] affine, histogram'), ('output', 'float')]
    """

    name: str
    kind: str
    grid: str
    sqnr_db: float | None
    worst_channel_db: float | None
    accumulated_db: float | None
    int8_db: float | None


def sqnr_per_layer(
    prepared: nn.Module, batches: Iterable[Any], call: RunBatch | None = None, limit: int = 8, int8: bool = False
) -> list[SqnrRow]:
    r"""SQNR of every weight and activation, float against fake-quantized and, if wanted, against int8.

    .. math:: 20 \log_{10} \frac{\lVert x \rVert_2}{\lVert x - y \rVert_2}

    Weights are compared with BatchNorm folded in. A low ``sqnr_db`` means that rounding this tensor to its grid loses
    much of it. Where ``accumulated_db`` falls from one row to the next, that layer adds noise.

    Args:
        prepared: from :func:`lq.prepare`, with ranges.
        batches: data, e.g. a DataLoader; all activations of one batch are held in memory at a time.
        call: how to run one batch; see :func:`~lq.ptq.batches.run_batch`.
        limit: batches to use.
        int8: also convert the model, and compare the tensors that its int8 layers write.

    Returns:
        rows in execution order, a layer's weight before its output, the model's output last.

    Raises:
        ValueError: if the model is not prepared or has no ranges, or there is no batch.

    Source:
        "QAT in practice, basics", after the post "Practical Quantization in PyTorch".

    Example:
        >>> from lq.ptq.static import prepare_static
        >>> import torch
        >>> model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(64, 4)
        >>> rows = sqnr_per_layer(prepare_static(model, [x]), [x])
        >>> [(row["name"], row["kind"]) for row in rows]  # doctest: +NORMALIZE_WHITESPACE
        [('input_1', 'activation'), ('0', 'weight'), ('0', 'activation'), ('2', 'weight'), ('2', 'activation'),
         ('output', 'output')]
    """
    require_ranges(prepared, "sqnr_per_layer()")
    prepared = as_graph(prepared)
    with evaluating(prepared):
        listener = _Listener(prepared, convert(prepared) if int8 else None)
        try:
            with BatchCounter("lq: SQNR", limit) as counter:
                for batch in first_batches(batches, limit, "sqnr_per_layer()"):
                    listener.take(batch, call or run_batch)
                    counter.advance()
        finally:
            listener.remove()
        return _rows(prepared, listener)


class _Listener:
    """Compares what passes the fake quantizers in the float run with the fake-quantized and the int8 one."""

    def __init__(self, prepared: fx.GraphModule, int8: fx.GraphModule | None) -> None:
        self.prepared, self.int8 = prepared, int8
        self.state = state_of(prepared)
        self.tensors = [t for t in tensors_of(prepared) if self.state.ready(t.quantizer.slot)]
        names = [*(t.name for t in self.tensors), "output"]
        self.alone, self.fake, self.real = ({name: SQNR(sync_on_compute=False) for name in names} for _ in range(3))
        self.several = self._behind_choices()
        self.exact: dict[str, list[Tensor]] = {}
        self.calls: dict[str, int] = {}
        self.run = "float"
        self.hooks: list[RemovableHandle] = []
        kernels = dict(int8.named_modules()) if int8 is not None else {}
        for tensor in self.tensors:
            self.hooks.append(tensor.quantizer.register_forward_hook(self._heard(tensor)))
            kernel = kernels.get("" if tensor.node is None else tensor.node.name)
            if isinstance(kernel, Int8Layer):
                self.hooks.append(kernel.register_forward_hook(self._heard(tensor)))

    def _behind_choices(self) -> set[str]:
        """Names of what holds other boxes in each run, so that nothing can be compared."""
        graph = self.prepared.graph
        behind = behind_choices(graph)
        targets = {str(node.target) for node in behind if node.op == "call_module"}
        modules = dict(self.prepared.named_modules())
        found = {t.name for t in self.tensors if any(modules[target] is t.quantizer for target in targets)}
        return found | ({"output"} if graph.output_node() in behind else set())

    def take(self, batch: Any, call: RunBatch) -> None:
        """Run one batch through all versions."""
        self.exact = {}
        versions: dict[str, nn.Module] = {"float": self.prepared, "fake": self.prepared}
        if self.int8 is not None:
            versions["int8"] = self.int8
        for self.run, model in versions.items():
            self.calls = {}
            self.state.fake_quant = self.run != "float"
            output = finite_output(call(model, batch), "sqnr_per_layer()")
            self._compare("output", output)
        self.state.fake_quant = True

    def remove(self) -> None:
        """Stop listening."""
        for hook in self.hooks:
            hook.remove()

    def _heard(self, tensor: QuantizedTensor) -> Callable[[nn.Module, Any, Tensor], None]:
        def hear(module: nn.Module, args: Any, output: Tensor) -> None:
            if self.run == "float":
                self.alone[tensor.name].update(output, tensor.round(output))
            elif output.is_quantized:
                scale, low, high = tensor.grid
                output = output.dequantize().clamp(low * scale, high * scale)
            self._compare(tensor.name, output)

        return hear

    def _compare(self, name: str, value: Tensor) -> None:
        if name in self.several:
            return
        if self.run == "float":
            self.exact.setdefault(name, []).append(value.clone())
            return
        number = self.calls[name] = self.calls.get(name, -1) + 1
        meter = self.fake if self.run == "fake" else self.real
        exact = self.exact[name][number]
        meter[name].update(exact, value.to(exact.device))


def _rows(prepared: fx.GraphModule, heard: _Listener) -> list[SqnrRow]:
    weights: dict[str, SqnrRow] = {}
    for layer in layers_of(prepared):
        exact, rounded, _ = folded_weights(layer.module, layer.norm)
        grid, alone = str(layer.module.weight_spec), float(sqnr(exact, rounded))
        weights[layer.name] = SqnrRow(
            name=layer.name,
            kind="weight",
            grid=grid,
            sqnr_db=alone,
            worst_channel_db=_worst_channel(exact, rounded, layer.module.channel_axis),
            accumulated_db=None,
            int8_db=None,
        )
    rows: list[SqnrRow] = []
    for tensor in heard.tensors:
        target = "" if tensor.node is None else str(tensor.node.target)
        if target in weights:
            rows.append(weights.pop(target))
        grid = str(heard.state.specs[tensor.quantizer.slot])
        rows.append(_row(tensor.name, "activation", grid, heard))
    return [*rows, *weights.values(), _row("output", "output", "float", heard)]


def _worst_channel(exact: Tensor, rounded: Tensor, axis: int) -> float:
    norms = exact.transpose(0, axis).flatten(1).norm(dim=1)
    alive = (norms > _DEAD * norms.max()).tolist()
    channels = zip(exact.unbind(axis), rounded.unbind(axis), alive, strict=True)
    return min((float(sqnr(a, b)) for a, b, lives in channels if lives), default=float("inf"))


def _row(name: str, kind: str, grid: str, heard: _Listener) -> SqnrRow:
    return SqnrRow(
        name=name,
        kind=kind,
        grid=grid,
        sqnr_db=_value(heard.alone[name]),
        worst_channel_db=None,
        accumulated_db=_value(heard.fake[name]),
        int8_db=_value(heard.real[name]),
    )


def _value(meter: SQNR) -> float | None:
    return float(meter.compute()) if meter.update_called else None

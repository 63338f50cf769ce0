"""What rounding weights and activations does to the output, all else in float."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx

from lq.analysis.bits.activations import Activations
from lq.analysis.tensors import compared_part, evaluating, finite_output
from lq.compat.float64 import as_float64
from lq.config.specs import WeightSpec
from lq.core.distillation import distillation_loss, is_class_scores
from lq.core.weight_quantizer import WeightQuantizer
from lq.ptq.batches import RunBatch
from lq.ptq.layers import QuantizedLayer, layers_of
from lq.ptq.switch import quantize_only, round_only

KL, NOISE = "KL divergence", "noise/signal"


@dataclass(frozen=True)
class _Reference:
    """Outputs of the float model, and whether they score classes."""

    outputs: Sequence[Tensor]
    scores: bool


class RoundingLoss:
    """The loss of a prepared graph that is rounded in part.

    Where the labels of all batches are classes, it is the Kullback-Leibler divergence of the class scores from those of
    the float model; for anything else the power of the noise in the output over that of the signal.

    Args:
        graph: prepared.
        batches: the data; they are kept.
        call: how to run one.
        target_fn: batch -> labels, or ``None``.
        advance: is called behind every batch.
        kernels: whether the tensors that layers with rounded weights read and write are rounded, too, as their int8
            kernels do it; the graph needs ranges then.
        activations: those of the graph, at several widths.

    Example:
        >>> import torch
        >>> from lq.backends.prepare import prepare
        >>> from lq.conversion.graph import as_graph
        >>> from lq.ptq.batches import run_batch
        >>> batch = torch.eye(4), torch.tensor([0, 1, 2, 3])
        >>> graph = as_graph(prepare(torch.nn.Sequential(torch.nn.Linear(4, 4)), example_args=batch[:1]))
        >>> RoundingLoss(graph, [batch], run_batch, lambda batch: batch[1], lambda: None).name
        'KL divergence'
        >>> RoundingLoss(graph, [batch], run_batch, lambda batch: None, lambda: None).name
        'noise/signal'
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        batches: Sequence[Any],
        call: RunBatch,
        target_fn: Callable[[Any], Any],
        advance: Callable[[], None],
        kernels: bool = False,
        activations: Activations | None = None,
    ) -> None:
        self.kernels, self.activations = kernels, activations
        self.graph, self.batches, self.call, self.advance = graph, batches, call, advance
        self.compared = compared_part(graph)
        self.layers = {layer.name: layer for layer in layers_of(graph)}
        with round_only(graph, []):
            outputs = self._outputs()
        labels = [target_fn(batch) for batch in batches]
        scores = all(is_class_scores(out, label) for out, label in zip(outputs, labels, strict=True))
        self.reference = _Reference(outputs, scores)

    @property
    def name(self) -> str:
        """What the loss is."""
        return KL if self.reference.scores else NOISE

    def of(self, grids: Mapping[str, WeightSpec], widths: Mapping[str, int] | None = None) -> float:
        """The loss with the weights of these layers on these grids, and these activations at these widths.

        Example:
            >>> import torch
            >>> from lq.conversion.graph import as_graph
            >>> from lq.backends.prepare import prepare
            >>> from lq.ptq.batches import run_batch
            >>> x = torch.randn(64, 4)
            >>> graph = as_graph(prepare(torch.nn.Sequential(torch.nn.Linear(4, 8)), example_args=(x,)))
            >>> loss = RoundingLoss(graph, [x], run_batch, lambda batch: None, lambda: None)
            >>> loss.name, loss.of({"0": WeightSpec(-7, 7)}) > loss.of({"0": WeightSpec(-127, 127)}) > loss.of({})
            ('noise/signal', True)
        """
        with self._rounding(list(grids), widths or {}), _on_grids(self.layers, grids):
            outputs = self._outputs()
        pairs = list(zip(outputs, self.reference.outputs, strict=True))
        if self.reference.scores:
            divergences = [float(distillation_loss(ours, exact, 1.0)) * len(exact) for ours, exact in pairs]
            return sum(divergences) / sum(len(exact) for _, exact in pairs)
        noise = sum(_power(ours - exact) for ours, exact in pairs)
        signal = sum(_power(exact) for _, exact in pairs)
        return noise / signal if signal else noise

    def _rounding(self, layers: Sequence[str], widths: Mapping[str, int]) -> AbstractContextManager[None]:
        if self.kernels:
            return quantize_only(self.graph, layers)
        if self.activations is None:
            return round_only(self.graph, layers)
        return self.activations.rounded(widths, layers)

    def _outputs(self) -> list[Tensor]:
        found = []
        with evaluating(self.graph):
            for batch in self.batches:
                found.append(finite_output(self.call(self.compared, batch), "auto_bits").float().clone())
                self.advance()
        return found


def _power(values: Tensor) -> float:
    return float(as_float64(values).square().sum())


@contextmanager
def _on_grids(layers: Mapping[str, QuantizedLayer], grids: Mapping[str, WeightSpec]) -> Iterator[None]:
    """Within the block these layers have these grids, their scales observed."""
    changed = [(layers[name].module, replace(spec, learned_scale=False)) for name, spec in grids.items()]
    before = [(module, module.weight_spec, module.quantizer) for module, _ in changed]
    for module, spec in changed:
        module.weight_spec = spec
        module.share_quantizer(WeightQuantizer(spec, module.channel_axis))
    try:
        yield
    finally:
        for module, spec, quantizer in before:
            module.weight_spec = spec
            module.share_quantizer(quantizer)

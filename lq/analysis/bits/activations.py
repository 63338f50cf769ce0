"""With how many bits each activation can be rounded, and the grids and ranges that it has then."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import fx

from lq.analysis.tensors import evaluating, tensors_of
from lq.backends.prepare import state_of
from lq.config.presets import PRESETS
from lq.config.qconfig import QConfig
from lq.config.specs import ActivationSpec
from lq.core.fake_quantize import FakeQuantize
from lq.core.qparams import QParams
from lq.core.state import QATState
from lq.ptq.batches import RunBatch
from lq.ptq.switch import round_only


@dataclass(frozen=True)
class ActivationOption:
    """One way to round an activation.

    Args:
        width: what was asked for.
        spec: the grid.

    Example:
        >>> from torch import nn
        >>> from lq.backends.prepare import prepare
        >>> from lq.conversion.graph import as_graph
        >>> from lq.ptq.batches import run_batch
        >>> x, specs = torch.eye(4), {width: [activation_grid(QConfig(), width)] * 2 for width in (4, 8)}
        >>> graph = as_graph(prepare(nn.Sequential(nn.Linear(4, 2)), example_args=(x,)))
        >>> tensor = Activations(graph, specs).choices(x, run_batch, [4, 8])[0]
        >>> [(option.width, option.spec.quant_max) for option in tensor.options]
        [(4, 15), (8, 255)]
    """

    width: int
    spec: ActivationSpec


@dataclass(frozen=True)
class ActivationChoices:
    """An activation and its options, each another grid, in the order of their widths.

    Args:
        name: of the layer or operation whose output it is.
        values: how many it has in a batch.
        options: one if the qconfig says how many bits it has.

    Example:
        >>> from torch import nn
        >>> from lq.backends.prepare import prepare
        >>> from lq.conversion.graph import as_graph
        >>> from lq.ptq.batches import run_batch
        >>> x, specs = torch.eye(4), {8: [ActivationSpec(), ActivationSpec()]}
        >>> graph = as_graph(prepare(nn.Sequential(nn.Linear(4, 2)), example_args=(x,)))
        >>> [(tensor.name, tensor.values) for tensor in Activations(graph, specs).choices(x, run_batch, [8])]
        [('input_1', 16), ('0', 8)]
    """

    name: str
    values: int
    options: tuple[ActivationOption, ...]


def activation_grid(qconfig: QConfig, width: int) -> ActivationSpec:
    """The grid of all activations at a width, which is at most that of the preset; other settings are the qconfig's.

    Example:
        >>> activation_grid(QConfig(), 4).as_given()
        {'quant_min': 0, 'quant_max': 15}
        >>> activation_grid(QConfig("tensorrt"), 4).as_given()
        {'quant_min': -8, 'quant_max': 7}
    """
    own = PRESETS[qconfig.preset].activation
    signed = own.quant_min < 0
    low = max(-(2 ** (width - 1)) if signed else 0, own.quant_min)
    high = min(2 ** (width - 1 if signed else width) - 1, own.quant_max)
    given = {} if qconfig.activation is None else qconfig.activation.as_given()
    return ActivationSpec(**{**given, "quant_min": low, "quant_max": high})


class Activations:
    """The fake quantizers of a graph, at any of several widths.

    All ranges come from one calibration: histograms do not depend on the grid, and the range that a grid wants is
    searched in them.

    Args:
        graph: prepared, with ranges from histograms.
        specs: grids of all slots at each width, in the order of the slots.

    Example:
        >>> from torch import nn
        >>> from lq.conversion.graph import as_graph
        >>> from lq.ptq.static import prepare_static
        >>> net, x = nn.Sequential(nn.Linear(1, 1, bias=False)), torch.tensor([[0.0], [0.4], [1.0]])
        >>> _ = nn.init.ones_(net[0].weight)
        >>> graph = as_graph(prepare_static(net, [x]))
        >>> activations = Activations(graph, {width: [activation_grid(QConfig(), width)] * 2 for width in (2, 8)})
        >>> with activations.rounded({"input_1": 2}), torch.no_grad():
        ...     print(graph(x).ravel())
        tensor([0.0000, 0.3333, 1.0000])
    """

    def __init__(self, graph: fx.GraphModule, specs: Mapping[int, Sequence[ActivationSpec]]) -> None:
        self.graph, self.state, self.specs = graph, state_of(graph), specs
        self.quantizers: dict[str, FakeQuantize] = {t.name: t.quantizer for t in tensors_of(graph)}
        self._qparams = {width: _qparams(self.state, of_slots) for width, of_slots in specs.items()}

    def choices(self, batch: object, run: RunBatch, widths: Sequence[int]) -> list[ActivationChoices]:
        """The options of every activation, in execution order.

        Args:
            batch: one that is run, to count the values.
            run: how.
            widths: in ascending order.
        """
        counts = self._counts(batch, run)
        found = []
        for name, quantizer in self.quantizers.items():
            options: list[ActivationOption] = []
            for width in widths:
                spec = self.specs[width][quantizer.slot]
                if not options or options[-1].spec.bits != spec.bits:
                    options.append(ActivationOption(width, spec))
            if name in counts:
                found.append(ActivationChoices(name, counts[name], tuple(options)))
        return found

    @contextmanager
    def rounded(self, widths: Mapping[str, int], layers: Collection[str] = ()) -> Iterator[None]:
        """Within the block only these activations are rounded, to these widths, and the weights of these layers."""
        pinned, before = list(next(iter(self._qparams.values()))), self.state.pinned
        for name, width in widths.items():
            slot = self.quantizers[name].slot
            pinned[slot] = self._qparams[width][slot]
        self.state.pinned = pinned
        try:
            with round_only(self.graph, layers, [self.quantizers[name] for name in widths]):
                yield
        finally:
            self.state.pinned = before

    def _counts(self, batch: object, run: RunBatch) -> dict[str, int]:
        counts: dict[str, int] = {}

        def count(name: str, x: torch.Tensor) -> None:
            counts[name] = counts.get(name, 0) + x.numel()

        hooks = [
            quantizer.register_forward_pre_hook(lambda _, args, name=name: count(name, args[0]))
            for name, quantizer in self.quantizers.items()
        ]
        try:
            with evaluating(self.graph):
                run(self.graph, batch)
        finally:
            for hook in hooks:
                hook.remove()
        return counts


def _qparams(state: QATState, specs: Sequence[ActivationSpec]) -> list[QParams]:
    """What the slots round by with other grids, from the same histograms."""
    observed = [replace(spec, observer=known.observer) for spec, known in zip(specs, state.specs, strict=True)]
    twin = QATState(state.names, observed, state.activations).to(state.min_val.device)
    twin.load_state_dict(state.state_dict(), strict=False)
    if twin.histograms is not None:
        twin.histograms.write(twin.min_val, twin.max_val)
    return twin.qparams()

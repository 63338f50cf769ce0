"""With which bits the weight of each layer can be stored, and what that takes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import fx, nn

from lq.analysis.bits.activations import activation_grid
from lq.backends.prepare import plan_of, prepare
from lq.config.presets import PRESETS
from lq.config.qconfig import QConfig
from lq.config.specs import ActivationSpec, WeightSpec
from lq.core.copies import deep_copy
from lq.export.exporters import ExporterChoice, stored_bits
from lq.ptq.layers import layers_of
from lq.tracing.structure import Inputs

FLOAT = 32
_LEAST, _MOST = 2, 8


@dataclass(frozen=True)
class LayerOption:
    """One way to store the weight of a layer.

    Args:
        width: what was asked for; 32 is float.
        spec: the grid; ``None`` in float.
        stored: bits of each weight in the file.
        bytes: of weight and scales there.

    Example:
        >>> import torch
        >>> from lq.conversion.graph import as_graph
        >>> net, x, qconfig = nn.Sequential(nn.Linear(4, 2)), torch.eye(4), QConfig("x86_vnni", keep="nothing")
        >>> grids = grids_of(net, qconfig, (4, 8), ((x,), {}))
        >>> (layer,) = layer_choices(as_graph(prepare(net, qconfig, (x,))), grids, (4, 8, 32), ["onnx"])
        >>> [(option.label, option.stored, option.bytes) for option in layer.options]
        [('int4 [-7, 7] per channel', 4, 12), ('int8 [-127, 127] per channel', 8, 16), ('float', 32, 32)]
    """

    width: int
    spec: WeightSpec | None
    stored: int
    bytes: int

    @property
    def label(self) -> str:
        """The grid in words."""
        return "float" if self.spec is None else str(self.spec)


@dataclass(frozen=True)
class LayerChoices:
    """A layer and its options, each another grid, in the order of their widths.

    Args:
        name: of the layer.
        weights: how many it has.
        options: one if the qconfig says how many bits it has.

    Example:
        >>> import torch
        >>> from lq.conversion.graph import as_graph
        >>> net, x = nn.Sequential(nn.Linear(4, 2)), torch.eye(4)
        >>> grids = grids_of(net, QConfig(keep="nothing"), (4, 8), ((x,), {}))
        >>> (layer,) = layer_choices(as_graph(prepare(net, example_args=(x,))), grids, (4, 8), ["onnx"])
        >>> layer.name, layer.weights, [option.width for option in layer.options]
        ('0', 8, [4, 8])
    """

    name: str
    weights: int
    options: tuple[LayerOption, ...]


def weight_grid(qconfig: QConfig, width: int) -> WeightSpec:
    """The grid of all weights at a width, which is at most that of the preset; other settings are the qconfig's.

    Example:
        >>> weight_grid(QConfig(weight=WeightSpec(observer="mse")), 4).as_given()
        {'quant_min': -7, 'quant_max': 7, 'observer': 'mse'}
        >>> weight_grid(QConfig("portable"), 8).quant_max
        63
    """
    largest = min(2 ** (width - 1) - 1, PRESETS[qconfig.preset].weight.quant_max)
    given = {} if qconfig.weight is None else qconfig.weight.as_given()
    return WeightSpec(**{**given, "quant_min": -largest, "quant_max": largest})


def at_width(qconfig: QConfig, width: int, activations: bool = False) -> QConfig:
    """The qconfig with all weights at a width, and all activations if wanted, but for what it keeps or overrides.

    Example:
        >>> qconfig = at_width(QConfig(), 4)
        >>> qconfig.weight.bits, qconfig.activation, at_width(QConfig(), 4, activations=True).activation.bits
        (4, None, 4)
    """
    activation = activation_grid(qconfig, width) if activations else qconfig.activation
    return replace(qconfig, weight=weight_grid(qconfig, width), activation=activation)


class Grids(NamedTuple):
    """The grids of a plan.

    Args:
        weights: by the name of the layer.
        activations: in the order of the slots.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2))
        >>> grids = grids_of(net, QConfig(), [4], ((torch.eye(4),), {}))[4]  # the first and last layers keep their bits
        >>> {name: spec.bits for name, spec in grids.weights.items()}, [spec.bits for spec in grids.activations]
        ({'0': 7, '1': 4, '2': 7}, [8, 8, 8, 8])
    """

    weights: dict[str, WeightSpec]
    activations: tuple[ActivationSpec, ...]


def grids_of(
    model: nn.Module, qconfig: QConfig, widths: Sequence[int], example: Inputs, activations: bool = False
) -> dict[int, Grids]:
    """The grids at each width, as a plan has them, and at the smallest and the largest of all.

    Args:
        model: in float; copies of it are prepared.
        qconfig: says what is quantized, kept and overridden.
        widths: of which those up to 8 have grids.
        example: inputs of one call.
        activations: whether activations have the width, too, or the grids of the qconfig.

    Returns:
        grids by width.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2))
        >>> grids = grids_of(net, QConfig(), [4, 32], ((torch.eye(4),), {}))
        >>> {width: str(at.weights["1"]) for width, at in grids.items()}
        {2: 'int2 [-1, 1] per channel, mse', 4: 'int4 [-7, 7] per channel', 8: 'int7 [-63, 63] per channel'}
    """
    found = {}
    for width in sorted({_LEAST, _MOST, *widths} - {FLOAT}):
        prepared = prepare(deep_copy(model), at_width(qconfig, width, activations), *copy.deepcopy(example))
        sites = plan_of(prepared).sites
        assert sites is not None
        found[width] = Grids({layer.name: layer.spec for layer in sites.layers}, sites.specs)
    return found


def layer_choices(
    graph: fx.GraphModule,
    grids: Mapping[int, Grids],
    widths: Sequence[int],
    exporters: Sequence[ExporterChoice],
) -> list[LayerChoices]:
    """The options of every layer of a prepared graph.

    Args:
        graph: with ranges.
        grids: those at each width, from :func:`grids_of`.
        widths: in ascending order; 32 is float.
        exporters: whose files are stored; the largest counts.

    Returns:
        the layers, in execution order.

    Example:
        >>> import torch
        >>> from lq.conversion.graph import as_graph
        >>> net, x, qconfig = nn.Sequential(nn.Linear(4, 2)), torch.eye(4), QConfig(keep="nothing")
        >>> grids, graph = grids_of(net, qconfig, (4, 6, 7), ((x,), {})), as_graph(prepare(net, qconfig, (x,)))
        >>> [option.width for option in layer_choices(graph, grids, (4, 6, 7), ["torch"])[0].options]
        [4, 6, 7]
        >>> [option.width for option in layer_choices(graph, grids, (4, 6, 7), ["litert"])[0].options]  # 8 bits each
        [7]
    """
    found = []
    for layer in layers_of(graph):
        count, channels = layer.module.weight.numel(), layer.module.weight.shape[layer.module.channel_axis]
        options: list[LayerOption] = []
        for width in widths:
            if width == FLOAT:
                continue
            spec = grids[width].weights[layer.name]
            stored, scales = stored_bits(spec.bits, exporters), channels if spec.per_channel else 1
            if options and options[-1].stored == stored:
                options.pop()  # the same bytes for more bits, or the very same grid
            options.append(LayerOption(width, spec, stored, -(-count * stored // 8) + 4 * scales))
        is_fixed = len({at.weights[layer.name] for at in grids.values()}) == 1  # it is kept or overridden
        if FLOAT in widths and not is_fixed:
            unfolded = 3 * channels if layer.norm is not None else 0  # four vectors of a BatchNorm in place of a bias
            options.append(LayerOption(FLOAT, None, FLOAT, 4 * (count + unfolded)))
        found.append(LayerChoices(layer.name, count, tuple(options)))
    return found

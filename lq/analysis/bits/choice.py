"""The bits that were chosen: overrides for the qconfig, and what they cost."""

from __future__ import annotations

import glob
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from lq.analysis.bits.activations import ActivationOption
from lq.analysis.bits.budget import Budget
from lq.analysis.bits.layers import LayerOption
from lq.config.qconfig import LayerQConfig, QConfig
from lq.config.reading import as_qconfig
from lq.config.specs import ActivationSpec, AnyGrid, WeightSpec


class FrontierRow(TypedDict):
    """A choice of bits, and what comes of it.

    Args:
        name: "all 4 bits", "chosen", or empty for a corner of the frontier.
        size_mb: of the deployed model, in MB (1e6 bytes): weights as stored, and all else in float32.
        effective_bits: stored bits of a quantized weight, in the mean.
        expected: the losses of the layers, each measured alone, added up.
        measured: the loss with all of these weights rounded; ``None`` if that was not measured.
        latency_ms: of a call with one sample, where the budget is a latency: measured if the row has a name, else
            expected.

    Example:
        >>> import torch
        >>> from lq.analysis.bits.search import choose_bits
        >>> net, qconfig = torch.nn.Sequential(torch.nn.Linear(8, 8)), QConfig(keep="nothing")
        >>> rows = choose_bits(net, [torch.eye(8)], qconfig, "effective_bits=3").rows
        >>> [(row["name"], row["effective_bits"], row["measured"] is None) for row in rows[:5]]
        [('', 2.0, True), ('all 2 bits', 2.0, False),
         ('', 3.0, True), ('all 3 bits', 3.0, False), ('chosen', 3.0, False)]
    """

    name: str
    size_mb: float
    effective_bits: float
    expected: float
    measured: float | None
    latency_ms: float | None


class ActivationRow(TypedDict):
    """A choice of bits for the activations, and what comes of it.

    Args:
        name: "all 4 bits", "chosen", or empty for a corner of the frontier.
        bits: of a value, in the mean over all rounded values of a call.
        expected: the losses of the activations, each measured alone, added up.
        measured: the loss with all of these activations rounded and the weights in float; ``None`` if that was not
            measured.

    Example:
        >>> import torch
        >>> from lq.analysis.bits.search import choose_bits
        >>> from lq.analysis.bits.settings import AutoBits
        >>> net, qconfig = torch.nn.Sequential(torch.nn.Linear(8, 8)), QConfig(keep="nothing")
        >>> options = AutoBits("effective_bits=6", activation_bits=6.0, widths=(4, 8))
        >>> found = choose_bits(net, [torch.eye(8)], qconfig, options)
        >>> [(row["name"], row["bits"]) for row in found.activations.rows if row["name"]]
        [('all 4 bits', 4.0), ('chosen', 6.0), ('all 8 bits', 8.0)]
    """

    name: str
    bits: float
    expected: float
    measured: float | None


@dataclass(frozen=True)
class ActivationBits:
    """Bits for each activation.

    Args:
        options: name of an activation -> what was chosen.
        rows: the choice, the same bits everywhere, and the frontier, in the order of their bits.
        with_weights: the loss with the chosen activations and the chosen weights rounded.

    Example:
        >>> row = ActivationRow(name="chosen", bits=4.0, expected=0.01, measured=0.02)
        >>> options = {"conv": ActivationOption(4, ActivationSpec(0, 15))}
        >>> ActivationBits(options, [row], with_weights=0.03).chosen["measured"]
        0.02
    """

    options: Mapping[str, ActivationOption]
    rows: Sequence[ActivationRow]
    with_weights: float

    @property
    def chosen(self) -> ActivationRow:
        """The row of the choice."""
        return next(row for row in self.rows if row["name"] == "chosen")


@dataclass(frozen=True)
class BitChoice:
    """Bits for the weight of each layer; ``str`` of it is a sentence and a line for each number of bits.

    Args:
        budget: that was kept.
        loss: what losses are: "KL divergence" of class scores or "noise/signal" of the output.
        layers: name of a layer -> what was chosen.
        rows: the choice, the same bits everywhere, and the frontier, in the order of their sizes.
        activations: bits for activations, if they were chosen.

    Example:
        >>> row = FrontierRow(
        ...     name="chosen", size_mb=0.1, effective_bits=4.0, expected=0.1, measured=0.12, latency_ms=None
        ... )
        >>> layers = {"fc": LayerOption(4, WeightSpec(-7, 7), 4, 100)}
        >>> print(BitChoice(Budget.parse("effective_bits=4"), "KL divergence", layers, [row]))
        effective_bits=4: 0.1 MB, 4 bits per weight, KL divergence 0.12
          4 bits: fc
    """

    budget: Budget
    loss: str
    layers: Mapping[str, LayerOption]
    rows: Sequence[FrontierRow]
    activations: ActivationBits | None = None

    @property
    def chosen(self) -> FrontierRow:
        """The row of the choice."""
        return next(row for row in self.rows if row["name"] == "chosen")

    @property
    def weights(self) -> dict[str, WeightSpec]:
        """Grids of the layers that are quantized."""
        return {name: option.spec for name, option in self.layers.items() if option.spec is not None}

    @property
    def overrides(self) -> dict[str, LayerQConfig]:
        """For ``QConfig(overrides=...)``: the integers of every weight, and of the activations that were chosen."""
        weights = {name: _integers(spec) for name, spec in self.weights.items()}
        options = {} if self.activations is None else self.activations.options
        activations = {name: _integers(option.spec) for name, option in options.items()}
        return {
            glob.escape(name): LayerQConfig(weights.get(name), activations.get(name))
            for name in dict.fromkeys((*weights, *activations))
        }

    @property
    def exclude(self) -> tuple[str, ...]:
        """For ``QConfig(exclude=...)``: the layers that stay in float."""
        return tuple(glob.escape(name) for name, option in self.layers.items() if option.spec is None)

    def apply(self, qconfig: QConfig | str) -> QConfig:
        """The qconfig with these bits, on top of its own overrides."""
        qconfig = as_qconfig(qconfig)
        overrides = dict(qconfig.overrides)
        for pattern, layer in self.overrides.items():
            overrides[pattern] = _on_top(layer, overrides.pop(pattern, LayerQConfig()))
        exclude = (*qconfig.exclude, *(pattern for pattern in self.exclude if pattern not in qconfig.exclude))
        return replace(qconfig, overrides=overrides, exclude=exclude)

    def settings(self, qconfig: QConfig | str) -> dict[str, Any]:
        """The same as plain data for YAML: what ``QConfig(**settings)`` takes, without what is the default.

        Example:
            >>> row = FrontierRow(
            ...     name="chosen", size_mb=0.1, effective_bits=4.0, expected=0.1, measured=0.1, latency_ms=None
            ... )
            >>> layers = {"fc": LayerOption(4, WeightSpec(-7, 7), 4, 100)}
            >>> BitChoice(Budget.parse("effective_bits=4"), "noise/signal", layers, [row]).settings("x86_vnni")
            {'preset': 'x86_vnni', 'overrides': {'fc': {'weight': {'quant_min': -7, 'quant_max': 7}}}}
        """
        given, default = self.apply(qconfig).as_given(), QConfig().as_given()
        changed = {name: value for name, value in given.items() if name == "preset" or value != default[name]}
        return {name: _plain(value) for name, value in changed.items()}

    def __str__(self) -> str:
        chosen = self.chosen
        time = "" if chosen["latency_ms"] is None else f"{chosen['latency_ms']:.3g} ms, "
        lines = [
            f"{self.budget}: {time}{chosen['size_mb']:.4g} MB, {chosen['effective_bits']:.3g} bits per weight, "
            f"{self.loss} {chosen['measured']:.3g}"
        ]
        lines += _by_bits({name: option.spec for name, option in self.layers.items()})
        if self.activations is not None:
            chosen_too = self.activations.chosen
            lines.append(
                f"{chosen_too['bits']:.3g} bits per activation, {self.loss} {chosen_too['measured']:.3g}, and "
                f"{self.activations.with_weights:.3g} with the weights"
            )
            lines += _by_bits({name: option.spec for name, option in self.activations.options.items()})
        return "\n".join(lines)


def _integers(spec: AnyGrid) -> AnyGrid:
    """What gives a tensor the integers of a grid and leaves all else."""
    ends: Any = spec
    return type(spec)(quant_min=ends.quant_min, quant_max=ends.quant_max)


def _on_top(layer: LayerQConfig, of: LayerQConfig) -> LayerQConfig:
    """An override of the same name keeps the settings that are not about bits."""
    return LayerQConfig(_merged(layer.weight, of.weight), _merged(layer.activation, of.activation))


def _merged(chosen: AnyGrid | None, own: AnyGrid | None) -> AnyGrid | None:
    if chosen is None or own is None:
        return own if chosen is None else chosen
    return type(own)(**{**own.as_given(), **chosen.as_given()})


def _by_bits(specs: Mapping[str, WeightSpec | ActivationSpec | None]) -> list[str]:
    """A line for each number of bits, float last."""
    groups: dict[float, list[str]] = {}
    for name, spec in specs.items():
        groups.setdefault(math.inf if spec is None else spec.bits, []).append(name)
    return [f"  {f'{b} bits' if b < math.inf else 'float'}: {', '.join(groups[b])}" for b in sorted(groups)]


def _plain(value: Any) -> Any:
    """Lists for tuples, and no settings that are not given."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    return list(value) if isinstance(value, tuple) else value

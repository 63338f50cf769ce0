"""The bits that were chosen: overrides for the qconfig, and what they cost."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from lq.analysis.bits.budget import Budget
from lq.analysis.bits.layers import LayerOption, override_of
from lq.config.qconfig import LayerQConfig, QConfig, as_qconfig
from lq.config.specs import WeightSpec


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
    """

    name: str
    size_mb: float
    effective_bits: float
    expected: float
    measured: float | None
    latency_ms: float | None


@dataclass(frozen=True)
class BitChoice:
    """Bits for the weight of each layer; ``str`` of it is a sentence and a line for each number of bits.

    Args:
        budget: that was kept.
        loss: what losses are: "KL divergence" of class scores or "noise/signal" of the output.
        layers: name of a layer -> what was chosen.
        rows: the choice, the same bits everywhere, and the frontier, in the order of their sizes.

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

    @property
    def chosen(self) -> FrontierRow:
        """The row of the choice."""
        return next(row for row in self.rows if row["name"] == "chosen")

    @property
    def overrides(self) -> dict[str, LayerQConfig]:
        """For ``QConfig(overrides=...)``: the integers of every layer that is quantized."""
        return {glob.escape(name): override_of(o) for name, o in self.layers.items() if o.spec is not None}

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
        groups: dict[str, list[str]] = {}
        for name, option in self.layers.items():
            groups.setdefault("float" if option.spec is None else f"{option.spec.bits} bits", []).append(name)
        return "\n".join([*lines, *(f"  {bits}: {', '.join(groups[bits])}" for bits in sorted(groups))])


def _on_top(layer: LayerQConfig, of: LayerQConfig) -> LayerQConfig:
    """An override of the same name keeps the settings that are not about bits."""
    assert layer.weight is not None
    kept = {} if of.weight is None else of.weight.as_given()
    return LayerQConfig(weight=WeightSpec(**{**kept, **layer.weight.as_given()}), activation=of.activation)


def _plain(value: Any) -> Any:
    """Lists for tuples, and no settings that are not given."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    return list(value) if isinstance(value, tuple) else value

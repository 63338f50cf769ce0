"""Judges every artifact of a delivery against the fake-quantized model."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, fx

from lq.export.exporters import Chosen
from lq.export.parity.bisection import first_difference
from lq.export.parity.gate import ENOUGH_DB, Gate, Parity, check
from lq.export.parity.rounding import rounding_noise
from lq.metrics.outputs import main_tensor
from lq.tracing.structure import Inputs


class Gatekeeper:
    """One gate for all artifacts of a model; what is costly is computed when the first of them fails.

    Args:
        prepared: in evaluation mode, with ranges.
        calls: inputs, and the main output of ``prepared`` for each.
        gate: what every artifact has to reach.
    """

    def __init__(self, prepared: fx.GraphModule, calls: Sequence[tuple[Inputs, Tensor]], gate: Gate) -> None:
        self.prepared, self.gate = prepared, gate
        self.inputs, self.expected = [call for call, _ in calls], [output for _, output in calls]
        self.notes: list[str] = []

    @cached_property
    def noise(self) -> Parity | None:
        """What rounding alone does to the model; see :func:`lq.export.parity.rounding.rounding_noise`.

        Its own float32 outputs count, not the expected ones: a graph that computes something else than what was trained
        would do so in float64, too, and excuse itself.
        """
        with torch.no_grad():
            own = [main_tensor(self.prepared(*args, **kwargs)) for args, kwargs in copy.deepcopy(self.inputs)]
        return rounding_noise(self.prepared, self.inputs, own)

    def judge(self, choice: Chosen, place: Path, other_complaint: str = "") -> Parity:
        """Compare one artifact, and find the layer to look at if there is a complaint.

        Args:
            choice: its exporter.
            place: directory with its files.
            other_complaint: what else speaks against it, or "".
        """
        parity = self._excused(choice.name, check(place, choice.name, self.inputs, self.expected, self.gate))
        if parity.note:
            self.notes.append(f"{choice.name}: {parity.note}")
        parity = replace(parity, complaint=parity.complaint or other_complaint)
        if parity.passed:
            return parity
        return replace(parity, first_layer=self._first_layer(choice))

    def _first_layer(self, choice: Chosen) -> str:
        try:
            return first_difference(self.prepared, choice, self.inputs[0], self.gate.min_sqnr_db or ENOUGH_DB)
        except Exception as error:  # it explains a failure, and must not become one
            return f"a layer that could not be found ({error})"

    def _excused(self, name: str, parity: Parity) -> Parity:
        """Without the complaint, where rounding alone explains it."""
        if parity.passed or not math.isfinite(parity.sqnr_db) or not self.gate.excuse_rounding:
            return parity
        if self.noise is None or not parity.is_explained_by(self.noise):
            return parity
        self.notes.append(
            f"{name}: {parity.complaint}; rounding alone explains that: computed in float64, the fake-quantized model "
            f"itself reaches {_reached(self.noise)}"
        )
        return replace(parity, complaint="")


def _reached(noise: Parity) -> str:
    ratio = f"{noise.sqnr_db:.1f} dB"
    return ratio if noise.agreement is None else f"{noise.agreement:.1%} and {ratio}"

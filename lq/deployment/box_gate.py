"""What the gate measures of a detector, whose boxes cannot be subtracted from each other."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, fx

from lq.export.exporters import Chosen
from lq.export.parity.bisection import before_detections, exported_and_not
from lq.export.parity.gate import Gate, Parity, measure
from lq.export.parity.rounding import in_float64, with_noise
from lq.metrics.detections import detection_agreement
from lq.tracing.structure import Inputs, tensors_of


class BoxGate:
    """Compares the layers that boxes are chosen by, and knows how much the choice itself is up to chance.

    Args:
        prepared: in evaluation mode, with ranges.
        inputs: of some calls.
        gate: what every artifact has to reach.

    Example:
        >>> import torchvision
        >>> from torch import nn
        >>> from lq.ptq.static import prepare_static
        >>> class Detector(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.boxes, self.scores = nn.Linear(4, 4), nn.Linear(4, 1)
        ...
        ...     def forward(self, x):
        ...         boxes, scores = self.boxes(x).cumsum(1), self.scores(x).flatten()
        ...         kept = torchvision.ops.nms(boxes, scores, 0.5)
        ...         return [{"boxes": boxes[kept], "scores": scores[kept], "labels": kept}]
        >>> x = torch.rand(8, 4)
        >>> box_gate = BoxGate(prepare_static(Detector(), [x]), [((x,), {})], Gate())
        >>> [tuple(tensor.shape) for tensor in box_gate.heads(x)]  # scores and boxes, before one is chosen
        [(8, 1), (8, 4)]
    """

    def __init__(self, prepared: fx.GraphModule, inputs: Sequence[Inputs], gate: Gate) -> None:
        self.prepared, self.inputs, self.gate = prepared, inputs, gate

    @cached_property
    def heads(self) -> fx.GraphModule | None:
        """The model up to those layers; ``None`` if it has none before the first choice."""
        return before_detections(self.prepared)

    def measured(self, choice: Chosen, parity: Parity) -> Parity:
        """A comparison of detections with the SQNR and the error of those layers."""
        if self.heads is None:
            return parity
        found = self._worst(*exported_and_not(self.heads, choice, self.inputs[0]))
        complaint = parity.complaint or found.complaint
        return replace(parity, sqnr_db=found.sqnr_db, max_abs_error=found.max_abs_error, complaint=complaint)

    @cached_property
    def noise(self) -> Parity | None:
        """What rounding alone does to those layers."""
        exact = None if self.heads is None else in_float64(self.heads, self.inputs[:1])
        if exact is None or self.heads is None:
            return None
        args, kwargs = copy.deepcopy(self.inputs[0])
        with torch.no_grad():
            return self._worst(tensors_of(self.heads(*args, **kwargs)), tensors_of(exact))

    def excuse(self, parity: Parity, rounding: str) -> str:
        """Why a complaint is no fault of the artifact, or "".

        Args:
            parity: with the complaint.
            rounding: what to say if rounding explains the difference of the layers, or "" if it does not.
        """
        least, found = self.gate.min_detection_agreement, parity.agreement
        if self._complains_of_layers(parity) and not rounding:
            return ""
        if least is None or found is None or found >= least:
            return rounding
        by_chance = self.agreement_by_chance(parity.sqnr_db)
        if 1 - found > 2 * (1 - by_chance):
            return ""
        return (
            "scores that are nearly equal explain that: the fake-quantized model itself reaches "
            f"{by_chance:.1%} with as much noise on scores and features, or in float64"
        )

    def _complains_of_layers(self, parity: Parity) -> bool:
        return bool(self.gate.complaint(replace(parity, agreement=None)))

    def agreement_by_chance(self, sqnr_db: float) -> float:
        """How far the model agrees with itself with noise on what it chooses by, or in float64.

        Args:
            sqnr_db: of the model over the noise.
        """
        with torch.no_grad():
            own, other = (
                [image for args, kwargs in copy.deepcopy(self.inputs) for image in model(*args, **kwargs)]
                for model in (self.prepared, with_noise(self.prepared, sqnr_db))
            )
        exact = in_float64(self.prepared, self.inputs)
        found = [detection_agreement(own, other)]
        found += [] if exact is None else [detection_agreement(own, [image for output in exact for image in output])]
        return min(found)

    def _worst(self, expected: Sequence[Tensor], got: Sequence[Tensor]) -> Parity:
        each = [measure([a], [b], replace(self.gate, min_agreement=None)) for a, b in zip(expected, got, strict=True)]
        return min(each, key=lambda parity: parity.sqnr_db)

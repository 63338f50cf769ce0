"""Judges every artifact of a delivery against the fake-quantized model."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, fx

from lq.deployment.box_gate import BoxGate
from lq.export.exporters import Chosen
from lq.export.parity.bisection import first_difference
from lq.export.parity.gate import ENOUGH_DB, Gate, Parity, check, samples_in
from lq.export.parity.rounding import rounding_noise
from lq.export.parity.worker import Worker
from lq.metrics.detections import Comparable, comparable
from lq.tracing.batch import fixed_batch
from lq.tracing.chance import CHANCE, depends_on_chance
from lq.tracing.samples import batch_size
from lq.tracing.structure import Inputs, map_tensors


class Gatekeeper:
    """One gate for all artifacts of a model; what is costly is computed when the first of them fails.

    Args:
        prepared: in evaluation mode, with ranges.
        calls: inputs, and the main output of ``prepared`` for each.
        gate: what every artifact has to reach.
        worker: process that runs them.
        others: calls of other sizes, for exporters whose files leave them open.
        larger: by exporter, a call with more samples than the others. It can fail a file, but does not count in the
            figures.

    Example:
        >>> import tempfile
        >>> from lq.export.artifact.manifest import write_manifest
        >>> from lq.export.artifact.signature import Signature
        >>> from lq.export.exporters import chosen
        >>> from lq.ptq.static import prepare_static
        >>> (choice,), example = chosen(["torch"]), ((torch.rand(8, 4),), {})
        >>> prepared = prepare_static(torch.nn.Sequential(torch.nn.Linear(4, 2)), [example[0][0]])
        >>> wrong = torch.rand(8, 2)  # in the place of what was trained
        >>> with tempfile.TemporaryDirectory() as place, Worker() as worker:
        ...     info = choice.export(prepared, example, Path(place))
        ...     signature = Signature.of(prepared, example, wrong).to_dict()
        ...     write_manifest(Path(place), {"artifacts": {"torch": info}, "signature": signature})
        ...     parity = Gatekeeper(prepared, [(example, wrong)], Gate(), worker).judge(choice, Path(place))
        >>> parity.complaint, parity.first_layer
        ('SQNR ... dB is below 25.0 dB', 'the output')
    """

    def __init__(
        self,
        prepared: fx.GraphModule,
        calls: Sequence[tuple[Inputs, Comparable]],
        gate: Gate,
        worker: Worker,
        others: Sequence[tuple[Inputs, Comparable]] = (),
        larger: Mapping[str, tuple[Inputs, Comparable]] = MappingProxyType({}),
    ) -> None:
        self.prepared, self.gate, self.worker, self.others = prepared, gate, worker, others
        self.larger = larger
        self.inputs, self.expected = [call for call, _ in calls], [output for _, output in calls]
        self.notes: list[str] = []
        self._boxes = BoxGate(prepared, self.inputs, gate) if isinstance(self.expected[0], list) else None

    @cached_property
    def noise(self) -> Parity | None:
        """What rounding alone does to the model; see :func:`lq.export.parity.rounding.rounding_noise`.

        Its own float32 outputs count, not the expected ones: a graph that computes something else than what was trained
        would do so in float64, too, and excuse itself.
        """
        if self._boxes is not None:
            return self._boxes.noise
        with torch.no_grad():
            own = [comparable(self.prepared(*args, **kwargs)) for args, kwargs in copy.deepcopy(self.inputs)]
        return rounding_noise(self.prepared, self.inputs, own)

    @cached_property
    def by_chance(self) -> bool:
        """Whether the model agrees with itself no better than with a file, which rounding would seem to explain."""
        return depends_on_chance(self.prepared, self.inputs[0])

    def judge(self, choice: Chosen, place: Path, other_complaint: str = "") -> Parity:
        """Compare one artifact, and find the layer to look at if there is a complaint.

        Args:
            choice: its exporter.
            place: directory with its files.
            other_complaint: what else speaks against it, or "".
        """
        inputs, expected = self._compared(choice)
        parity, excuse = self._measured(choice, place, inputs, expected, self.gate)
        self.notes += [f"{choice.name}: {note}" for note in (excuse, parity.note) if note]
        if parity.passed and choice.name in self.larger:
            inputs, complaint = self._of_larger(choice, place)
            parity = replace(parity, complaint=complaint)
        parity = replace(parity, complaint=parity.complaint or other_complaint)
        if parity.passed:
            return parity
        return replace(parity, first_layer=self._first_layer(choice, inputs[0]))

    def _of_larger(self, choice: Chosen, place: Path) -> tuple[list[Inputs], str]:
        """The larger call, and what speaks against the file in it."""
        call, output = self.larger[choice.name]
        # Its samples are those of another call: what is close to a tie there counts twice here.
        gate = replace(self.gate, min_agreement=None, min_detection_agreement=None)
        complaint = self._measured(choice, place, [call], [output], gate)[0].complaint
        return [call], complaint and f"{complaint}, for a larger batch, of {batch_size(call)} samples"

    def _measured(
        self, choice: Chosen, place: Path, inputs: Sequence[Inputs], expected: Sequence[Comparable], gate: Gate
    ) -> tuple[Parity, str]:
        """The comparison of one artifact without a complaint that rounding explains, and that explanation or ""."""
        parity = check(place, choice.name, inputs, expected, gate, self.worker)
        if self._boxes is not None and parity.detections:
            parity = self._boxes.measured(choice, parity)
        return self._excused(parity)

    def _compared(self, choice: Chosen) -> tuple[list[Inputs], list[Comparable]]:
        """All calls, or the first samples where a chip is simulated, which is slow."""
        if not choice.exporter.simulator:
            others = () if choice.exporter.static else self.others
            return [*self.inputs, *(call for call, _ in others)], [*self.expected, *(out for _, out in others)]
        cuts = fixed_batch(self.prepared) is None
        inputs, expected = first_samples(self.inputs, self.expected, self.gate.simulated, cuts)
        samples, all_samples = (sum(map(samples_in, outputs)) for outputs in (expected, self.expected))
        if samples < all_samples:
            self.notes.append(
                f"{choice.name}: {choice.exporter.simulator} ran {samples} of {all_samples} samples for the "
                f"comparison; gate={{'simulated': {all_samples}}} takes all"
            )
        return inputs, expected

    def _first_layer(self, choice: Chosen, call: Inputs) -> str:
        try:
            return first_difference(self.prepared, choice, call, self.gate.min_sqnr_db or ENOUGH_DB)
        except Exception as error:  # it explains a failure, and must not become one
            return f"a layer that could not be found ({error})"

    def _excused(self, parity: Parity) -> tuple[Parity, str]:
        """Without the complaint, where rounding alone explains it, and what is to be said of that."""
        if parity.passed or not parity.sqnr_db > -math.inf or not self.gate.excuse_rounding:
            return parity, ""
        if self.by_chance:
            return replace(parity, complaint=f"{parity.complaint}: {CHANCE}"), ""
        reason = ""
        if self.noise is not None and parity.is_explained_by(self.noise, self.gate):
            reason = (
                f"rounding alone explains that: computed in float64, the fake-quantized model itself reaches "
                f"{_reached(self.noise)}"
            )
        if self._boxes is not None and parity.detections:
            reason = self._boxes.excuse(parity, reason)
        if not reason:
            return parity, ""
        return replace(parity, complaint=""), f"{parity.complaint}; {reason}"


def first_samples(
    inputs: Sequence[Inputs], expected: Sequence[Comparable], count: int, cuts: bool = True
) -> tuple[list[Inputs], list[Comparable]]:
    """The first calls that hold so many samples.

    Args:
        inputs: of all calls.
        expected: the output of each.
        count: how many samples are enough.
        cuts: whether the last call may be cut.

    Example:
        >>> calls = [((torch.zeros(4, 3),), {}), ((torch.zeros(4, 3),), {})]
        >>> [len(output) for output in first_samples(calls, [torch.zeros(4, 2)] * 2, 6)[1]]
        [4, 2]
    """
    found: list[tuple[Inputs, Comparable]] = []
    left = count
    for call, output in zip(inputs, expected, strict=True):
        if left <= 0:
            break
        size = batch_size(call)
        if cuts and size == samples_in(output) and size > left:
            args, kwargs = map_tensors(call, partial(_head, count=left))
            call, output = (args, kwargs), map_tensors(output, partial(_head, count=left))
        found.append((call, output))
        left -= size or 1
    return [call for call, _ in found], [output for _, output in found]


def _head(tensor: Tensor, count: int) -> Tensor:
    return tensor[:count] if tensor.dim() else tensor


def _reached(noise: Parity) -> str:
    ratio = f"{noise.sqnr_db:.1f} dB"
    return ratio if noise.agreement is None else f"{noise.agreement:.1%} and {ratio}"

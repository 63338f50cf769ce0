"""An artifact on its way: files are written, loaded again, compared, timed, and handed over."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import fx, nn

from lq.backends.prepare import plan_of
from lq.deployment.compared_calls import ComparedCalls
from lq.deployment.destination import Destination
from lq.deployment.gatekeeper import Gatekeeper
from lq.deployment.handover import hand_over
from lq.deployment.in_float import batch_notes, float_notes, loss_notes, size_notes, unused_notes
from lq.deployment.results import Compare, Compared, Deployment
from lq.deployment.settings import ExportSettings
from lq.export.artifact.calls import smallest_call
from lq.export.artifact.int8_model import load
from lq.export.artifact.manifest import write_manifest
from lq.export.exporters import EXPORTERS
from lq.export.formats.shared import sharing
from lq.export.parity.gate import metric_complaint
from lq.export.parity.worker import Worker
from lq.messages import one_line
from lq.timing.latency import Latency
from lq.timing.rows import FAKE, comparison_rows
from lq.timing.stopwatch import Stopwatch
from lq.tracing.batch import fixed_batch
from lq.tracing.samples import batch_size
from lq.tracing.structure import Inputs


class Delivery:
    """The files of one model in a workplace, and what is known of them.

    Args:
        prepared: the fake-quantized model, on the CPU, in evaluation mode.
        example: inputs of one call.
        settings: what to deliver.
        place: an empty directory to work in.
        float_model: for the FP32 row.

    Attributes:
        deployment: what has come of it so far.
        infos: exporter -> what it says of its files, of those that are still in the artifact.

    Example:
        >>> import tempfile, torch
        >>> from lq.ptq.static import prepare_static
        >>> x = torch.rand(8, 4)
        >>> prepared, settings = prepare_static(nn.Sequential(nn.Linear(4, 2)), [x]), ExportSettings(["torch"])
        >>> with tempfile.TemporaryDirectory() as place:
        ...     delivery = Delivery(prepared, ((x,), {}), settings, Path(place))
        ...     delivery.export()
        ...     [file.name for file in Path(place).iterdir()]
        ['int8.pt']
        >>> delivery.infos["torch"]["int8_layers"], delivery.deployment.failures
        ({'Linear': 1}, [])
    """

    def __init__(
        self,
        prepared: fx.GraphModule,
        example: Inputs,
        settings: ExportSettings,
        place: Path,
        float_model: nn.Module | None = None,
    ) -> None:
        self.prepared, self.example, self.settings = prepared, example, settings
        self.place, self.float_model = place, float_model
        self.deployment = Deployment()
        self.infos: dict[str, dict[str, Any]] = {}

    def export(self) -> None:
        """Write the files of every exporter that can."""
        choices = self.settings.choices
        with sharing(len(choices) > 1):
            for choice in choices:
                try:
                    self.infos[choice.name] = choice.export(self.prepared, self.example, self.place)
                except OSError:
                    raise  # a full disk is no fault of one exporter
                except Exception as error:
                    self._remove(choice.name)
                    reason = one_line(error, None)
                    self.deployment.failures.append(
                        f"The int8 model could not be exported as {choice.name!r} ({reason})"
                    )

    def load(self) -> None:
        """Load what was written; of a file that cannot be, nothing stays, and the others are delivered."""
        for kind in list(self.infos):
            try:
                self.deployment.models[kind] = load(self.place, kind)
            except (OSError, MemoryError):
                raise  # of the machine
            except Exception as error:
                del self.infos[kind]
                self._remove(kind)
                self.deployment.failures.append(f"{kind!r} was written, but cannot be loaded ({one_line(error)})")

    def note_contents(self) -> None:
        """Say what the files take, and what they leave in float."""
        prepared, infos = self.prepared, self.infos
        batch = fixed_batch(prepared)
        notes = batch_notes(batch_size(self.example), infos) if batch is None else [batch.note]
        notes += size_notes(prepared, self.example, infos)
        notes += float_notes(plan_of(prepared), infos) + unused_notes(prepared, self.float_model)
        notes += loss_notes(prepared)
        self.deployment.notes += notes

    def run(self, compare: Compare) -> Compared:
        """Run the models on the validation data, and keep their figures."""
        deployment = self.deployment
        # A simulator takes a second for a sample: what it runs is compared by the gate alone.
        quick = {kind: model for kind, model in deployment.models.items() if not EXPORTERS[kind].simulator}
        compared = compare(quick, self.settings.gate.batches)
        deployment.results |= {version: dict(figures) for version, figures in compared.results.items()}
        deployment.notes += [self._without_place(note) for note in compared.notes]
        return compared

    def pass_gate(self, calls: ComparedCalls, worker: Worker, compared: Compared) -> None:
        """Judge every file; complaints become failures or warnings, with the layer to look at.

        Args:
            calls: what the files are run on.
            worker: process that runs them.
            compared: from :meth:`run`.
        """
        deployment, gate = self.deployment, self.settings.gate
        deployment.notes += calls.notes
        keeper = Gatekeeper(self.prepared, calls.same, gate, worker, calls.others, calls.larger)

        def counting(version: str) -> dict[str, float]:
            figures = deployment.results.get(version, {})
            return {name: value for name, value in figures.items() if name in compared.counts}

        for choice in self.settings.choices:
            if choice.name not in deployment.models:
                continue
            changed = metric_complaint(counting(FAKE), counting(choice.name), gate)
            parity = keeper.judge(choice, self.place, changed)
            if not parity.passed:
                what = "does not compute what was trained" if parity.samples else "does not run"
                where = f"; they first differ at {parity.first_layer}" if parity.first_layer else ""
                self._complain(f"{choice.name!r} {what}: {parity.complaint}{where}")
            deployment.parity[choice.name] = parity
            deployment.results.setdefault(f"{choice.name}_vs_{FAKE}", parity.fidelity)
        deployment.notes += keeper.notes

    def _complain(self, message: str) -> None:
        if self.settings.gate.on_failure == "error":
            self.deployment.failures.append(message)
        else:
            warnings.warn(f"lq: {message}", stacklevel=3)

    def fill_table(self, stopwatch: Stopwatch) -> None:
        """Time what runs, and write the rows of the closing table."""
        times = self._latencies(stopwatch)
        self.deployment.rows = comparison_rows(self.infos, self.float_model, self.place, self.deployment.results, times)

    def _latencies(self, stopwatch: Stopwatch) -> dict[str, Latency]:
        """Of what runs in a fresh process; a failure costs the figures, not the artifact."""
        ran = [kind for kind, parity in self.deployment.parity.items() if parity.samples]
        kinds = [kind for kind in ran if not EXPORTERS[kind].simulator]
        try:
            sample = smallest_call(self.prepared, self.example)
            return stopwatch.latencies(self.place, kinds, self.float_model, sample)
        except RuntimeError as error:
            self.deployment.notes.append(f"latencies could not be measured: {error}")
            return {}

    def settle(self, destination: Destination | None, entries: Mapping[str, Any]) -> None:
        """Take out what did not pass, and move the artifact to where it belongs.

        Args:
            destination: where that is; ``None`` keeps nothing.
            entries: of the manifest, beside those of the comparison.
        """
        deployment = self.deployment
        failed = [kind for kind, parity in deployment.parity.items() if not parity.passed]
        if self.settings.gate.on_failure != "error":
            failed = []
        for kind in failed:
            del deployment.models[kind]
        if destination is None:
            return
        entries = {
            **entries,
            "parity": {kind: parity.to_dict() for kind, parity in deployment.parity.items()},
            "results": deployment.results,
            "table": deployment.rows,
        }
        if deployment.failures:
            entries["error"] = "; ".join(deployment.failures)

        def describe(directory: Path, kinds: Sequence[str]) -> None:
            write_manifest(directory, {**entries, "artifacts": {kind: self.infos[kind] for kind in kinds}})

        handed = hand_over(self.place, destination, list(deployment.models), failed, not deployment.failures, describe)
        deployment.directory, deployment.rejected = handed.directory, handed.rejected
        deployment.notes += handed.notes
        for model in deployment.models.values():
            model.path = handed.directory or handed.rejected or model.path

    def _without_place(self, note: str) -> str:
        """A note without the path of a file that will have moved when somebody reads it."""
        return re.sub(rf"{re.escape(str(self.place))} \(\w+\): ", "", note)

    def _remove(self, kind: str) -> None:
        for file in EXPORTERS[kind].written_in(self.place):
            (self.place / file).unlink(missing_ok=True)

"""Everything that the report shows about one model, measured in one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from lq.analysis.compare import compare
from lq.analysis.layers import analyze_layers
from lq.analysis.model_table import CompareOptions
from lq.analysis.sensitivity import SensitivityOptions
from lq.backends.prepare import plan_of
from lq.config.qconfig import QConfig
from lq.export.artifact.directory import AnyPath
from lq.ptq.batches import reusable
from lq.ptq.static import StaticOptions, prepare_static
from lq.report.page import Findings
from lq.timing.cpu import cpu_name


@dataclass(frozen=True)
class MeasureOptions:
    """How to measure.

    Args:
        compare: for the table.
        batches: of the test data, for SQNR, sensitivity and ranges.
        direction: of the sensitivity, "one" or "all_but_one".
        resume_file: JSON file that keeps sensitivities; see :func:`~lq.analysis.sensitivity.sensitivity`.
    """

    compare: CompareOptions = field(default_factory=CompareOptions)
    batches: int = 4
    direction: str = "all_but_one"
    resume_file: AnyPath | None = None


def measure(
    model: nn.Module,
    calibration: Iterable[Any],
    test: Iterable[Any],
    qconfig: QConfig | str = "portable",
    qat: fx.GraphModule | None = None,
    artifact: AnyPath | None = None,
    history: Sequence[Mapping[str, float]] = (),
    options: MeasureOptions | None = None,
) -> Findings:
    """Compare the models, and measure noise, sensitivity and ranges of the QAT model, or of the post-training one.

    Args:
        model: the float model, on the CPU.
        calibration: batches for PTQ.
        test: batches with labels.
        qconfig: grids of the PTQ models: those of QAT.
        qat: the prepared model that was trained.
        artifact: directory of its artifact.
        history: of the training, from :func:`lq.report.history.read_history`.
        options: see :class:`MeasureOptions`.

    Returns:
        what :func:`lq.report.page.write_page` writes.

    Raises:
        ValueError: as :func:`~lq.analysis.compare.compare` does.

    Example:
        >>> net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(64, 4)
        >>> options = MeasureOptions(compare=CompareOptions(seconds=0.01))
        >>> findings = measure(net, [x], [(x, net(x).argmax(1))], options=options)
        >>> len(findings.comparison) > 3, [row["layer"] for row in findings.sensitivity]
        (True, ['0', '2'])
    """
    options = options or MeasureOptions()
    call = options.compare.call
    limit = options.compare.calibration
    calibration, test = reusable(calibration, limit), reusable(test, options.compare.limit)
    rows = compare(model, calibration, test, qconfig, qat, artifact, options.compare)
    subject = qat
    if subject is None:
        subject = prepare_static(model, calibration, qconfig, call, StaticOptions(limit=limit))
    how, threads = SensitivityOptions(call=call, limit=options.batches), options.compare.threads
    found = analyze_layers(subject, test, None, options.direction, options.resume_file, how, threads)
    return Findings(
        comparison=rows,
        history=history,
        sqnr=found.sqnr,
        sensitivity=found.sensitivity,
        exclusions=str(found.exclusions),
        excluded=found.exclusions.layers,
        ranges=found.ranges,
        plan=str(plan_of(subject)),
        notes=f"Judged on {options.compare.limit or 'all'} batches. {machine(threads)}",
    )


def machine(threads: int) -> str:
    """What latencies were taken on, in a sentence.

    Example:
        >>> "PyTorch" in machine(1)
        True
    """
    plural = "" if threads == 1 else "s"
    return f"Latency of one sample with {threads} thread{plural} on {cpu_name()}, PyTorch {torch.__version__}."

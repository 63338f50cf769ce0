"""Everything that the report shows about one model, measured in one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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

_BATCHES = 4  # of the test data, for SQNR, sensitivity and ranges


def measure(
    model: nn.Module,
    calibration: Iterable[Any],
    test: Iterable[Any],
    qconfig: QConfig | str = "portable",
    qat: fx.GraphModule | None = None,
    artifact: AnyPath | None = None,
    history: Sequence[Mapping[str, float]] = (),
    options: CompareOptions | None = None,
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
        options: see :class:`~lq.analysis.CompareOptions`.

    Returns:
        what :func:`lq.report.page.write_page` writes.

    Raises:
        ValueError: as :func:`~lq.analysis.compare.compare` does.

    Example:
        >>> net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(64, 4)
        >>> findings = measure(net, [x], [(x, net(x).argmax(1))], options=CompareOptions(seconds=0.01))
        >>> len(findings.comparison) > 3, [row["layer"] for row in findings.sensitivity]
        (True, ['0', '2'])
    """
    options = options or CompareOptions()
    call, limit, threads = options.call, options.calibration, options.threads
    calibration, test = reusable(calibration, limit), reusable(test, options.limit)
    rows = compare(model, calibration, test, qconfig, qat, artifact, options)
    subject = qat
    if subject is None:
        subject = prepare_static(model, calibration, qconfig, call, StaticOptions(limit=limit))
    how = SensitivityOptions(call=call, limit=_BATCHES)
    found = analyze_layers(subject, test, options=how, threads=threads)
    return Findings(
        comparison=rows,
        history=history,
        sqnr=found.sqnr,
        sensitivity=found.sensitivity,
        exclusions=str(found.exclusions),
        excluded=found.exclusions.layers,
        ranges=found.ranges,
        plan=str(plan_of(subject)),
        notes=f"Judged on {options.limit or 'all'} batches. {machine(threads)}",
    )


def machine(threads: int) -> str:
    """What latencies were taken on, in a sentence.

    Example:
        >>> "PyTorch" in machine(1)
        True
    """
    plural = "" if threads == 1 else "s"
    return f"Latency of one sample with {threads} thread{plural} on {cpu_name()}, PyTorch {torch.__version__}."

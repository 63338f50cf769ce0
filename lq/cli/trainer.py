"""The Trainer of the ``lq`` command: subcommands for what follows a training."""

from __future__ import annotations

from lightning.pytorch import Trainer

from lq.cli.analyze import analyze_layers_of
from lq.cli.bench import bench_artifact
from lq.cli.bits import choose_bits_of
from lq.cli.export import export_checkpoint
from lq.cli.ptq import quantize_after_training
from lq.cli.report import report_on


class QATTrainer(Trainer):
    """A Trainer that also exports checkpoints of QAT runs and measures what it exported.

    Example:
        >>> trainer = QATTrainer(logger=False, enable_checkpointing=False, accelerator="cpu")
        >>> trainer.bench()
        Traceback (most recent call last):
        ...
        ValueError: bench needs an artifact: --artifact runs/.../int8
    """

    export = export_checkpoint
    ptq = quantize_after_training
    analyze = analyze_layers_of
    bits = choose_bits_of
    report = report_on
    bench = bench_artifact

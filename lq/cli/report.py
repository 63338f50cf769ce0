"""``lq report``: float, post-training quantization and QAT on one page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn

from lq.analysis import CompareOptions
from lq.backends.prepare import qconfig_of
from lq.callback import QATCallback
from lq.callback.monitors import counting_figure, higher_is_better
from lq.callback.preparation import choose_target
from lq.checkpoints.entry import CheckpointEntry
from lq.cli.common import history_of, other_float, qat_callback, run_of
from lq.cli.values import check_counts, check_file
from lq.cli.weights import read_checkpoint, read_qat
from lq.deployment.evaluation import ValidationData, logged_by
from lq.lightning_module.copies import detached_copy, float_copy
from lq.lightning_module.loaders import spread, training_data
from lq.lightning_module.other_batches import samples_of_each
from lq.lightning_module.target import prepared_graph, target_of
from lq.lightning_module.validation import (
    call_sample,
    first_validation_call,
    labels_of,
    validation_samples,
)
from lq.metrics import targets_of
from lq.metrics.outputs import plain_targets_of
from lq.report.measure import measure
from lq.report.page import Findings, write_page, write_picture
from lq.report.plots.style import check_matplotlib
from lq.report.table import print_table


def report_on(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None = None,
    ckpt_path: str | None = None,
    artifact: str | None = None,
    out: str = "report.html",
    picture: str | None = None,
    calibration: int = 100,
    batches: int | None = None,
    float_ckpt_path: str | None = None,
    weights_only: bool | None = None,
) -> None:
    """Compare float, post-training quantization and QAT, look into the layers, and write one HTML page.

    Args:
        trainer: gives the callbacks.
        model: the LightningModule in float.
        datamodule: its training data calibrate, its validation data judge.
        ckpt_path: a checkpoint or artifact of a QAT run; null reports on post-training quantization alone.
        artifact: directory or URL of that run's artifact, whose models are judged too.
        out: the page.
        picture: PNG file for the result and its reason in one picture; null writes none.
        calibration: training batches to calibrate with.
        batches: validation batches to judge on, of each data loader; null takes all.
        float_ckpt_path: the float checkpoint that QAT started from; null takes that of the callback, or the weights as
            the model has them.
        weights_only: refuse checkpoints that hold more than plain data; null is true.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
        ValueError: if the checkpoint does not fit, or the data have no batch.

    Example:
        >>> from lq.models.digits import DigitsClassifier
        >>> report_on(Trainer(barebones=True, accelerator="cpu"), DigitsClassifier(4), out=".")
        Traceback (most recent call last):
            ...
        ValueError: --out . is a directory; give a file, such as report.html.
    """
    check_matplotlib()
    check_counts(batches=batches, calibration=calibration)
    check_file("out", out, "report.html")
    check_file("picture", picture, "report.png")
    callback = qat_callback(trainer)
    subject = _load(model, callback, ckpt_path, float_ckpt_path, weights_only)
    findings = _findings(trainer, model, datamodule, callback, subject, artifact, ckpt_path, calibration, batches)
    print_table(findings.comparison)
    known = {} if subject.entry is None else subject.entry.fp32
    caution = other_float(known, findings.comparison[0]["metrics"])
    if caution:
        rank_zero_warn(f"lq: {caution}")
        findings = replace(findings, notes=f"{caution}\n\n{findings.notes}")
    title = type(model).__name__ if not subject.name else f"{type(model).__name__}, target {subject.name}"
    rank_zero_info(f"lq: report in {write_page(out, title, findings)}")
    if picture is not None:
        rank_zero_info(f"lq: picture in {write_picture(picture, title, findings)}")


class _Subject(NamedTuple):
    """The target's name, its float version, and what the checkpoint knows of the QAT run if there was one."""

    name: str
    float_model: nn.Module
    entry: CheckpointEntry | None


def _load(
    model: LightningModule,
    callback: QATCallback,
    ckpt_path: str | None,
    float_ckpt_path: str | None,
    weights_only: bool | None,
) -> _Subject:
    """Give the module the weights of the checkpoints, and prepare it if it was trained with fake quantization."""
    before = read_checkpoint(float_ckpt_path or callback.float_ckpt_path, weights_only, "float_ckpt_path")
    checkpoint = None if ckpt_path is None else read_qat(ckpt_path, weights_only, model)
    if checkpoint is not None and not checkpoint.is_qat:
        raise ValueError(
            f"{ckpt_path} is a checkpoint of a float model: give it as --float_ckpt_path, alone for a report on "
            "post-training quantization, or with a --ckpt_path of a QAT run."
        )
    entry = None if checkpoint is None else checkpoint.entry
    name = choose_target(model, callback.target if entry is None else entry.target)
    if before is not None:
        before.load_float(model)
    float_model = float_copy(target_of(model, name)).eval()
    if checkpoint is not None:
        checkpoint.load_qat(model)
    return _Subject(name, float_model, entry)


def _findings(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    callback: QATCallback,
    subject: _Subject,
    artifact: str | None,
    ckpt_path: str | None,
    calibration: int,
    batches: int | None,
) -> Findings:
    name, entry = subject.name, subject.entry
    train = list(samples_of_each(model, name, training_data(model, datamodule), datamodule, calibration))
    example, loaders = first_validation_call(model, name, datamodule)
    qat = None if entry is None else prepared_graph(model, name, example, callback.export_settings.axes)
    labels = callback.target_fn or (plain_targets_of if callback.metric is None else targets_of)
    test = validation_samples(model, name, loaders, datamodule, labels, batches)
    validation = ValidationData(loaders if batches is None else spread(loaders, batches), datamodule, limit=batches)
    how = CompareOptions(
        callback.metric,
        call_sample,
        labels_of,
        calibration,
        limit=batches and len(test),
        own=_own_figures(model, name, validation),
        monitor=counting_figure(trainer, callback.monitor),
        higher_is_better=higher_is_better(trainer, callback.monitor, callback.mode),
    )
    qconfig = callback.qconfig if qat is None else qconfig_of(qat)
    history = history_of(run_of(artifact, ckpt_path), entry)
    return measure(subject.float_model, train, test, qconfig, qat, artifact, history, how)


def _own_figures(
    model: LightningModule, name: str, validation: ValidationData
) -> Callable[[Callable[..., Any]], dict[str, float]]:
    """What the user's own validation logs, with a version in the target's place."""
    twin = detached_copy(model)

    def own(version: Callable[..., Any]) -> dict[str, float]:
        try:
            return logged_by(twin, name, validation, "a model", version)
        except Exception as error:  # what validation_step does with an output may suit the target's alone
            rank_zero_warn(f"lq: validation_step could not evaluate a model: {error}")
            return {}

    return own

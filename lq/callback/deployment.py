"""The end of a fit: the best weights are converted, compared, exported, and the table is printed."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from lq.analysis.sqnr import sqnr_per_layer
from lq.callback.best import Kept, load_best
from lq.callback.calibration import BATCHES, training_samples
from lq.callback.candidates import StartingPoint, choose_weights
from lq.compat.packages import is_a
from lq.config.schedule import QATSchedule
from lq.deployment.deploy import Baseline, deploy
from lq.deployment.evaluation import ValidationData
from lq.deployment.results import Deployment
from lq.deployment.settings import ExportSettings
from lq.export.artifact.scratch import cleaned_up_on_sigterm
from lq.lightning_module.target import prepared_graph
from lq.messages import one_line
from lq.report.outcome import print_deployment
from lq.report.pictures import can_draw, log_pictures
from lq.tracing.structure import Inputs


@cleaned_up_on_sigterm()
def deploy_best(
    trainer: Trainer,
    twin: LightningModule,
    name: str,
    example: Inputs,
    *,
    validation: ValidationData,
    baseline: Baseline,
    settings: ExportSettings,
    schedule: QATSchedule,
    start: StartingPoint | None = None,
    history: Sequence[Mapping[str, float]] = (),
    of_others: Kept = frozenset(),
) -> Deployment:
    """Deploy the best weights of a fit that is over, and say what came out.

    Args:
        trainer: of the fit.
        twin: a copy of the trained module that nothing else uses.
        name: of its target.
        example: inputs of one call of the target, on the CPU.
        validation: data and metric.
        baseline: for the FP32 row.
        settings: what to deliver.
        schedule: for the manifest.
        start: what QAT started from, if that was calibrated: the best of it and of what was trained is deployed.
        history: of the training, for the pictures.
        of_others: checkpoints that were kept of other modules.

    Returns:
        the deployment.

    Example:
        >>> import contextlib, io, torch
        >>> from torch.utils.data import DataLoader
        >>> from lq.backends.prepare import prepare
        >>> from lq.lightning_module.quiet import quiet_trainer
        >>> from lq.models.image_classifier import ImageClassifier
        >>> from lq.ptq.calibrate import calibrate
        >>> net, x = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False)), torch.eye(2)
        >>> module = ImageClassifier(prepare(net), num_classes=2)
        >>> _ = net[0].weight.data.copy_(x), calibrate(net, [x])
        >>> data = ValidationData(DataLoader([(x[0], 0), (x[1], 1)]), show_progress=False)
        >>> run = quiet_trainer(module), module, "model", ((x,), {})
        >>> given = {"baseline": Baseline(), "settings": ExportSettings(), "schedule": QATSchedule()}
        >>> with contextlib.redirect_stdout(io.StringIO()):  # the table
        ...     deployment = deploy_best(*run, validation=data, **given)
        >>> deployment.parity["torch"].passed, deployment.results["torch"]["val/accuracy"]
        (True, 1.0)
    """
    weights = load_best(trainer, twin, name, of_others)
    if start is not None and validation.loaders is not None:
        baseline = replace(baseline, ptq=start.results)
        weights = _choose(trainer, twin, name, validation, start, baseline, weights)
    rank_zero_info(f"lq: converting the weights of {weights}, and comparing the models on the validation data")
    manifest = {"weights": weights, "schedule": vars(schedule), "target": name, "recipe": _recipe(trainer)}
    deployment = deploy(twin, name, example, validation, replace(settings, manifest=manifest), baseline)
    print_deployment(deployment)
    _log_pictures(trainer, twin, name, example, history)
    return deployment


def _choose(
    trainer: Trainer,
    twin: LightningModule,
    name: str,
    validation: ValidationData,
    start: StartingPoint,
    baseline: Baseline,
    trained: str,
) -> str:
    before = copy.deepcopy(twin.state_dict())
    known = baseline.weights(name) if baseline.has_weights and baseline.model is not None else {}
    datamodule = validation.datamodule
    samples = training_samples(twin, name, trainer.train_dataloader, datamodule, BATCHES)
    try:
        return choose_weights(twin.float(), name, validation, start, known, samples, trained)
    except Exception as error:  # whatever the user's validation cannot do outside of its own run
        reason = one_line(error)
        rank_zero_warn(f"lq: what was trained could not be compared with what it started from: {reason}")
        twin.load_state_dict(before)
        return trained


def _log_pictures(
    trainer: Trainer, twin: LightningModule, name: str, example: Inputs, history: Sequence[Mapping[str, float]]
) -> None:
    if not can_draw(trainer.loggers):
        return
    try:
        prepared = prepared_graph(twin, name, example)
        sqnr = sqnr_per_layer(prepared, [example], lambda model, inputs: model(*inputs[0], **inputs[1]), limit=1)
        log_pictures(trainer.loggers, history, sqnr, trainer.global_step)
    except Exception as error:  # loggers reach out to servers; the artifact is safe
        rank_zero_warn(f"lq: the pictures could not be logged: {error}")


def _recipe(trainer: Trainer) -> str | None:
    """The configuration of a run of LightningCLI, as YAML."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if is_a(callback, SaveConfigCallback):
            return str(callback.parser.dump(callback.config, skip_none=False))
    return None

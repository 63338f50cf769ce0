"""What ``lq export`` and ``lq ptq`` do with a module that is prepared: deliver it and say what came out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from lq.checkpoints.entry import CheckpointEntry
from lq.cli.common import qat_callback, validation_data_of
from lq.compat.packages import overrides
from lq.compat.torch_private import tree_map_only
from lq.deployment.deploy import Baseline, deploy
from lq.deployment.gated_export import gated_export
from lq.deployment.results import Compared, Deployment
from lq.deployment.settings import ExportSettings
from lq.export.artifact.int8_model import Int8Model
from lq.lightning_module.copies import detached_copy
from lq.lightning_module.target import prepared_graph
from lq.lightning_module.validation import first_validation_call
from lq.metrics.detections import comparable
from lq.report.outcome import print_deployment
from lq.tracing.inputs import made_inputs

_SEED = 0


def has_validation_data(model: LightningModule, datamodule: LightningDataModule | None) -> bool:
    """Whether there are data that a validation could run on.

    Example:
        >>> has_validation_data(LightningModule(), None)
        False
    """
    return overrides(datamodule or model, "val_dataloader")


def deploy_with_validation(
    trainer: Trainer,
    model: LightningModule,
    name: str,
    datamodule: LightningDataModule | None,
    settings: ExportSettings,
    baseline: Baseline,
) -> Deployment:
    """Deploy a prepared module, judged on its validation data, and say what came out.

    Args:
        trainer: gives callbacks and the limit of validation batches.
        model: prepared, with ranges.
        name: of its target.
        datamodule: its validation data judge; ``None`` takes the module's own.
        settings: what to deliver.
        baseline: the float model.

    Returns:
        what was delivered.

    Raises:
        RuntimeError: if an exporter fails or an artifact does not pass the gate; the others are written.

    Example:
        >>> import io
        >>> from contextlib import redirect_stdout
        >>> from lq.cli.common import calibrate_target
        >>> from lq.config.qconfig import QConfig
        >>> from lq.data.digits import DigitsDataModule
        >>> from lq.models.image_classifier import ImageClassifier
        >>> from lq.ptq.static import StaticOptions
        >>> model = ImageClassifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), 10)
        >>> data, trainer = DigitsDataModule(), Trainer(barebones=True, accelerator="cpu")
        >>> calibrate_target(model, "model", data, QConfig(), StaticOptions(limit=1))
        >>> with redirect_stdout(io.StringIO()):
        ...     done = deploy_with_validation(trainer, model, "model", data, ExportSettings(), Baseline())
        >>> list(done.models), sorted(done.results["torch"])
        (['torch'], ['accuracy', 'val/accuracy', 'val/loss'])
    """
    callback = qat_callback(trainer)
    example, loaders = first_validation_call(model, name, datamodule)
    validation = validation_data_of(trainer, callback, loaders, datamodule)
    return _told(deploy(detached_copy(model), name, example, validation, settings, baseline))


def deploy_without_data(
    model: LightningModule, entry: CheckpointEntry, settings: ExportSettings, baseline: Baseline
) -> Deployment:
    """Deploy a prepared module that has no data: what is exported is compared on random inputs.

    Args:
        model: prepared, with ranges.
        entry: of its checkpoint, which knows shapes and types of the inputs.
        settings: what to deliver.
        baseline: the float model.

    Returns:
        what was delivered.

    Raises:
        ValueError: if the checkpoint does not know the inputs.
        RuntimeError: if an exporter fails or an artifact does not pass the gate; the others are written.

    Example:
        >>> import io
        >>> from contextlib import redirect_stdout
        >>> from lq.backends.prepare import plan_of, prepare
        >>> from lq.config.qconfig import QConfig
        >>> from lq.models.image_classifier import ImageClassifier
        >>> from lq.ptq.calibrate import calibrate
        >>> net, x = torch.nn.Sequential(torch.nn.Linear(4, 2)), torch.rand(4, 4)
        >>> _ = calibrate(prepare(net, example_args=(x,)), [x])
        >>> entry = CheckpointEntry("model", QConfig(), plan=plan_of(net).to_dict())
        >>> with redirect_stdout(io.StringIO()):
        ...     done = deploy_without_data(ImageClassifier(net, 2), entry, ExportSettings(), Baseline())
        >>> list(done.models), sorted(done.results)
        (['torch'], ['torch_vs_fake'])
    """
    described = entry.plan.get("inputs")
    if described is None:
        raise ValueError("the checkpoint does not say what the model is called with; name data: --data my_module.Data")
    rank_zero_info("lq: no validation data (--data my_module.Data): compared on random inputs, without metrics")
    example = _random_like(made_inputs(described))
    graph = prepared_graph(detached_copy(model), entry.target, example, settings.axes)

    def compare(models: Mapping[str, Int8Model], keep: int) -> Compared:
        inputs = [_random_like(example, _SEED + 1 + n) for n in range(keep)]
        with torch.no_grad():
            return Compared(calls=[((args, kwargs), comparable(graph(*args, **kwargs))) for args, kwargs in inputs])

    return _told(gated_export(graph, example, compare, settings, baseline.model))


def _random_like(inputs: Any, seed: int = _SEED) -> Any:
    """The same structure with normal floats; whole numbers, which may be indices, stay as they are."""
    generator = torch.Generator().manual_seed(seed)

    def random(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator).to(x.dtype) if x.is_floating_point() else x

    return tree_map_only(Tensor, random, inputs)


def _told(done: Deployment) -> Deployment:
    print_deployment(done)
    done.raise_failures()
    return done

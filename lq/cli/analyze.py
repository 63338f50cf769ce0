"""``lq analyze``: what quantization does to every layer."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info

from lq.analysis import SensitivityOptions, analyze_layers
from lq.analysis.own_score import needs_figure, own_score
from lq.analysis.score import single_metric
from lq.cli.common import prepared_target, qat_callback, validation_data_of
from lq.cli.values import check_counts, check_folder
from lq.lightning_module.copies import detached_copy
from lq.lightning_module.target import prepared_graph
from lq.lightning_module.validation import call_sample, first_validation_call, labels_of, validation_samples
from lq.metrics import targets_of
from lq.metrics.outputs import plain_targets_of
from lq.report.layers import print_layers, write_layers


def analyze_layers_of(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None = None,
    ckpt_path: str | None = None,
    by: Literal["sqnr", "metric"] = "sqnr",
    direction: Literal["one", "all_but_one"] = "all_but_one",
    batches: int = 4,
    calibration: int = 100,
    out: str = "analysis",
    weights_only: bool | None = None,
) -> None:
    """Look at every layer: noise, sensitivity, time in int8 and in float; and propose which to leave in float.

    Prints a table and the proposal, as a line for the configuration too, and writes analysis.json, sqnr.png and
    sensitivity.png. A run that was broken off goes on where it was if weights and data are the same.

    Args:
        trainer: gives the callbacks.
        model: the LightningModule in float.
        datamodule: its training data calibrate, its validation data judge.
        ckpt_path: a checkpoint or artifact of a QAT run, or a checkpoint of the float model, which is quantized after
            training; null takes float_ckpt_path of the callback, or the weights as the model has them.
        by: what layers are ranked by: the SQNR of the output, or the figure that counts ("metric"): the metric of the
            QATCallback, what its monitor or that of a ModelCheckpoint names among the figures of the module's own
            validation, or multiclass accuracy where batches are inputs and class numbers.
        direction: quantize each layer alone ("one"), or all but it ("all_but_one").
        batches: validation batches to judge on, of each data loader.
        calibration: training batches to calibrate a float model with.
        out: directory to write to.
        weights_only: refuse checkpoints that hold more than plain data; null is true.

    Raises:
        ValueError: if an option is out of range, the checkpoint does not fit, the data have no batch or do not fit the
            metric, or nobody says which figure counts.

    Example:
        >>> import io, tempfile, torch
        >>> from contextlib import redirect_stdout
        >>> from lq.data.digits import DigitsDataModule
        >>> from lq.models.image_classifier import ImageClassifier
        >>> model = ImageClassifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), 10)
        >>> trainer = Trainer(barebones=True, accelerator="cpu")
        >>> with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()) as table:
        ...     analyze_layers_of(trainer, model, DigitsDataModule(), batches=1, calibration=1, out=folder)
        ...     names = {path.name for path in Path(folder).iterdir()}
        >>> "SQNR" in table.getvalue(), "analysis.json" in names
        (True, True)
    """
    check_counts(batches=batches, calibration=calibration)
    check_folder("out", out)
    callback, judged = qat_callback(trainer), by == "metric"
    name = prepared_target(model, datamodule, callback, ckpt_path, weights_only, calibration)
    labels = targets_of if callback.metric is not None else plain_targets_of
    target_fn = (callback.target_fn or labels) if judged else lambda batch: None
    _, loaders = first_validation_call(model, name, datamodule)
    samples = validation_samples(model, name, loaders, datamodule, target_fn, batches)
    validation = validation_data_of(trainer, callback, loaders, datamodule)
    score = own_score(detached_copy(model), name, samples, batches, validation, "analyze") if judged else None
    if judged and score is None and any(sample.labels is None for sample in samples):
        raise ValueError(needs_figure("analyze --by metric"))
    found = analyze_layers(
        prepared_graph(detached_copy(model), name, samples[0].inputs if samples else None),
        samples,
        single_metric(callback.metric) if judged else None,
        direction,
        Path(out) / f"{by}-{direction}.json",
        SensitivityOptions(call=call_sample, target_fn=labels_of, limit=len(samples) or batches, replace_other=True),
        score=score,
    )
    plain = found.to_dict()
    print_layers(plain, str(found.exclusions))
    files = write_layers(out, plain, found.exclusions.layers)
    rank_zero_info(f"lq: {', '.join(path.name for path in files)} in {out}")

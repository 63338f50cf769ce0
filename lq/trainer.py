"""The Trainer of the `lq` command: verbs for what follows a training."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn

from lq.analysis import CompareOptions, SensitivityOptions, StudyOptions, analyze_layers, study
from lq.analysis.score import single_metric
from lq.backends.prepare import qconfig_of
from lq.callback import QATCallback
from lq.callback.preparation import choose_target
from lq.checkpoint import Checkpoint
from lq.deploy import Baseline, deploy
from lq.detached import detached_copy
from lq.evaluation import Judge, logged_by
from lq.export.bench import bench
from lq.export.delivery import Deployment, Order
from lq.loaders import spread, training_batches
from lq.metrics import targets_of
from lq.metrics.outputs import plain_targets_of
from lq.ptq.static import StaticOptions
from lq.report.bench import print_bench
from lq.report.layers import print_layers, write_layers
from lq.report.page import write_page, write_picture
from lq.report.table import print_table
from lq.target import prepared_graph, target_of
from lq.validation import call_sample, first_validation_call, labels_of, samples_of, validation_samples
from lq.verbs import (
    beside,
    calibrate_target,
    check_float,
    float_copy,
    history_of,
    order_of,
    prepared_target,
    read_checkpoint,
    run_of,
)


class QATTrainer(Trainer):
    """A Trainer that also exports checkpoints of QAT runs and measures what it exported."""

    def export(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        exporters: Sequence[str | dict[str, dict[str, Any]]] | None = None,
        export_dir: str | None = None,
        weights_only: bool | None = None,
    ) -> Deployment:
        """Export a QAT checkpoint for one or more runtimes, without training again.

        Metric, gate and exporters are those of the QATCallback among the callbacks, if there is one.

        Args:
            model: the LightningModule in float; it is prepared as the checkpoint says.
            datamodule: its validation data are what artifacts are compared on.
            ckpt_path: a checkpoint of a QAT run.
            exporters: "torch", "onnx", "tensorrt", "pt2", "openvino", "executorch", "litert", or {name: options};
                null is as the callback has.
            export_dir: directory or URL of the artifact; null is beside the checkpoint, with its name and -int8.
            weights_only: refuse checkpoints that hold more than plain data; null is true.

        Returns:
            what was delivered.

        Raises:
            ValueError: if there is no checkpoint, or it does not fit.
            RuntimeError: if an exporter fails or an artifact does not pass the gate; the others are written.
        """
        if ckpt_path is None:
            raise ValueError("export needs the checkpoint of a QAT run: --ckpt_path runs/.../checkpoints/last.ckpt")
        callback = self._qat_callback()
        order = order_of(callback, exporters, export_dir or beside(ckpt_path), {"weights": str(ckpt_path)})
        checkpoint = Checkpoint.read(ckpt_path, weights_only is not False)
        entry = checkpoint.entry
        float_model = float_copy(model, choose_target(model, entry.target or None))
        checkpoint.load_qat(model)
        baseline = Baseline(float_model, entry.fp32, has_weights=False)
        return self._deliver(model, entry.target, datamodule, callback, order, baseline)

    def ptq(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        batches: int = 100,
        batch_norm: bool = False,
        bias: bool = False,
        exporters: Sequence[str | dict[str, dict[str, Any]]] | None = None,
        export_dir: str | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> Deployment:
        """Quantize after training: calibrate on training batches, compare, export; the baseline that QAT has to beat.

        Target, qconfig, metric, gate and exporters are those of the QATCallback among the callbacks, if there is one;
        activations are observed by histograms unless its qconfig says otherwise.

        Args:
            model: the trained LightningModule in float.
            datamodule: its training data calibrate, its validation data judge.
            batches: training batches to calibrate with.
            batch_norm: measure BatchNorm statistics anew behind quantized weights.
            bias: correct biases for the mean error of the weights.
            exporters: "torch", "onnx", "tensorrt", "pt2", "openvino", "executorch", "litert", or {name: options};
                null is as the callback has.
            export_dir: directory or URL of the artifact; null is ptq-int8 in the default root directory.
            ckpt_path: a float checkpoint; null takes the weights as the model has them.
            weights_only: refuse checkpoints that hold more than plain data; null is true.

        Returns:
            what was delivered.

        Raises:
            ValueError: if the checkpoint does not fit, or the data have no batch.
            RuntimeError: if an exporter fails or an artifact does not pass the gate; the others are written.
        """
        callback = self._qat_callback()
        name = choose_target(model, callback.target)
        checkpoint = read_checkpoint(ckpt_path, weights_only)
        if checkpoint is not None:
            checkpoint.load_float(model)
        directory = export_dir or f"{self.default_root_dir.rstrip('/')}/ptq-int8"
        order = order_of(callback, exporters, directory, {"weights": "post-training quantization"})
        float_model = float_copy(model, name)
        calibrate_target(model, name, datamodule, callback.qconfig, StaticOptions(batch_norm, bias, batches))
        return self._deliver(model, name, datamodule, callback, order, Baseline(float_model))

    def analyze(
        self,
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
            model: the LightningModule in float.
            datamodule: its training data calibrate, its validation data judge.
            ckpt_path: a checkpoint of a QAT run, or one of the float model, which is quantized after training; null
                takes the weights as the model has them.
            by: what layers are ranked by: the SQNR of the output, or the metric of the QATCallback (accuracy without).
            direction: quantize each layer alone ("one"), or all but it ("all_but_one").
            batches: validation batches to judge on, of each data loader.
            calibration: training batches to calibrate a float model with.
            out: directory to write to.
            weights_only: refuse checkpoints that hold more than plain data; null is true.

        Raises:
            ValueError: if the checkpoint does not fit, or the data have no batch or do not fit the metric.
        """
        callback, judged = self._qat_callback(), by == "metric"
        checkpoint = read_checkpoint(ckpt_path, weights_only)
        name = prepared_target(model, datamodule, callback, checkpoint, calibration)
        target_fn = (callback.target_fn or targets_of) if judged else lambda batch: None
        _, loaders = first_validation_call(model, name, datamodule)
        samples = validation_samples(model, name, loaders, datamodule, target_fn, batches)
        found = analyze_layers(
            prepared_graph(detached_copy(model), name, samples[0].inputs if samples else None),
            samples,
            single_metric(callback.metric) if judged else None,
            direction,
            Path(out) / f"{by}-{direction}.json",
            SensitivityOptions(
                call=call_sample, target_fn=labels_of, limit=len(samples) or batches, replace_other=True
            ),
        )
        plain = found.to_dict()
        print_layers(plain, str(found.exclusions))
        files = write_layers(out, plain, found.exclusions.layers)
        rank_zero_info(f"lq: {', '.join(path.name for path in files)} in {out}")

    def report(
        self,
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
            model: the LightningModule in float.
            datamodule: its training data calibrate, its validation data judge.
            ckpt_path: a checkpoint of a QAT run; null reports on post-training quantization alone.
            artifact: directory or URL of that run's artifact, whose models are judged too.
            out: the page.
            picture: PNG file for the result and its reason in one picture; null writes none.
            calibration: training batches to calibrate with.
            batches: validation batches to judge on, of each data loader; null takes all.
            float_ckpt_path: the float checkpoint that QAT started from; null takes the weights as the model has them.
            weights_only: refuse checkpoints that hold more than plain data; null is true.

        Raises:
            ValueError: if the checkpoint does not fit, or the data have no batch.
        """
        callback = self._qat_callback()
        checkpoint, before = read_checkpoint(ckpt_path, weights_only), read_checkpoint(float_ckpt_path, weights_only)
        entry = None if checkpoint is None else checkpoint.entry
        name = choose_target(model, callback.target if entry is None else entry.target or None)
        if before is not None:
            before.load_float(model)
        float_model, qat = float_copy(model, name), None
        if checkpoint is not None:
            checkpoint.load_qat(model)
        train = list(samples_of(model, name, islice(training_batches(model, datamodule), calibration), datamodule))
        example, loaders = first_validation_call(model, name, datamodule)
        if checkpoint is not None:
            qat = prepared_graph(model, name, example)
        target_fn = callback.target_fn or (plain_targets_of if callback.metric is None else targets_of)
        test = validation_samples(model, name, loaders, datamodule, target_fn, batches)
        judge = Judge(loaders if batches is None else spread(loaders, batches), datamodule, limit=batches)
        twin = detached_copy(model)

        def own(version: Callable[..., Any]) -> dict[str, float]:
            try:
                return logged_by(twin, name, judge, "a model", version)
            except Exception as error:  # what validation_step does with an output may suit the target's alone
                rank_zero_warn(f"lq: a model could not be judged by validation_step: {error}")
                return {}

        how = CompareOptions(callback.metric, call_sample, labels_of, calibration, limit=batches and len(test), own=own)
        qconfig = callback.qconfig if qat is None else qconfig_of(qat)
        history = history_of(run_of(artifact, ckpt_path), entry)
        findings = study(float_model, train, test, qconfig, qat, artifact, history, StudyOptions(how))
        print_table(findings.comparison)
        if entry is not None:
            check_float(entry.fp32, findings.comparison[0]["metrics"])
        title = type(float_model).__name__
        rank_zero_info(f"lq: report in {write_page(out, title, findings)}")
        if picture is not None:
            rank_zero_info(f"lq: picture in {write_picture(picture, title, findings)}")

    def bench(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        artifact: str | None = None,
        batch_sizes: Sequence[int] = (1, 16),
        threads: int = 1,
        min_time: float = 1.0,
        compile: bool = True,
        json_file: str | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Measure size, latency and throughput of an artifact's models against the float model.

        Args:
            model: the LightningModule in float.
            datamodule: not used; it may stand in the configuration.
            artifact: directory or URL of the artifact.
            batch_sizes: sizes to measure.
            threads: for every runtime.
            min_time: seconds of timed calls for each model and batch size.
            compile: also measure what inductor makes of float and of "pt2"; it takes some minutes.
            json_file: where to write the figures.
            ckpt_path: not used; it stands in the configuration that a fit has written.
            weights_only: not used, likewise.

        Raises:
            ValueError: if there is no artifact, or as :func:`lq.bench`.
        """
        if artifact is None:
            raise ValueError("bench needs an artifact: --artifact runs/.../int8")
        name = choose_target(model, self._qat_callback().target)
        target: nn.Module = target_of(model, name)
        torch.set_num_threads(threads)
        measured = bench(
            artifact, target, tuple(batch_sizes), threads, min_time, compile, lambda line: rank_zero_info(f"lq: {line}")
        )
        print_bench(measured.rows, measured.notes)
        if json_file is not None:
            content = {"rows": measured.rows, "notes": measured.notes}
            Path(json_file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def _deliver(
        self,
        model: LightningModule,
        name: str,
        datamodule: LightningDataModule | None,
        callback: QATCallback,
        order: Order,
        baseline: Baseline,
    ) -> Deployment:
        """Deploy a prepared module, judged on its validation data, and say what came out."""
        example, loaders = first_validation_call(model, name, datamodule)
        judge = Judge(loaders, datamodule, callback.metric, callback.target_fn, self.limit_val_batches)
        done = deploy(detached_copy(model), name, example, judge, order, baseline)
        print_table(done.rows)
        for note in done.notes:
            rank_zero_info(f"lq: {note}")
        if done.directory is not None:
            rank_zero_info(f"lq: artifact in {done.directory}")
        done.raise_failures()
        return done

    def _qat_callback(self) -> QATCallback:
        found = [c for c in self.callbacks if isinstance(c, QATCallback)]  # type: ignore[attr-defined]
        return found[0] if found else QATCallback()

"""The Trainer of the `lq` command: verbs for what follows a training."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn

from lq.callback import QATCallback
from lq.checkpoint import load_checkpoint, load_float, read_entry
from lq.deploy import Baseline, deploy
from lq.evaluation import Judge
from lq.export.bench import bench
from lq.export.delivery import Deployment, Order
from lq.loaders import training_batches, validation_batches
from lq.ptq import prepare_static
from lq.ptq.static import StaticOptions
from lq.report.bench import print_bench
from lq.report.history import read_history
from lq.report.table import print_table
from lq.target import detached_copy, find_target, graft, prepared_graph, target_of
from lq.validation import first_validation_call


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
            exporters: "torch", "onnx", "tensorrt", "pt2", "openvino", "executorch", or {name: options}; null is as the
                callback has.
            export_dir: directory of the artifact; null is beside the checkpoint, with its name and -int8.
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
        order = _order(callback, exporters, Path(export_dir or _beside(ckpt_path)), {"weights": str(ckpt_path)})
        entry = read_entry(ckpt_path)
        float_model = _float_copy(model, entry.target)
        load_checkpoint(ckpt_path, model, weights_only=weights_only is not False)
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
            exporters: "torch", "onnx", "tensorrt", "pt2", "openvino", "executorch", or {name: options}; null is as the
                callback has.
            export_dir: directory of the artifact; null is ptq-int8 in the default root directory.
            ckpt_path: a float checkpoint; null takes the weights as the model has them.
            weights_only: refuse checkpoints that hold more than plain data; null is true.

        Returns:
            what was delivered.

        Raises:
            ValueError: if the checkpoint does not fit, or the data have no batch.
            RuntimeError: if an exporter fails or an artifact does not pass the gate; the others are written.
        """
        if ckpt_path is not None:
            load_float(model, ckpt_path, weights_only is not False)
        callback = self._qat_callback()
        directory = Path(export_dir or Path(self.default_root_dir) / "ptq-int8")
        order = _order(callback, exporters, directory, {"weights": "post-training quantization"})
        name = find_target(model, callback.target)
        float_model = _float_copy(model, name)
        options = StaticOptions(batch_norm, bias, batches, callback.target)
        prepared = prepare_static(model, training_batches(model, datamodule), callback.qconfig, options=options)
        graft(model, name, prepared)
        return self._deliver(model, name, datamodule, callback, order, Baseline(float_model))

    def report(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        artifact: str | None = None,
        out: str = "report.html",
        calibration: int = 100,
        batches: int | None = None,
        float_ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Compare float, post-training quantization and QAT, look into the layers, and write one HTML page.

        Args:
            model: the LightningModule in float.
            datamodule: its training data calibrate, its validation data judge; batches are (inputs, labels).
            ckpt_path: a checkpoint of a QAT run; null reports on post-training quantization alone.
            artifact: directory of that run's artifact, whose models are judged too.
            out: the page.
            calibration: training batches to calibrate with.
            batches: validation batches to judge on; null takes all.
            float_ckpt_path: the float checkpoint that QAT started from; null takes the weights as the model has them.
            weights_only: refuse checkpoints that hold more than plain data; null is true.

        Raises:
            ValueError: if the checkpoint does not fit, or the data have no batch.
        """
        from lq.analysis import CompareOptions, StudyOptions, study
        from lq.report.page import write_page  # and with it matplotlib

        callback = self._qat_callback()
        name = find_target(model, callback.target)
        if float_ckpt_path is not None:
            load_float(model, float_ckpt_path, weights_only is not False)
        float_model, qat = _float_copy(model, name), None
        train = list(islice(training_batches(model, datamodule), calibration))
        test = validation_batches(model, datamodule)
        if ckpt_path is not None:
            load_checkpoint(ckpt_path, model, weights_only=weights_only is not False)
            qat = prepared_graph(model, name)
        how = CompareOptions(callback.metric, target_fn=callback.target_fn, calibration=calibration, limit=batches)
        history = _history(Path(artifact).parent if artifact else Path(ckpt_path).parents[1] if ckpt_path else None)
        options = StudyOptions(how)
        findings = study(float_model, train, test, callback.qconfig, qat, artifact, history, options)
        print_table(findings.comparison)
        if ckpt_path is not None:
            _check_float(read_entry(ckpt_path).fp32, findings.comparison[0]["metrics"])
        rank_zero_info(f"lq: report in {write_page(out, type(target_of(model, name)).__name__, findings)}")

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
            artifact: directory of the artifact.
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
        name = find_target(model, self._qat_callback().target)
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
        """Deploy a grafted module, judged on its validation data, and say what came out."""
        example, loaders = first_validation_call(model, name, datamodule)
        judge = Judge(loaders, datamodule, callback.metric, callback.target_fn, self.limit_val_batches)
        done = deploy(detached_copy(model), name, example, judge, order, baseline)
        print_table(done.rows)
        for note in done.notes:
            rank_zero_info(f"lq: {note}")
        rank_zero_info(f"lq: artifact in {order.directory}")
        done.raise_failures()
        return done

    def _qat_callback(self) -> QATCallback:
        found = [c for c in self.callbacks if isinstance(c, QATCallback)]  # type: ignore[attr-defined]
        return found[0] if found else QATCallback()


def _order(callback: QATCallback, exporters: Sequence[Any] | None, directory: Path, manifest: dict[str, Any]) -> Order:
    chosen = callback.order.exporters if exporters is None else tuple(exporters)
    return replace(callback.order, exporters=chosen, directory=directory, manifest=manifest)


def _check_float(known: Mapping[str, float], found: Mapping[str, float]) -> None:
    """Warn if the float model is not the one that QAT started from, as after float epochs in the same fit."""
    for name in known.keys() & found.keys():
        if abs(known[name] - found[name]) > 0.05 * abs(known[name]):
            rank_zero_warn(
                f"lq: the float model reaches {name} {found[name]:.4g} here, but QAT started from {known[name]:.4g}: "
                "its weights are not those of then, so the rows of FP32 and PTQ say nothing. Give --float_ckpt_path."
            )


def _beside(ckpt_path: str) -> Path:
    path = Path(ckpt_path)
    return path.with_name(f"{path.stem}-int8")


def _float_copy(model: LightningModule, name: str) -> nn.Module:
    target = copy.deepcopy(target_of(model, name)) if name else detached_copy(model)
    return target.cpu().float().eval()


def _history(directory: Path | None) -> list[dict[str, float]]:
    """The log of the run, if it was written by CSVLogger."""
    return read_history(directory) if directory is not None and (directory / "metrics.csv").is_file() else []

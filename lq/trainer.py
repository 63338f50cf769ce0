"""The Trainer of the `lq` command: verbs for what follows a training."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import nn

from lq.callback import QATCallback
from lq.checkpoint import load_checkpoint, read_entry
from lq.deploy import Baseline, deploy
from lq.evaluation import Judge, first_validation_call
from lq.export.bench import bench
from lq.export.delivery import Deployment
from lq.report.bench import print_bench
from lq.report.table import print_table
from lq.target import detached_copy, find_target, target_of


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
            exporters: "torch", "onnx", "tensorrt", "pt2", "openvino", or {name: options}; null is as the callback has.
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
        order = replace(callback.order, exporters=tuple(exporters)) if exporters is not None else callback.order
        directory = (
            Path(export_dir)
            if export_dir
            else Path(ckpt_path).with_suffix("").with_name(f"{Path(ckpt_path).stem}-int8")
        )
        entry = read_entry(ckpt_path)
        float_model = copy.deepcopy(target_of(model, entry.target)) if entry.target else detached_copy(model)
        load_checkpoint(ckpt_path, model, weights_only=weights_only is not False)
        example, loaders = first_validation_call(model, entry.target, datamodule)
        judge = Judge(loaders, datamodule, callback.metric, callback.target_fn, self.limit_val_batches)
        order = replace(order, directory=directory, manifest={"weights": str(ckpt_path), "target": entry.target})
        baseline = Baseline(float_model.cpu().float().eval(), entry.fp32, has_weights=False)
        done = deploy(detached_copy(model), entry.target, example, judge, order, baseline)
        print_table(done.rows)
        for note in done.notes:
            rank_zero_info(f"lq: {note}")
        rank_zero_info(f"lq: artifact in {directory}")
        done.raise_failures()
        return done

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

    def _qat_callback(self) -> QATCallback:
        found = [c for c in self.callbacks if isinstance(c, QATCallback)]  # type: ignore[attr-defined]
        return found[0] if found else QATCallback()

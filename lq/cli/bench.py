"""``lq bench``: how large and how fast the models of an artifact are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info

from lq.callback.preparation import choose_target
from lq.cli.common import qat_callback
from lq.cli.values import check_counts, check_file
from lq.lightning_module.target import target_of
from lq.report.bench import print_bench
from lq.timing.bench import bench


def bench_artifact(
    trainer: Trainer,
    model: LightningModule | None = None,
    datamodule: LightningDataModule | None = None,
    artifact: str | None = None,
    batch_sizes: Sequence[int] = (1, 16),
    threads: int = 1,
    min_time: float = 1.0,
    compile: bool = True,
    npu: str = "ethos-u55-128",
    json_file: str | None = None,
    ckpt_path: str | None = None,
    weights_only: bool | None = None,
) -> None:
    """Measure size, latency and throughput of an artifact's models against the float model.

    Args:
        trainer: gives the callbacks.
        model: the LightningModule in float; without one, the rows of the float model are left out.
        datamodule: not used; it may stand in the configuration.
        artifact: directory or URL of the artifact.
        batch_sizes: sizes to measure.
        threads: for every runtime.
        min_time: seconds of timed calls for each model and batch size.
        compile: also measure what inductor makes of float and of "pt2"; it takes some minutes.
        npu: which Ethos-U Arm's compiler vela estimates .tflite files for, where it is installed.
        json_file: where to write the figures.
        ckpt_path: a checkpoint whose hyperparameters build the float model; its weights make no difference here.
        weights_only: read its hyperparameters only if they are plain data; null is true.

    Raises:
        ValueError: if there is no artifact, an option is out of range, or as :func:`lq.bench`.

    Example:
        >>> import io, tempfile
        >>> from contextlib import redirect_stdout
        >>> from lq.deployment.deploy import export_artifact
        >>> from lq.ptq.static import prepare_static
        >>> prepared = prepare_static(torch.nn.Sequential(torch.nn.Linear(4, 2)), [torch.eye(4)])
        >>> trainer, threads = Trainer(barebones=True, accelerator="cpu"), torch.get_num_threads()
        >>> with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        ...     _ = export_artifact(prepared, [torch.eye(4)], folder)
        ...     file = f"{folder}/bench.json"
        ...     bench_artifact(trainer, None, None, folder, [2], threads, min_time=0.001, json_file=file)
        ...     (row,) = json.loads(Path(file).read_text())["rows"]
        >>> row["model"], row["batch_size"], row["latency_ms"] > 0
        ('int8 torch', 2, True)
    """
    if artifact is None:
        raise ValueError("bench needs an artifact: --artifact runs/.../int8")
    check_counts(threads=threads)
    if not min_time > 0:
        raise ValueError(f"--min_time {min_time} must be above 0 seconds, e.g. 1.0.")
    check_file("json_file", json_file, "bench.json")
    target = None
    if model is None:
        rank_zero_info("lq: no module (--model my_module.Net): the rows of the float model are left out")
    else:
        target = target_of(model, choose_target(model, qat_callback(trainer).target))
    torch.set_num_threads(threads)
    measured = bench(
        artifact,
        target,
        tuple(batch_sizes),
        threads,
        min_time,
        compile,
        lambda line: rank_zero_info(f"lq: {line}"),
        npu,
    )
    print_bench(measured.rows, measured.notes)
    if json_file is not None:
        content = {"rows": measured.rows, "notes": measured.notes, "chips": measured.chips}
        file = Path(json_file)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

"""The backends beside each other: what each quantizes, how well int8 follows, and what a training step costs.

    python -m benchmarks.backends --models resnet18 mobilenet_v2 --rounds 7

First a MobileNetV2 that is annotated by hand (``lq.models.annotated``) is trained on scikit-learn's digits, and from
that float model once with every backend; each artifact is compared with the model that was trained. Then training steps
are timed, those of torchao's own ``prepare_qat_pt2e`` among them.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from benchmarks._common import TIMING_COLUMNS, Row, compare, label, number, parse, parser, report
from benchmarks._variants import FLOAT, Case, Step, build, cases
from lq.backends.prepare import prepare, set_phase
from lq.backends.pt2e.quantizers import make_quantizer
from lq.callback import QATCallback
from lq.config.qconfig import QConfig
from lq.config.schedule import QATSchedule
from lq.data import DigitsDataModule
from lq.lightning_module.quiet import quiet_lightning
from lq.models.annotated import AnnotatedMobileNetV2
from lq.models.image_classifier import ImageClassifier
from lq.models.optimizer import OptimizerConfig

BACKENDS = {
    "fx": QConfig(),
    "eager": QConfig(backend="eager"),
    "pt2e x86_inductor": QConfig(backend="pt2e", quantizer="x86_inductor"),
    "pt2e xnnpack": QConfig(backend="pt2e", quantizer="xnnpack"),
}
STOCK = "torchao PT2E"
EXPORTERS = ("torch", "onnx", "openvino", "pt2")
FIDELITY_COLUMNS = (
    label("backend", "backend"),
    number("layers", "layers", "d"),
    number("quantizers", "fake quantizers", "d"),
    label("model", "model"),
    number("accuracy", "accuracy", ".4f"),
    number("agreement", "agreement", ".2%"),
    number("sqnr_db", "SQNR dB", ".1f"),
    number("size_mb", "MB", ".2f"),
)
STEP_COLUMNS = (label("model", "model"), label("step", "step"), *TIMING_COLUMNS)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Train, measure, print both tables."""
    options = parse(_options(), arguments)
    rows = fidelity(options.epochs)
    report(f"Digits, {options.epochs} epochs of QAT", FIDELITY_COLUMNS, rows, options)
    for name in options.models:
        steps = measure(name, cases(options.size)[name], options)
        report(f"Training step, batch {options.batch}, 3x{options.size}x{options.size}", STEP_COLUMNS, steps, options)
        rows += steps
    return rows


def _options() -> argparse.ArgumentParser:
    options = parser("The backends beside each other.", rounds=7)
    options.add_argument("--models", nargs="*", default=["resnet18"], metavar="NAME", help="whose steps are timed")
    options.add_argument("--epochs", type=int, default=6, help="of QAT, on digits; twice as many in float (default: 6)")
    options.add_argument("--batch", type=int, default=16, help="images a step (default: 16)")
    options.add_argument("--size", type=int, default=96, help="height and width of an image (default: 96)")
    return options


def fidelity(epochs: int) -> list[Row]:
    """One row for every artifact of every backend."""
    data, module = DigitsDataModule(), _classifier(AnnotatedMobileNetV2(16))
    with tempfile.TemporaryDirectory() as folder, quiet_lightning(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _trainer(folder, 2 * epochs).fit(module, data)
        return [row for name in BACKENDS for row in _fidelity(name, copy.deepcopy(module.model), data, folder, epochs)]


def _fidelity(name: str, model: nn.Module, data: DigitsDataModule, folder: str, epochs: int) -> list[Row]:
    L.seed_everything(0)
    schedule = QATSchedule(lr=0.1)
    qat = QATCallback(
        qconfig=BACKENDS[name], schedule=schedule, exporters=EXPORTERS, export_dir=str(Path(folder) / name)
    )
    _trainer(folder, epochs, qat).fit(_classifier(model), data)
    assert qat.plan is not None
    assert qat.deployment is not None
    counts = {"backend": name, "layers": len(qat.plan.quantized), "quantizers": len(qat.plan.tensors)}
    return [{**counts, **row, **row["metrics"]} for row in qat.deployment.rows]


def _classifier(model: nn.Module) -> ImageClassifier:
    module = ImageClassifier(model, 10, OptimizerConfig("adamw", 0.003))
    module.example_input_array = torch.zeros(2, 1, 8, 8)
    return module


def _trainer(folder: str, epochs: int, *callbacks: Any) -> L.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(
        accelerator="cpu", max_epochs=epochs, default_root_dir=folder, callbacks=list(callbacks),
        enable_model_summary=False, **quiet,
    )  # fmt: skip


def measure(name: str, case: Case, options: argparse.Namespace) -> list[Row]:
    """One row for the float step of a model, that of torchao, and that of every backend that takes the model."""
    x, y = case.batch(options.batch, torch.device(options.device))
    models: dict[str, nn.Module] = {FLOAT: build(FLOAT, case, x), STOCK: _stock(case, x)}
    for backend, qconfig in BACKENDS.items():
        if backend != "eager":  # has the same places as fx
            models[backend] = prepare(build(FLOAT, case, x), qconfig, example_args=(x,))
            set_phase(models[backend], fake_quant=True, observer=True, freeze_bn=False)
    for model in models.values():
        model.train()  # torchao's returns nothing
    steps = {step: Step.of(model, x, y) for step, model in models.items()}
    timings = compare(steps, dict.fromkeys(steps, FLOAT), options)
    return [{"model": name, "step": step, **timing.row()} for step, timing in timings.items()]


def _stock(case: Case, x: Tensor) -> nn.Module:
    """As torchao's documentation has it."""
    from torchao.quantization.pt2e import allow_exported_model_train_eval
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

    exported = torch.export.export(build(FLOAT, case, x), (x,), strict=True).module()
    prepared: nn.Module = prepare_qat_pt2e(exported, make_quantizer(BACKENDS["pt2e x86_inductor"]))
    allow_exported_model_train_eval(prepared)
    return prepared


if __name__ == "__main__":
    main()

"""LiteRT: how near its integers are, how large the file is, what is moved, and how fast it is beside ONNX Runtime.

``python -m benchmarks.litert``. Weights are random, and BatchNorm statistics fit them; ranges come from a calibration
on noise. How far random networks are from the fake-quantized model is for the most part rounding, as the column of the
same model in float64 shows; times are of one run that takes turns.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from benchmarks._common import Column, Row, label, number, parse, parser, report, take_turns
from lq.backends.prepare import prepare
from lq.conversion.bias import round_biases
from lq.conversion.graph import as_graph
from lq.export.artifact.signature import Signature
from lq.export.exporters import EXPORTERS
from lq.export.formats.litert import FILE, write_float
from lq.export.formats.litert.runtime import interpreted
from lq.export.formats.mcu.interpreter import RefusedError, arena_bytes
from lq.export.formats.onnx import session_model, write_program
from lq.export.formats.program import float_program
from lq.metrics import sqnr, top1_agreement
from lq.ptq import calibrate

MODELS = ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x1_0", "efficientnet_lite0", "unet", "vit")


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure all models and print a table."""
    options = _options(arguments)
    rows = [_measured(name, options) for name in options.models]
    columns = [
        label("model", "model"),
        number("sqnr", "SQNR dB", ".1f"),
        number("float64", "float64 dB", ".1f"),
        number("agreement", "top-1", ".1%"),
        number("mb", "MB", ".2f"),
        number("bytes", "bytes a weight", ".3f"),
        number("transposes", "transposes", "d"),
        number("in_float", "in float", "d"),
        number("litert", "int8 LiteRT", ".2f"),
        number("litert_float", "float LiteRT", ".2f"),
        number("onnx", "int8 ONNX", ".2f"),
        number("onnx_float", "float ONNX", ".2f"),
        Column("arena kB", ("arena",), lambda size: format(size / 1024, ".0f")),
    ]
    report(f"LiteRT at {options.size}x{options.size}, ms for one image", columns, rows, options)
    return rows


def _measured(name: str, options: argparse.Namespace) -> Row:
    x, y = _noise(4, options.size, 0), _noise(options.images, options.size, 1)
    model = _network(name, options.size, x)
    prepared = prepare(copy.deepcopy(model), "litert", example_args=(x,))
    calibrate(prepared, [x, _noise(4, options.size, 2)], show_progress=False)
    graph = as_graph(prepared).eval()
    round_biases(graph)
    with tempfile.TemporaryDirectory() as place, torch.no_grad():
        runs, info = _runtimes(model, graph, x, Path(place), options.threads)
        size = (Path(place) / FILE).stat().st_size
        expected = graph(y)
        got = runs["litert"](y)
        exact = copy.deepcopy(graph).double()(y.double()).float()
        one = y[:1]
        seconds = take_turns(
            {kind: (lambda run=run: run(one)) for kind, run in runs.items()}, options.rounds, torch.device("cpu")
        )
        arena = _arena(Path(place) / FILE)
    weights = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    return {
        "model": name,
        "sqnr": float(sqnr(expected, got)),
        "float64": float(sqnr(expected, exact)),
        "agreement": float(top1_agreement(expected, got)),
        "mb": size / 1e6,
        "bytes": size / weights,
        "transposes": info["transposes"],
        "in_float": len(info["float_layers"]) + len(info["float_operators"]),
        **{kind: 1e3 * sorted(times)[len(times) // 2] for kind, times in seconds.items()},
        "arena": arena,
    }


def _runtimes(
    model: nn.Module, graph: fx.GraphModule, x: Tensor, place: Path, threads: int
) -> tuple[dict[str, Callable[[Tensor], Any]], dict[str, Any]]:
    example = ((x,), {})
    signature = Signature.of(graph, example, graph(x))
    runs: dict[str, Callable[[Tensor], Any]] = {}
    infos = {}
    for kind in ("litert", "onnx"):
        infos[kind] = EXPORTERS[kind].export(graph, example, place)
        runs[kind] = EXPORTERS[kind].load(place, signature, infos[kind], threads)
    largest = write_float(model, example, place / "float.tflite")
    runs["litert_float"] = interpreted(place / "float.tflite", signature, threads, largest_batch=largest)
    write_program(float_program(model, example)[0], place / "float.onnx")
    runs["onnx_float"] = session_model(place / "float.onnx", signature, threads)
    return runs, infos["litert"]


def _arena(path: Path) -> int | None:
    """Bytes that tflite-micro lays out for the file; ``None`` without it, or where it lacks an operator."""
    try:
        return arena_bytes(path)
    except (ImportError, RefusedError):
        return None


def _network(name: str, size: int, x: Tensor) -> nn.Module:
    """A network with random weights and BatchNorm statistics that fit them."""
    torch.manual_seed(0)
    model = _built(name, size)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    with torch.no_grad():
        model.train()(x)
    return model.eval()


def _built(name: str, size: int) -> nn.Module:
    import torchvision

    if name == "efficientnet_lite0":
        from lq.models.efficientnet_lite import EfficientNetLite0

        return EfficientNetLite0()
    if name == "unet":
        import segmentation_models_pytorch

        unet: nn.Module = segmentation_models_pytorch.Unet("resnet18", encoder_weights=None, classes=3)
        return unet
    if name == "vit":
        return torchvision.models.VisionTransformer(size, 16, 4, 3, 192, 768, num_classes=1000)
    model: nn.Module = torchvision.models.get_model(name)
    return model


def _noise(count: int, size: int, seed: int) -> Tensor:
    """Images of coarse and fine noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 7, 7, generator=generator)
    coarse = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    return coarse + 0.5 * torch.randn(count, 3, size, size, generator=generator)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    options = parser("LiteRT beside ONNX Runtime, and beside the fake-quantized model.", rounds=5)
    options.add_argument("--models", nargs="+", default=list(MODELS))
    options.add_argument("--size", type=int, default=224, help="side of the images (default: 224)")
    options.add_argument("--images", type=int, default=32, help="to compare on (default: 32)")
    return parse(options, arguments)


if __name__ == "__main__":
    main()

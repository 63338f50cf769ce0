"""Judge the recipes of this folder on the 10,000 test images: FP32, two kinds of PTQ, QAT.

    python recipes/fashion_mnist/compare.py            # after the four trainings, see README.md
    python recipes/fashion_mnist/compare.py --train    # runs the trainings first (an hour on two cores)

Prints one table per model and writes them to runs/fashion_mnist_comparison.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.progress import track
from torch import Tensor, nn

import lq
from lq.benchmark import compare_latency, size_mb
from lq.data import FashionMNISTDataModule
from lq.deprecations import quiet_torchscript
from lq.export.artifact import load_prepared_state
from lq.export.rows import fastest_float, float_forms
from lq.metrics import ModelComparison
from lq.models import Classifier
from lq.report.table import print_table

HERE = Path(__file__).parent
RUNS = Path("runs")
CALIBRATION_BATCHES = 100


def main() -> None:
    """Train if asked, compare, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mobilenet_v2", "resnet18"])
    parser.add_argument("--train", action="store_true", help="run the float and QAT recipes first")
    parser.add_argument("--images", type=int, default=10_000, help="test images to use")
    options = parser.parse_args()
    tables = {}
    for name in options.models:
        if options.train:
            for kind in ("float", "qat"):
                recipe = HERE / f"{name}_{kind}.yaml"
                subprocess.run([sys.executable, "-m", "lq", "fit", "--config", str(recipe)], check=True)
        tables[name] = compare(name, options.images)
        print_table(tables[name], title=f"{name}, {options.images} test images")
    (RUNS / "fashion_mnist_comparison.json").write_text(json.dumps(tables, indent=2))


def compare(name: str, images: int) -> list[dict[str, Any]]:
    """The rows of one model's table."""
    data = FashionMNISTDataModule()
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    float_model = _network(f"{name}_float.yaml")
    float_model.load_state_dict(_checkpoint(name))
    float_model.eval()
    example = next(iter(data.test_dataloader()))[0][:1]
    artifact = _newest_artifact(name)
    int8 = lq.load(artifact)
    # First of all, in a process that nothing else has warmed, fragmented or filled.
    times = compare_latency({**float_forms(float_model, ((example,), {})), "QAT int8": int8}, (example,), threads=1)
    times["FP32"] = fastest_float(times)
    versions: dict[str, Callable[..., Any]] = {
        "FP32": float_model,
        "PTQ int8, torch.ao histogram": _torch_ao_ptq(float_model, data.train_dataloader(), example),
        "PTQ int8, lq moving average": _lq_ptq(float_model, data.train_dataloader()),
        "QAT fake": _fake_quantized(name, artifact),
        "QAT int8": int8,
    }
    comparison = ModelComparison(list(versions), pairs=[("QAT fake", "QAT int8")])
    for x, y in track(list(_first(data.test_dataloader(), images)), description=name):
        with torch.no_grad():
            comparison.update({key: model(x) for key, model in versions.items()}, y)
    results = comparison.compute()
    sizes = {"FP32": size_mb(float_model), "QAT int8": size_mb(artifact / "int8.pt")}
    fidelity = results["QAT int8_vs_QAT fake"]
    rows: list[dict[str, Any]] = []
    for key in versions:
        row: dict[str, Any] = {"model": key, "metrics": results[key], "size_mb": sizes.get(key)}
        if key in times:
            row |= {"latency_ms": times[key].median_ms, "threads": 1}
        if key == "QAT int8":
            row |= {"agreement": fidelity["agreement"], "sqnr_db": fidelity["sqnr_db"]}
        rows.append(row)
    return rows


def _network(recipe: str) -> nn.Module:
    arguments = yaml.safe_load((HERE / recipe).read_text())["model"]["init_args"]
    return Classifier(**{k: v for k, v in arguments.items() if k not in ("optimizer", "weights")}).model


def _checkpoint(name: str) -> dict[str, Tensor]:
    path = RUNS / "checkpoints" / f"fashion_mnist_{name}_float.ckpt"
    if not path.is_file():
        sys.exit(f"{path} is missing: run lq fit --config {HERE / f'{name}_float.yaml'} first, or give --train.")
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    return {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}


def _newest_artifact(name: str) -> Path:
    found = sorted((RUNS / f"fashion_mnist_{name}_qat").glob("version_*/int8"), key=lambda path: path.stat().st_mtime)
    if not found:
        sys.exit(f"no artifact of {name}: run lq fit --config {HERE / f'{name}_qat.yaml'} first, or give --train.")
    return found[-1]


def _fake_quantized(name: str, artifact: Path) -> nn.Module:
    prepared = lq.prepare(_network(f"{name}_qat.yaml"))
    prepared.load_state_dict(load_prepared_state(artifact))
    return prepared.eval()


def _lq_ptq(float_model: nn.Module, loader: Iterable[Any]) -> nn.Module:
    prepared = lq.prepare(copy.deepcopy(float_model))
    lq.calibrate(prepared, loader, limit=CALIBRATION_BATCHES)
    return lq.convert(prepared)


def _torch_ao_ptq(float_model: nn.Module, loader: Iterable[Any], example: Tensor) -> nn.Module:
    """The stock post-training quantization: per-channel weights, histogram observers."""
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    with warnings.catch_warnings(), quiet_torchscript():
        warnings.simplefilter("ignore")
        prepared = prepare_fx(copy.deepcopy(float_model), get_default_qconfig_mapping("x86"), (example,))
        with torch.no_grad():
            for x, _ in _first(loader, CALIBRATION_BATCHES * 128):
                prepared(x)
        return convert_fx(prepared)


def _first(loader: Iterable[Any], images: int) -> Iterator[tuple[Tensor, Tensor]]:
    for x, y in loader:
        if images <= 0:
            return
        yield x[:images], y[:images]
        images -= len(x)


if __name__ == "__main__":
    main()

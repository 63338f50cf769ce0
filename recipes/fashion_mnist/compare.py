"""Judge QAT recipes for Fashion-MNIST on the 10,000 test images: FP32, PTQ of several kinds, QAT, what was exported.

    python recipes/fashion_mnist/compare.py                    # after the trainings, see README.md
    python recipes/fashion_mnist/compare.py --train --exporters torch onnx openvino pt2    # runs them first
    python recipes/fashion_mnist/compare.py recipes/fashion_mnist_4bit/mobilenet_v2_qat.yaml --report

Prints one table per recipe and writes it to runs/<name>/comparison.json; --report also looks into the model, layer by
layer (some minutes), and writes runs/<name>/report.html and overview.png. The trainings take an hour on two cores.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import warnings
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

import lq
from lq.analysis import CompareOptions, compare
from lq.compat.deprecations import quiet_torch_ao, quiet_torchscript
from lq.config.qconfig import PRESETS, QConfig
from lq.data import FashionMNISTDataModule
from lq.export.artifact.int8_model import load_prepared_state
from lq.export.artifact.manifest import read_manifest
from lq.models import Classifier
from lq.report.history import read_history
from lq.report.measure import machine, measure
from lq.report.page import write_page, write_picture
from lq.report.table import print_table

HERE = Path(__file__).parent
RUNS = Path("runs")


def main() -> None:
    """Train if asked, compare, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", type=Path, default=sorted(HERE.glob("*_qat.yaml")))
    parser.add_argument("--train", action="store_true", help="run the float and QAT recipes first")
    parser.add_argument("--exporters", nargs="+", metavar="NAME", help="for --train (default: those of the recipe)")
    parser.add_argument("--images", type=int, default=10_000, help="test images to use")
    parser.add_argument("--calibration", type=int, default=100, help="training batches to calibrate PTQ with")
    parser.add_argument("--report", action="store_true", help="also write an HTML report")
    parser.add_argument("--torch-ao", action="store_true", help="also quantize after training with torch.ao")
    options = parser.parse_args()
    for recipe in options.recipes:
        if options.train:
            train(recipe, options.exporters)
        judge(recipe, options)


def train(recipe: Path, exporters: list[str] | None = None) -> None:
    """Run the recipe, and before it the float one that it starts from, if that has not been run."""
    more = [f"--trainer.callbacks.exporters=[{','.join(exporters)}]"] if exporters else []
    weights = Path(yaml.safe_load(recipe.read_text())["model"]["init_args"]["weights"])
    float_recipe = HERE / f"{weights.stem.removeprefix('fashion_mnist_')}.yaml"
    for path, added in ([] if weights.exists() else [(float_recipe, [])]) + [(recipe, more)]:
        subprocess.run([sys.executable, "-m", "lq", "fit", "--config", str(path), *added], check=True)


def judge(recipe: Path, options: argparse.Namespace) -> None:
    """The table of one recipe, and its report."""
    torch.manual_seed(0)  # of the shuffled and shifted images that calibrate
    config = yaml.safe_load(recipe.read_text())
    name = config["trainer"]["logger"]["init_args"]["name"]
    model, artifact = _float_model(config), _newest_artifact(RUNS / name, recipe)
    qconfig = QConfig.from_dict(read_manifest(artifact)["qconfig"])
    trained = lq.prepare(copy.deepcopy(model), qconfig)
    trained.load_state_dict(load_prepared_state(artifact))
    data = FashionMNISTDataModule()
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    calibration = list(islice(data.train_dataloader(), options.calibration))  # the same ones for all
    tests = list(islice(data.test_dataloader(), -(-options.images // data.test_dataloader().batch_size)))
    how = CompareOptions(others=_torch_ao(model, calibration) if options.torch_ao else {})
    bits = (qconfig.weight or PRESETS[qconfig.preset].weight).bits
    images = f"{sum(len(y) for _, y in tests):,} test images"
    title = f"{config['model']['init_args']['model']} with {bits}-bit weights, {images} of Fashion-MNIST"
    if options.report:
        history = read_history(artifact.parent)
        findings = measure(model, calibration, tests, qconfig, trained, artifact, history, how)
        rows = findings.comparison
        print(f"report: {write_page(RUNS / name / 'report.html', title, findings)}")
        print(f"picture: {write_picture(RUNS / name / 'overview.png', title, findings)}")
    else:
        rows = compare(model, calibration, tests, qconfig, trained, artifact, how)
    print(machine(how.threads))
    print_table(rows, title=title)
    (RUNS / name / "comparison.json").write_text(json.dumps(rows, indent=2))


def _float_model(config: dict[str, Any]) -> nn.Module:
    arguments = {k: v for k, v in config["model"]["init_args"].items() if k != "optimizer"}
    path = Path(arguments.pop("weights"))
    if not path.is_file():
        sys.exit(f"{path} is missing: run the float recipe first, or give --train.")
    model = Classifier(**arguments).model
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict(
        {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}
    )
    return model.eval()


def _newest_artifact(run: Path, recipe: Path) -> Path:
    found = sorted(run.glob("version_*/int8"), key=lambda path: path.stat().st_mtime)
    if not found:
        sys.exit(f"no artifact in {run}: run lq fit --config {recipe} first, or give --train.")
    return found[-1]


def _torch_ao(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, nn.Module]:
    """The stock post-training quantization: per-channel weights, histogram observers."""
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    batches = list(batches)
    with warnings.catch_warnings(), quiet_torchscript(), quiet_torch_ao(), torch.no_grad():
        warnings.simplefilter("ignore")  # its observers warn of what they are
        prepared = prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping("x86"), (batches[0][0],))
        for x, _ in batches:
            prepared(x)
        return {"PTQ, torch.ao histogram": convert_fx(prepared)}


if __name__ == "__main__":
    main()

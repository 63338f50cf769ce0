"""What low bits cost on Fashion-MNIST, and what training gets back: post-training quantization against QAT.

    lq fit --config recipes/fashion_mnist/mobilenet_v2_float.yaml       # and resnet18_float.yaml: the float checkpoints
    python -m benchmarks.low_bits --models mobilenet_v2 --grids W4A4 --results runs/low_bits.json

Every row is trained by ``QATCallback`` from the same float checkpoint for the same number of steps. Of the learning
rates the one with the best validation accuracy at the first seed counts; what is reported is the accuracy of the int8
model that was delivered, on the 10,000 test images. Rows are kept in the results file and not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from rich.progress import Progress

import lq
from benchmarks._common import Column, Row, label, number, parse, parser, report
from lq.config.specs import ActivationSpec, WeightSpec
from lq.data import FashionMNISTDataModule
from lq.models import Classifier, OptimizerConfig
from lq.ptq.bias import correct_bias
from lq.report.plots.style import CYCLE, WIDTH, finish, new_figure

RECIPES = Path(__file__).parent.parent / "recipes" / "fashion_mnist"
CALIBRATION = 32  # batches

GRIDS: dict[str, dict[str, Any]] = {
    "W8A8 per tensor": {"weight": {"per_channel": False}},
    "W4A8": {"weight": {"quant_min": -7, "quant_max": 7}},
    "W4A4": {"weight": {"quant_min": -7, "quant_max": 7}, "activation": {"quant_max": 15}},
    "W3A3": {"weight": {"quant_min": -3, "quant_max": 3}, "activation": {"quant_max": 7}},
    "W2A8": {"weight": {"quant_min": -1, "quant_max": 1}},
}
UNTRAINED = ("PTQ min/max", "PTQ histogram", "PTQ bias corrected")
TRAINED: dict[str, dict[str, Any]] = {
    "QAT": {},
    "QAT distilled": {"distill": {}},
    "LSQ": {"learned": True},
    "LSQ by the optimizer": {"learned": True, "schedule": {"scale_lr": None}},
    "LSQ distilled": {"learned": True, "distill": {}},
}
COLUMNS = (
    label("about", "model, grid, steps"),
    label("method", "method"),
    number("mean", "test accuracy, %", ".2f"),
    number("spread", "std", ".2f"),
    number("recovered", "gap recovered, %", ".0f"),
    number("rate", "rate", "g"),
    number("seeds", "seeds", "d"),
)


@dataclass(frozen=True)
class Run:
    """One line of the results file."""

    model: str
    grid: str
    method: str
    steps: int = 0
    rate: float = 0.0
    seed: int = 0

    @property
    def key(self) -> str:
        """Its name there."""
        return " | ".join(str(value) for value in asdict(self).values())


class Bench:
    """The data, and what is known already."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.results: dict[str, dict[str, float]] = {}
        if options.results.exists():
            self.results = json.loads(options.results.read_text())

    @cached_property
    def data(self) -> FashionMNISTDataModule:
        """The images; a table of results that are known needs none."""
        data = FashionMNISTDataModule(root=str(self.options.data), download=self.options.download)
        data.prepare_data()
        data.setup("fit")
        return data

    def result(self, run: Run, measure: Callable[[Run], dict[str, float]] | None = None) -> dict[str, float]:
        """What a run has found; it is run if nobody has."""
        if run.key not in self.results:
            known = self._trained if run.method in TRAINED else self._untrained
            self.results[run.key] = (measure or known)(run)
            self.options.results.parent.mkdir(parents=True, exist_ok=True)
            self.options.results.write_text(json.dumps(self.results, indent=1) + "\n")
        return self.results[run.key]

    def module(self, model: str) -> Classifier:
        """A network of the recipes with the weights and the learning rate of its float training."""
        trained, settings = (
            yaml.safe_load((RECIPES / f"{model}_{kind}.yaml").read_text())["model"]["init_args"]
            for kind in ("float", "qat")
        )
        settings["optimizer"]["lr"] = trained["optimizer"]["lr"]
        settings["weights"] = str(self.options.floats / f"fashion_mnist_{model}_float.ckpt")
        return Classifier(**settings | {"optimizer": OptimizerConfig(**settings["optimizer"])})

    def qconfig(self, run: Run, learned: bool = False) -> lq.QConfig:
        """The grid of a run."""
        grids = {kind: dict(grid) for kind, grid in GRIDS.get(run.grid, {}).items()}
        if learned:
            grids = {kind: {**grids.get(kind, {}), "learned_scale": True} for kind in ("weight", "activation")}
        kinds: dict[str, Any] = {"weight": WeightSpec, "activation": ActivationSpec}
        qconfig: Any = {kind: kinds[kind](**grid) for kind, grid in grids.items()}
        return lq.QConfig(**qconfig)

    def _untrained(self, run: Run) -> dict[str, float]:
        if run.method == "float":
            L.seed_everything(run.seed, verbose=False)
            return self.accuracies(self.module(run.model).eval())
        observer = "minmax" if run.method == "PTQ min/max" else "histogram"
        return self.untrained(run, self.qconfig(run), observer, run.method == "PTQ bias corrected")

    def untrained(
        self, run: Run, qconfig: lq.QConfig, observer: str = "histogram", correct: bool = False
    ) -> dict[str, float]:
        """Quantize the float checkpoint without training; accuracies of the fake-quantized model."""
        L.seed_everything(run.seed, verbose=False)
        model, batches = self.module(run.model).model, list(islice(self.data.train_dataloader(), CALIBRATION))
        given = {} if qconfig.activation is None else qconfig.activation.as_given()
        activation = ActivationSpec(**{**given, "observer": observer})
        lq.prepare(model, replace(qconfig, activation=activation), (batches[0][0],))
        if correct:
            correct_bias(model, batches)
        lq.calibrate(model, batches, show_progress=False)
        return self.accuracies(model.eval())

    def _trained(self, run: Run) -> dict[str, float]:
        settings = dict(TRAINED[run.method])
        return self.trained(run, self.qconfig(run, settings.pop("learned", False)), **settings)

    def trained(
        self,
        run: Run,
        qconfig: lq.QConfig,
        schedule: Mapping[str, Any] | None = None,
        callbacks: Sequence[L.Callback] = (),
        **settings: Any,
    ) -> dict[str, float]:
        """Train by QATCallback from the float checkpoint; accuracies of the model that was delivered."""
        L.seed_everything(run.seed, verbose=False)
        module = self.module(run.model)
        with tempfile.TemporaryDirectory() as place:
            callback = lq.QATCallback(
                qconfig=qconfig,
                schedule=lq.QATSchedule(lr=run.rate, **(schedule or {})),
                export_dir=f"{place}/int8",
                **settings,
            )
            trainer = L.Trainer(
                accelerator=self.options.device.replace("cuda", "gpu"),
                devices=1,
                max_steps=run.steps,
                callbacks=[callback, *callbacks],
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=False,
                num_sanity_val_steps=0,
                default_root_dir=place,
            )
            trainer.fit(module, datamodule=self.data)
            found = self.accuracies(lq.load(f"{place}/int8"))
        assert callback.deployment is not None
        return found | {"ptq": 100 * callback.deployment.results.get("ptq", {}).get("val/accuracy", float("nan"))}

    def accuracies(self, model: Any) -> dict[str, float]:
        """On the validation and on the test images, in percent."""
        return {part: self._accuracy(model, part) for part in ("val", "test")}

    @torch.no_grad()
    def _accuracy(self, model: Any, part: str) -> float:
        loaders = {"val": self.data.val_dataloader, "test": self.data.test_dataloader}
        right = [(model(x).argmax(1) == y).float() for x, y in loaders[part]()]
        return 100 * float(torch.cat(right).mean())


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Run what is missing, print the table, and write it as Markdown and as a picture if asked."""
    options = parse(_options(), arguments)
    warnings.filterwarnings("ignore", module="lightning")
    bench, rows = Bench(options), []
    tables = [(model, grid) for model in options.models for grid in options.grids]
    with Progress() as progress:
        task = progress.add_task("tables", total=len(tables) * len(options.methods))
        for model, grid in tables:
            progress.update(task, description=f"{model} {grid}")
            for row in _rows(bench, model, grid, options):
                rows.append(row)
                progress.advance(task, row["method"] != "float")
    report("Fashion-MNIST, int8 as delivered", COLUMNS, rows, options)
    if options.markdown:
        options.markdown.write_text(crosstab(rows))
    if options.picture:
        picture(rows).savefig(options.picture, dpi=150)
    return rows


def _options() -> argparse.ArgumentParser:
    options = parser("Accuracy at low bits, with and without training.", rounds=None)
    add_shared(options)
    options.add_argument("--grids", nargs="+", choices=GRIDS, default=list(GRIDS), metavar="GRID")
    every = [*UNTRAINED, *TRAINED]
    options.add_argument("--methods", nargs="+", choices=every, default=every, metavar="METHOD")
    options.add_argument("--rates", type=float, nargs="+", default=[0.01, 0.03, 0.1], help="QATSchedule(lr=...)")
    options.add_argument("--results", type=Path, default=Path("runs/low_bits.json"), help="rows that are done")
    options.add_argument("--picture", type=Path, help="draw it here")
    return options


def add_shared(options: argparse.ArgumentParser) -> None:
    """What every benchmark that trains on Fashion-MNIST has."""
    options.add_argument("--models", nargs="+", default=["mobilenet_v2", "resnet18"], metavar="MODEL")
    options.add_argument("--steps", type=int, default=300, help="optimizer steps (default: 300)")
    options.add_argument("--seeds", type=int, default=3, help="how many (default: 3)")
    options.add_argument("--floats", type=Path, default=Path("runs/checkpoints"), help="folder of float checkpoints")
    options.add_argument("--data", type=Path, default=Path("data"), help="folder of the images")
    options.add_argument("--download", action="store_true", help="get them if they are not there")
    options.add_argument("--markdown", type=Path, help="write the table here")


def _rows(bench: Bench, model: str, grid: str, options: argparse.Namespace) -> Iterator[Row]:
    exact = bench.result(Run(model, "", "float"))["test"]
    about = f"{model}, {grid}, {options.steps}"
    yield {"about": about, "model": model, "grid": grid, "method": "float", "mean": exact}
    base: float | None = None
    for method in options.methods:
        if method in TRAINED:
            rate, tests = _best_of_rates(bench, Run(model, grid, method, options.steps), options)
        else:
            rate, tests = None, [bench.result(Run(model, grid, method))["test"]]
            base = tests[0] if base is None else max(base, tests[0])
        mean = statistics.mean(tests)
        row: Row = {"about": about, "model": model, "grid": grid, "method": method, "mean": mean, "seeds": len(tests)}
        if len(tests) > 1:
            row["spread"] = statistics.stdev(tests)
        if method in TRAINED:
            row["rate"] = rate
            if base is not None and exact > base:
                row["recovered"] = 100 * (mean - base) / (exact - base)
        yield row


def _best_of_rates(bench: Bench, run: Run, options: argparse.Namespace) -> tuple[float, list[float]]:
    """The rate that is best on the validation split with the first seed, and the test accuracies of all seeds."""

    def result(rate: float, seed: int) -> dict[str, float]:
        return bench.result(Run(run.model, run.grid, run.method, run.steps, rate, seed))

    best = max(options.rates, key=lambda rate: result(rate, 0)["val"])
    return best, [result(best, seed)["test"] for seed in range(options.seeds)]


def markdown(rows: Sequence[Row], columns: Sequence[Column] = COLUMNS) -> str:
    """The table for a page."""
    headers = [column.header for column in columns]
    lines = [headers, ["---"] * len(headers), *([column.text(row) for column in columns] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def crosstab(rows: Sequence[Row]) -> str:
    """The accuracies for a page: a row for each method, a column for each grid; in parentheses the gap recovered."""
    tables, methods = (list(dict.fromkeys(row[key] for row in rows)) for key in ("about", "method"))
    grids = list(dict.fromkeys(row["grid"] for row in rows))
    cells = {(row["method"], row["about"]): _cell(row) for row in rows}
    lines = [["test accuracy, %", *(grids if len(grids) == len(tables) else tables)], ["---"] * (len(tables) + 1)]
    lines += [[method, *(cells.get((method, about), "") for about in tables)] for method in methods]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(row: Row) -> str:
    spread = f" ± {row['spread']:.2f}" if "spread" in row else ""
    recovered = f" ({row['recovered']:.0f} %)" if "recovered" in row else ""
    return f"{row['mean']:.2f}{spread}{recovered}"


def picture(rows: Sequence[Row]) -> Any:
    """Accuracy of every method, a panel for each model and grid."""
    tables = list(dict.fromkeys(row["about"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows if row["method"] != "float"))
    figure, axes = new_figure(max(WIDTH, 2.9 * len(tables) + 0.6), 3.6, columns=len(tables))
    for axis, about in zip(axes, tables, strict=True):
        found = {row["method"]: row for row in rows if row["about"] == about}
        axis.axhline(found["float"]["mean"], color="black", linewidth=1, label="float")
        for index, method in enumerate(methods):
            if method in found:
                row, color = found[method], CYCLE[index % len(CYCLE)]
                axis.errorbar(index, row["mean"], yerr=row.get("spread"), fmt="o", color=color, label=method)
        axis.set_title(about, fontsize=9.5)
        axis.set_xticks([])
        axis.set_ylim(max(axis.get_ylim()[0], found["float"]["mean"] - 15), None)
    axes[0].set_ylabel("test accuracy, %")
    return finish(figure, "Fashion-MNIST at low bits", columns=2 if len(tables) < 3 else 4)


if __name__ == "__main__":
    main()

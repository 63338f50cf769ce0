"""The pages of the reference: every public name, on the page of its kind."""

from __future__ import annotations

import importlib
import pydoc
from collections.abc import Sequence
from functools import cache

import lq
import lq.analysis
import lq.metrics

# Page -> title, introduction, names of `lq`. Public names that stand nowhere come on the page "more".
GROUPS = {
    "training": (
        "The callback",
        "What a Trainer is given, and its settings. Each setting can be written in Python or in YAML.",
        ["QATCallback", "QATSchedule", "Gate", "AutoExclude", "AutoBits", "Distillation"],
    ),
    "configuration": (
        "Quantization settings",
        "Which layers are quantized, and with which integers.",
        ["QConfig", "LayerQConfig", "WeightSpec", "ActivationSpec"],
    ),
    "functions": (
        "Functions without a Trainer",
        "The steps of the callback as functions on a module.",
        [
            "prepare",
            "plan_of",
            "set_phase",
            "set_saving",
            "calibrate",
            "convert",
            "unsharded",
            "load_checkpoint",
            "choose_bits",
        ],
    ),
    "post_training": (
        "Post-training quantization",
        "Quantization of a trained model without further training.",
        ["quantize_static", "prepare_static", "StaticOptions", "quantize_dynamic"],
    ),
    "artifacts": (
        "Artifacts",
        "Writing, loading and measuring int8 models.",
        ["export_artifact", "load", "bench"],
    ),
}

# What public functions and attributes return.
RESULTS = [
    "lq.deployment.results.Deployment",
    "lq.export.parity.gate.Parity",
    "lq.export.artifact.int8_model.Int8Model",
    "lq.tracing.plan.Plan",
    "lq.analysis.bits.choice.BitChoice",
    "lq.analysis.bits.choice.ActivationBits",
    "lq.config.schedule.Phase",
    "lq.config.points.Position",
]


def reference_pages() -> dict[str, str]:
    """Path in the site -> Markdown with one mkdocstrings block a name."""
    pages = {
        f"reference/{key}.md": _page(title, introduction, [f"lq.{name}" for name in names])
        for key, (title, introduction, names) in GROUPS.items()
    }
    grouped = {name for _, _, names in GROUPS.values() for name in names}
    rest = [f"lq.{name}" for name in lq.__all__ if name not in grouped and not name.startswith("_")]
    if rest:
        pages["reference/more.md"] = _page("More", "", rest)
    pages["reference/results.md"] = _page("Results", "What functions return and attributes hold.", RESULTS)
    pages["reference/command_line.md"] = _page(
        "Command line",
        "`lq fit`, `validate`, `test` and `predict` are those of "
        "[LightningCLI](https://lightning.ai/docs/pytorch/stable/cli/lightning_cli.html). "
        "The arguments of each function below are the options of the subcommand that has its name; "
        "[The command line](../command_line.md) has examples, and `lq doctor`.",
        [
            f"lq.cli.trainer.QATTrainer.{subcommand}"
            for subcommand in ("export", "ptq", "analyze", "bits", "report", "bench")
        ],
    )
    for module, introduction in (
        (lq.analysis, "What quantization does to each tensor and layer, as plain rows."),
        (lq.metrics, "How close two versions of a model are."),
    ):
        names = [f"{module.__name__}.{name}" for name in module.__all__ if name not in lq.__all__]
        pages[f"reference/{module.__name__.removeprefix('lq.')}.md"] = _page(module.__name__, introduction, names)
    return pages


def _page(title: str, introduction: str, names: Sequence[str]) -> str:
    return "\n\n".join([f"# {title}", introduction, *map(_block, names)]) + "\n"


def _block(name: str) -> str:
    """A function that has the name of its module, such as ``lq.analysis.compare``, is found by its longer name."""
    heading = name.removeprefix("lq.cli.trainer.QATTrainer.") if "QATTrainer" in name else name
    block = f"::: {_home(name)}\n    options:\n      heading: {heading}\n      toc_label: {heading}"
    return f"{block}\n      members: []" if name == "lq.QATCallback" else block  # its methods are hooks


@cache
def _home(name: str) -> str:
    """Where a public name is defined."""
    owner, _, attribute = name.rpartition(".")
    found = pydoc.locate(name) if "QATTrainer" in name else getattr(importlib.import_module(owner), attribute)
    return f"{found.__module__}.{found.__qualname__}"


@cache
def _documented() -> frozenset[str]:
    text = "\n".join(reference_pages().values())
    return frozenset(line.removeprefix("::: ") for line in text.splitlines() if line.startswith("::: "))


def is_documented(name: str) -> bool:
    """Whether the reference shows a name, by itself or among the members of a class."""
    return name in _documented() or name.rpartition(".")[0] in _documented()

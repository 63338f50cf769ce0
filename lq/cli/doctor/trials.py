"""A tiny model through every preset and exporter, in a process of its own: what crashes there does no harm here."""

from __future__ import annotations

import json
import math
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lq.backends.prepare import prepare, set_phase
from lq.cli.doctor.outcomes import PRESET
from lq.config.presets import PRESETS
from lq.conversion.convert import convert
from lq.conversion.graph import as_graph
from lq.export.artifact.signature import Signature
from lq.export.exporters import EXPORTERS
from lq.messages import one_line
from lq.metrics import sqnr
from lq.metrics.outputs import main_tensor
from lq.ptq.calibrate import calibrate
from lq.tracing.structure import Inputs

_ENOUGH_DB = 25  # what the parity gate asks for


def main(results: str, *names: str) -> None:
    """What the process does: try one thing after the other, and write each outcome at once.

    Args:
        results: a file; a line of JSON is added for each.
        names: of :func:`lq.cli.doctor.outcomes.names_of_trials`.

    Example:
        >>> threads = torch.get_num_threads()
        >>> with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        ...     main(f"{folder}/outcomes.jsonl", "preset portable", "exporter torch")
        ...     rows = Path(folder, "outcomes.jsonl").read_text().splitlines()
        >>> torch.set_num_threads(threads)
        >>> [(row["name"], row["works"]) for row in map(json.loads, rows)]
        [('preset portable', True), ('exporter torch', True)]
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in names:
        with Path(results).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, **outcome(name)}) + "\n")


def outcome(name: str) -> dict[str, Any]:
    """Try a preset or an exporter.

    Args:
        name: of :func:`lq.cli.doctor.outcomes.names_of_trials`.

    Returns:
        "works", "sqnr_db" against the fake-quantized model where it ran, "seconds", and the "error" where it did not.

    Example:
        >>> outcome("preset portable")["works"]
        True
    """
    kind, _, which = name.partition(" ")
    trial: Callable[[str], tuple[Tensor, Tensor]] = _preset if kind == PRESET else _exporter
    start = time.monotonic()
    try:
        expected, got = trial(which)
    except Exception as error:  # whatever a runtime raises that is not as it should be
        found: dict[str, Any] = {
            "works": False,
            "error": f"{type(error).__name__}: {one_line(error)}",
        }
    else:
        noise = float(sqnr(expected, got))
        found = {"works": noise >= _ENOUGH_DB, "sqnr_db": round(noise, 1) if math.isfinite(noise) else "inf"}
    return {**found, "seconds": round(time.monotonic() - start, 1)}


def _preset(name: str) -> tuple[Tensor, Tensor]:
    prepared, x = _calibrated(name)
    with torch.no_grad():
        return main_tensor(prepared(x)), main_tensor(convert(prepared)(x))


def _exporter(name: str) -> tuple[Tensor, Tensor]:
    exporter = EXPORTERS[name]
    exporter.check_installed()
    prepared, x = _calibrated(name if name in PRESETS else "portable")
    inputs: Inputs = ((x,), {})
    graph = as_graph(prepared, inputs)
    with tempfile.TemporaryDirectory() as place, torch.no_grad():
        expected = graph(x)
        info = exporter.export(graph, inputs, Path(place))
        model = exporter.load(Path(place), Signature.of(graph, inputs, expected), info)
        return main_tensor(expected), main_tensor(model(x))


def _calibrated(preset: str) -> tuple[nn.Module, Tensor]:
    """A prepared model whose sums are as large as they get: kernels that add two products in 16 bits saturate on it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 4)).eval()
    with torch.no_grad():
        net[0].weight.abs_()  # type: ignore[operator]
    x = torch.rand(8, 16, 6, 6) + 0.5
    prepared = prepare(net, preset, (x,))
    calibrate(prepared, [x], show_progress=False)
    set_phase(prepared, fake_quant=True, observer=False, freeze_bn=True)
    return prepared.eval(), x

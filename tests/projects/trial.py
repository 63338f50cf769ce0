"""Run one case, or name the cases of a project: ``python -m projects.trial PROJECT [CASE]``, in its environment.

With ``tests`` in ``PYTHONPATH``: some projects install a package of that name.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from importlib import import_module
from importlib.metadata import version
from typing import Any

import lightning as L
import torch
from lightning.pytorch import Trainer

import lq
from lq.backends.prepare import is_prepared
from lq.compat.packages import of_package

from .case import Case, Fit, Outcome
from .catalogue import distribution_of
from .table import as_line

FAILURE = 300  # characters of an error in the table


def try_case(project: str, case: Case) -> Outcome:
    """Train in float, train with the callback, and note what came of it; never raises."""
    outcome = Outcome(project, version(distribution_of(project)), case.name, metric=case.metric)
    outcome.arguments = ", ".join(f"{name}={value!r}" for name, value in case.arguments.items())
    outcome.note = " ".join(filter(None, [case.reason, case.note]))
    callback, start, fit = lq.QATCallback(**case.arguments), time.monotonic(), None
    try:
        L.seed_everything(0, verbose=False)
        fit = case.build()
        with tempfile.TemporaryDirectory() as folder:
            fit.run(trainer_of(case, fit, folder, case.epochs[0]))
            fit.run(trainer_of(case, fit, folder, case.epochs[1], callback))
    except Exception as error:
        traceback.print_exc()
        outcome.error = f"{type(error).__name__}: {error}"[:FAILURE]
    outcome.seconds = round(time.monotonic() - start, 1)
    take(outcome, callback)
    if fit is not None and outcome.share is not None:
        outcome.target = next(name for name, part in fit.module.named_modules() if is_prepared(part))
    return outcome


def trainer_of(case: Case, fit: Fit, folder: str, epochs: int, *callbacks: Any) -> Trainer:
    """The Trainer of a user, of the package that the module comes from."""
    made: Trainer = of_package(Trainer, fit.module)(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        **case.trainer,
    )
    return made


def take(outcome: Outcome, callback: lq.QATCallback) -> None:
    """What the callback has found, as far as it came."""
    if callback.plan is not None:
        outcome.share = callback.plan.share
    if callback.deployment is None:
        return
    results, exporter = callback.deployment.results, callback.export_settings.choices[0].name
    outcome.fp32 = results.get("fp32", {}).get(outcome.metric)
    outcome.fake = results.get("fake", {}).get(outcome.metric)
    outcome.int8 = results.get(exporter, {}).get(outcome.metric)
    parity = callback.deployment.parity.get(exporter)
    if parity is not None:
        outcome.gate, outcome.sqnr_db = parity.complaint or "passed", parity.sqnr_db
        outcome.note = "; ".join(filter(None, [outcome.note, *callback.deployment.notes]))
    if None in (outcome.fp32, outcome.int8) and not outcome.error:
        said = "; ".join(callback.deployment.notes) or sorted(results.get(exporter, {}))
        outcome.error = f"{outcome.metric!r} is not in the results: {said}"


def main() -> None:
    """The last line on standard output is an outcome, or the list of cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("project")
    parser.add_argument("case", nargs="?")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases: tuple[Case, ...] = import_module(f".of_{arguments.project}", __package__).CASES
    if arguments.case is None:
        print("\n" + json.dumps([case.name for case in cases]))
        return
    (case,) = [case for case in cases if case.name == arguments.case]
    outcome = try_case(arguments.project, case)
    sys.stdout.flush()
    print("\n" + as_line(outcome))


if __name__ == "__main__":
    main()

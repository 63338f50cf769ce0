"""Kills a training at random moments, resumes it each time, and compares what it leaves with an undisturbed run.

    python -m tests.callback.kill_run FOLDER [--kills 50] [--seed 0] [--deployment 0.5]

A run is forked from this process, which has everything imported, so that most of its life is training. SIGKILL and
SIGTERM strike at random moments, from the first step to the export. After each of them every checkpoint must load and
the artifact must be absent or whole; the run goes on from its last checkpoint. A run that gets through must have the
weights, ranges and optimizer of the undisturbed one, to the bit, and then the next one starts. Every second run finds
the artifact of an earlier one in its place, which must be there, whole, after each kill.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lq.export.artifact.int8_model import load
from tests.tiny import RESUMES_MID_EPOCH, NoNoise, keeper, make_trainer, qat, quicken_deployment, resumable, val_loader

SCHEDULE: dict[str, Any] = {"start": 1, "observer_off": 2, "freeze_bn": 3, "lr": 0.5}
# Seven steps an epoch, a checkpoint every five: none falls on an epoch's last batch. Lightning (2.6.6) takes up such
# a checkpoint, but miscounts the batches of the next one that it takes up after it, with or without a callback of lq.
EPOCHS, STEPS_AN_EPOCH, EVERY_N_STEPS, SECONDS_A_STEP = 5, 7, 5, 0.02
IMAGES = 8 * STEPS_AN_EPOCH
STAGES = ("before training", "float", "QAT", "validation", "deployment")


class Progress:
    """Where an attempt stands, in memory that both processes see: its stage, and how many moments have passed."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 2)

    def reset(self) -> None:
        self._shared[0] = self._shared[1] = 0

    def enter(self, stage: str) -> None:
        self._shared[0] = STAGES.index(stage)
        self._shared[1] = min(self._shared[1] + 1, 255)

    @property
    def stage(self) -> str:
        return STAGES[self._shared[0]]

    @property
    def moments(self) -> int:
        return self._shared[1]


class Stage(L.Callback):
    """Tells the other process where the training stands. A moment is a step, a validation or the deployment."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.progress.enter("QAT" if trainer.current_epoch >= SCHEDULE["start"] else "float")
        time.sleep(SECONDS_A_STEP)

    def on_validation_batch_start(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        if not trainer.sanity_checking:
            self.progress.enter("validation")

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.progress.enter("deployment")


def train(folder: Path, progress: Progress) -> None:
    """One attempt: from the last checkpoint, if there is one, to the end."""
    torch.manual_seed(1)
    module, callback = NoNoise(), qat(**SCHEDULE)
    callback.export_dir = str(folder / "int8")
    checkpoint = keeper(folder / "kept", every_n_train_steps=EVERY_N_STEPS if RESUMES_MID_EPOCH else None)
    trainer = make_trainer(folder, Stage(progress), callback, checkpoint, max_epochs=EPOCHS, logger=False)
    last = folder / "kept" / "last.ckpt"
    trainer.fit(module, resumable(IMAGES), val_loader(), ckpt_path=last if last.exists() else None)
    assert callback.deployment is not None
    final = {"module": module.state_dict(), "optimizer": trainer.optimizers[0].state_dict()}
    torch.save(final, folder / "final.tmp")
    (folder / "final.tmp").replace(folder / "final.pt")


def fork(folder: Path, work: Callable[[], None]) -> int:
    """Do the work in a process of its own, and write its output to a file of the folder.

    This process runs no kernel itself: a thread pool of torch does not survive a fork.
    """
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def start(folder: Path, progress: Progress) -> int:
    """Fork an attempt."""
    progress.reset()
    return fork(folder, lambda: train(folder, progress))


def check(folder: Path, work: Callable[[], None]) -> None:
    assert os.waitpid(fork(folder, work), 0)[1] == 0, (folder / "log.txt").read_text()[-3000:]


def ended(child: int) -> bool:
    return bool(os.waitpid(child, os.WNOHANG)[0])


def ended_within(child: int, seconds: float, reached: Callable[[], bool] = lambda: False) -> bool:
    """Whether the process ends within this time, or before something is ``reached``."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not reached():
        if ended(child):
            return True
        time.sleep(0.002)
    return False


@dataclass(frozen=True)
class Durations:
    """How long the parts of the undisturbed run took, in seconds."""

    startup: float
    deployment: float


def undisturbed(folder: Path, progress: Progress) -> Durations:
    """Run one attempt to its end and time its parts."""
    child = start(folder, progress)
    began = time.monotonic()
    ended_within(child, 120.0, lambda: progress.moments > 0)
    first_step = time.monotonic()
    ended_within(child, 120.0, lambda: progress.stage == "deployment")
    training_ended = time.monotonic()
    assert os.waitpid(child, 0)[1] == 0, (folder / "log.txt").read_text()[-3000:]
    return Durations(first_step - began, time.monotonic() - training_ended)


def await_strike(
    child: int, progress: Progress, durations: Durations, generator: random.Random, in_deployment: float
) -> bool:
    """Wait for a random moment of this attempt; ``True`` if the attempt ends before it.

    A share of the strikes falls at any time of the deployment. Of the others, one in six falls before the first step;
    the rest fall after a random number of moments, within a third of the training so that a run is killed several
    times, or at any time of the deployment if that comes first, which every other attempt survives. They count moments
    instead of seconds: so a slow machine is struck in as many stages as a fast one.
    """
    if generator.random() < in_deployment:
        if ended_within(child, 120.0, lambda: progress.stage == "deployment"):
            return True
        return ended_within(child, generator.uniform(0, durations.deployment))
    if generator.random() < 1 / 6:
        return ended_within(child, generator.uniform(0, durations.startup))
    moment = generator.randint(1, (EPOCHS * STEPS_AN_EPOCH) // 3)
    if ended_within(child, 120.0, lambda: progress.moments >= moment or progress.stage == "deployment"):
        return True
    if progress.stage != "deployment":
        return ended_within(child, generator.uniform(0, 2 * SECONDS_A_STEP))
    return ended_within(child, generator.choice([120.0, generator.uniform(0, durations.deployment)]))


def check_what_is_left(folder: Path, had_artifact: bool) -> None:
    """Every checkpoint loads, and the artifact is whole; it is absent only if there was none before."""
    for path in (folder / "kept").glob("*.ckpt"):
        torch.load(path, weights_only=True)
    if had_artifact or (folder / "int8").exists():
        load(folder / "int8")(torch.zeros(1, 1, 6, 6))


def check_end(folder: Path, expected: Path) -> None:
    """The run left what the undisturbed one did, and nothing half-written."""
    found, wanted = (torch.load(path / "final.pt", weights_only=True) for path in (folder, expected))
    assert json.dumps(found, default=_exact) == json.dumps(wanted, default=_exact), f"{folder} ended otherwise"
    x = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load(folder / "int8")(x), load(expected / "int8")(x))
    stray = [path.name for path in folder.iterdir() if path.name not in ("int8", "kept", "final.pt", "log.txt")]
    assert not stray, f"left behind: {stray}"


def _exact(tensor: torch.Tensor) -> Any:
    return tensor.tolist()


def main(root: Path, kills: int, seed: int, in_deployment: float = 0.0) -> dict[str, Any]:
    """Kill that often; returns how often in which stage, by which signal, and how many runs got through."""
    generator, progress = random.Random(seed), Progress()
    torch.set_num_threads(1)
    expected = root / "undisturbed"
    expected.mkdir(parents=True)
    durations = undisturbed(expected, progress)
    stages, signals, runs = Counter[str](), Counter[str](), 0
    while True:
        folder = root / f"run{runs}"
        folder.mkdir()
        had_artifact = runs % 2 == 1
        if had_artifact:
            shutil.copytree(expected / "int8", folder / "int8")
        while not (folder / "final.pt").exists():
            left = kills - stages.total()
            child = start(folder, progress)
            # The last attempt is left alone.
            if (
                await_strike(child, progress, durations, generator, in_deployment)
                if left > 0
                else ended_within(child, 120.0)
            ):
                assert (folder / "final.pt").exists(), (folder / "log.txt").read_text()[-3000:]
                continue
            assert left > 0, f"{folder}: an undisturbed attempt hangs"
            number = generator.choice([signal.SIGKILL, signal.SIGTERM])
            stages[progress.stage] += 1
            signals[number.name] += 1
            os.kill(child, number)
            assert ended_within(child, 60.0), f"{folder}: does not end after {number.name}"
            check(folder, partial(check_what_is_left, folder, had_artifact))
        check(folder, partial(check_end, folder, expected))
        runs += 1
        if stages.total() >= kills:
            return {"kills": stages.total(), "stages": dict(stages), "signals": dict(signals), "runs": runs}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--deployment", type=float, default=0.0, help="share of the kills that wait for the deployment")
    arguments = parser.parse_args()
    quicken_deployment(pytest.MonkeyPatch())
    print(json.dumps(main(arguments.folder, arguments.kills, arguments.seed, arguments.deployment)))

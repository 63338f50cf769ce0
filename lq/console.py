"""Progress of a run for output that is not a terminal: one line an epoch."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import Progress

FOR_LOGGERS = "qat/ranges/"  # what figures begin with that are looked up when something is wrong, and not shown


class LineProgress(ProgressBar):
    """Print one line, with the logged metrics, when an epoch ends.

    A progress bar redraws itself with carriage returns, which fill a log file with thousands of unreadable
    lines. This one writes lines that can be read, searched and compared.

    Args:
        every: within an epoch, print a line when the last one is this many seconds old.

    Raises:
        ValueError: `every` is not above 0.

    >>> format_line("epoch 3/20", {"train/loss": 0.25, "train/loss_step": 0.3}, seconds=1.5)
    'epoch 3/20 | 1.5 s | train/loss 0.25'
    """

    def __init__(self, every: float = 60.0) -> None:
        super().__init__()
        if not every > 0:
            raise ValueError(f"every must be above 0 seconds, got {every}.")
        self._every = every
        self._enabled = True
        self._started = self._printed = time.monotonic()

    def disable(self) -> None:
        """Print nothing, as on every process but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Print again."""
        self._enabled = True

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Start the clock of the epoch."""
        self._started = self._printed = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the epoch's line; validation has run by now."""
        last = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else "?"
        self._print(f"epoch {trainer.current_epoch + 1}/{last}", trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Say how far a long epoch is."""
        now = time.monotonic()
        if self._enabled and now - self._printed >= self._every:
            total = f"/{self.total_train_batches:g}"
            self._print(f"epoch {trainer.current_epoch + 1}, batch {batch_idx + 1}{total}", trainer)

    def _print(self, what: str, trainer: L.Trainer) -> None:
        if self._enabled:
            self._printed = time.monotonic()
            self.print(format_line(what, trainer.callback_metrics, self._printed - self._started), flush=True)


def format_line(what: str, metrics: Mapping[str, Any], seconds: float) -> str:
    """Write metrics in one line, sorted by name, without Lightning's `_step` and `_epoch` doubles and `qat/ranges/`.

    Args:
        what: start of the line.
        metrics: name to number or one-element tensor.
        seconds: duration, in seconds.

    Returns:
        The line, without a newline.

    >>> format_line("test", {"test/loss": 0.5}, seconds=12.34)
    'test | 12.3 s | test/loss 0.5'
    """
    shown = [
        f"{name} {float(value):.4g}"
        for name, value in sorted(metrics.items())
        if not name.endswith(("_step", "_epoch")) and not name.startswith(FOR_LOGGERS)
    ]
    return " | ".join([what, f"{seconds:.1f} s", *shown])


class BatchCounter:
    """Shows how far a loop over batches is: a bar on a terminal, a line now and then in a log file.

    Args:
        what: what is going on.
        total: number of batches; None if unknown.
        every: in a log file, seconds between lines.
        shown: False for silence.

    >>> with BatchCounter("comparing", total=2, every=1e-9) as counter:
    ...     counter.advance()
    ...     counter.advance()
    comparing, batch 1/2
    comparing, batch 2/2
    """

    def __init__(self, what: str, total: float | None = None, every: float = 60.0, shown: bool = True) -> None:
        self._what, self._every, self._shown, self._done = what, every, shown, 0
        self._total = None if total is None or total == float("inf") else int(total)
        self._bar = Progress(transient=True) if shown and is_terminal() else None
        self._printed = time.monotonic()

    def __enter__(self) -> BatchCounter:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=self._total)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self) -> None:
        """Another batch is done."""
        self._done += 1
        if self._bar is not None:
            self._bar.advance(self._task)
        elif self._shown and time.monotonic() - self._printed >= self._every:
            self._printed = time.monotonic()
            print(f"{self._what}, batch {self._done}/{'?' if self._total is None else self._total}", flush=True)


def wide_enough(console: Console | None, width: int = 160) -> Console:
    """Where to print tables: in a log file, which has no right edge, no line of them is broken.

    Args:
        console: where to; None means standard output.
        width: at least this many columns, where it is no terminal.

    Example:
        >>> import io
        >>> wide_enough(Console(file=io.StringIO(), width=40, force_terminal=False)).width
        160
    """
    console = console or Console()
    return console if console.is_terminal else Console(file=console.file, width=max(console.width, width))


def is_terminal() -> bool:
    """Whether a person watches: standard output is a terminal that can redraw a line.

    Example:
        >>> import contextlib, io
        >>> with contextlib.redirect_stdout(io.StringIO()):
        ...     watched = is_terminal()
        >>> watched
        False
    """
    return sys.stdout.isatty()

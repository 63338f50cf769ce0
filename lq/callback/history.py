"""What the epochs of a fit have found, for the pictures and for whoever resumes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lightning.pytorch import Trainer


class History:
    """Rows of figures by name, each with its "epoch" and "step".

    Args:
        rows: of the run that is resumed.

    Example:
        >>> history = History()
        >>> history.note(Trainer(barebones=True), {"qat/fake/accuracy": 0.9})
        >>> history.rows
        [{'epoch': 0, 'step': 0, 'qat/fake/accuracy': 0.9}]
    """

    def __init__(self, rows: Iterable[Mapping[str, float]] = ()) -> None:
        self.rows = [dict(row) for row in rows]

    def note(self, trainer: Trainer, figures: Mapping[str, float]) -> None:
        """Add a row."""
        self.rows.append({"epoch": trainer.current_epoch, "step": trainer.global_step, **figures})

    def note_missed_epoch(self, trainer: Trainer, figures: Mapping[str, float]) -> None:
        """Add a row for the epoch before, whose end Lightning left out when it resumed behind its batches."""
        epoch = trainer.current_epoch - 1
        is_known = any(row["epoch"] == epoch and row.keys() & figures.keys() for row in self.rows)
        if figures and not is_known:
            self.rows.append({"epoch": epoch, "step": trainer.global_step, **figures})

from __future__ import annotations

import lightning as L

from lq.callback.history import History


def test_an_epoch_whose_end_was_left_out_is_noted_once() -> None:
    trainer, figures = L.Trainer(logger=False, enable_checkpointing=False), {"qat/scale/a": 0.1}
    trainer.fit_loop.epoch_progress.current.completed = 3
    history = History([{"epoch": 2, "step": 6, "qat/phase": 1.0}])
    history.note_missed_epoch(trainer, figures)
    assert history.rows[1:] == [{"epoch": 2, "step": 0, **figures}]
    history.note_missed_epoch(trainer, figures)
    history.note_missed_epoch(trainer, {})
    assert len(history.rows) == 2


def test_the_rows_of_a_checkpoint_are_copied() -> None:
    rows = [{"epoch": 0, "step": 3}]
    History(rows).rows[0]["step"] = 4
    assert rows == [{"epoch": 0, "step": 3}]

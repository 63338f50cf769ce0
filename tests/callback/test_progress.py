"""Where a training stands, and what is left of it for QAT."""

from __future__ import annotations

from typing import Any

import pytest

from lq.callback.progress import require_epochs_left, start_here
from lq.config.points import Position
from lq.config.schedule import QATSchedule


@pytest.mark.parametrize(
    ("freeze_bn", "expected"),
    [
        (None, None),
        ("never", "never"),
        (4, "500 steps"),
        (12, 12),
        ("499 steps", "500 steps"),
        (0.4, "500 steps"),
        (0.6, 0.6),
    ],
)
def test_what_has_passed_in_float_begins_with_qat(freeze_bn: Any, expected: Any) -> None:
    here = Position(epoch=10, step=500, total_epochs=20)
    schedule = start_here(here, QATSchedule(start=0, freeze_bn=freeze_bn, observer_off="never"))
    assert (schedule.start, schedule.freeze_bn, schedule.observer_off) == ("500 steps", expected, "never")


@pytest.mark.parametrize(("done", "limit", "advice"), [(10, 10, 11), (30, 20, 33), (1, 1, 2)])
def test_a_float_run_that_is_over_leaves_nothing_for_qat(done: int, limit: int, advice: int) -> None:
    checkpoint = {"loops": {"fit_loop": {"epoch_progress": {"current": {"processed": done}}}}}
    with pytest.raises(ValueError, match=rf"after {done} epochs?,.*float_ckpt_path.*or set max_epochs={advice}"):
        require_epochs_left(checkpoint, limit)
    for enough in (done + 1, None, -1):
        require_epochs_left(checkpoint, enough)

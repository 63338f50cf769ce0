"""Draws ``docs/phases.svg``, the phases of a fit: ``python docs/tools/draw_phases.py``.

The phases and the learning rate are those that :class:`lq.QATSchedule` computes.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from lq.config.points import Position
from lq.config.schedule import Phase, QATSchedule

PICTURE = Path(__file__).parent.parent / "phases.svg"

WIDTH, LEFT, RIGHT = 960, 240, 940
EPOCHS, STEPS_PER_EPOCH = 10, 40
SCHEDULE = QATSchedule(start=2)
COLORS = {0: "#eceff4", 1: "#cfe3f7", 2: "#a9cdf0", 3: "#a9cdf0", 4: "#7fb4e6"}
ROWS = (
    ("fake quantization", lambda phase: phase.fake_quant),
    ("observers", lambda phase: phase.observer),
    ("BatchNorm statistics move", lambda phase: not phase.freeze_bn),
)
PAGE = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 372" role="img"
 font-family="system-ui, sans-serif" font-size="15">
<title>The phases of a fit of {epochs} epochs with schedule.start: 2</title>
<rect width="{width}" height="372" fill="#ffffff"/>
{body}
</svg>
"""


def picture() -> str:
    """The SVG file."""
    steps = range(EPOCHS * STEPS_PER_EPOCH)
    phases = [SCHEDULE.phase(Position(step / STEPS_PER_EPOCH, step, total_epochs=EPOCHS)) for step in steps]
    body = [*_bands(phases), *_rows(phases), *_learning_rate(phases), *_axis()]
    return PAGE.format(width=WIDTH, epochs=EPOCHS, body="\n".join(body))


def _x(epoch: float) -> float:
    return round(LEFT + (RIGHT - LEFT) * epoch / EPOCHS, 1)


def _runs(values: list[object]) -> list[tuple[object, float, float]]:
    """Equal neighbours: the value, and the epochs from which and to which it holds."""
    runs, step = [], 0
    for value, group in groupby(values):
        count = len(list(group))
        runs.append((value, step / STEPS_PER_EPOCH, (step + count) / STEPS_PER_EPOCH))
        step += count
    return runs


def _bands(phases: list[Phase]) -> list[str]:
    found = []
    for index, start, end in _runs([phase.index for phase in phases]):
        x, width = _x(start), _x(end) - _x(start)
        found.append(f'<rect x="{x}" y="34" width="{width:.1f}" height="304" fill="{COLORS[index]}"/>')
        found.append(f'<text x="{x + 6}" y="24" font-weight="bold">{index}</text>')
    return [*found, _label("qat/phase", 24)]


def _rows(phases: list[Phase]) -> list[str]:
    found = []
    for row, (label, is_on) in enumerate(ROWS):
        y = 52 + 36 * row
        found.append(_label(label, y + 15))
        for on, start, end in _runs([is_on(phase) for phase in phases]):
            if on:
                width = _x(end) - _x(start)
                found.append(f'<rect x="{_x(start)}" y="{y}" width="{width:.1f}" height="20" rx="3" fill="#24548a"/>')
    return found


def _learning_rate(phases: list[Phase]) -> list[str]:
    """From 1 % of the optimizer's rate down a cosine; before the start the module's own."""
    scales = [phase.lr_scale for phase in phases]
    known = [(step, scale) for step, scale in enumerate(scales) if scale is not None]
    top = max(scale for _, scale in known)
    points = " ".join(f"{_x(step / STEPS_PER_EPOCH)},{330 - 150 * scale / top:.1f}" for step, scale in known)
    return [
        _label("learning rate", 255),
        f'<text x="{_x(0) + 6}" y="255" fill="#444">your own</text>',
        f'<polyline points="{points}" fill="none" stroke="#b3411e" stroke-width="3"/>',
        f'<text x="{_x(SCHEDULE.start) + 8}" y="174" fill="#b3411e">qat/lr_scale: {top:.2g} of your rate</text>',
    ]


def _axis() -> list[str]:
    anchors = ["middle"] * EPOCHS + ["end"]
    ticks = [f'<text x="{_x(i)}" y="358" text-anchor="{anchor}">{i}</text>' for i, anchor in enumerate(anchors)]
    return [*ticks, _label("epoch", 358)]


def _label(text: str, y: float) -> str:
    return f'<text x="{LEFT - 10}" y="{y}" text-anchor="end">{text}</text>'


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")

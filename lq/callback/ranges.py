"""How ranges fare while a model trains: measured in a validation batch and at the end of an epoch, never in a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from lq.analysis.range_counts import RangeListener, RangeRow
from lq.analysis.ranges import activation_scales, range_summary, scale_drift, weight_ranges
from lq.console import FOR_LOGGERS
from lq.core.sharding import is_sharded
from lq.lightning_module.target import target_of

Detail = Literal["summary", "tensors"]
SCALE = "qat/scale/"
_VALUES = 2**18  # of each activation; all of them would take several times the memory of the largest
# Each process sees a batch of its own.
_REDUCTIONS = {"saturated_max": "max", "used_levels_min": "min", "dead": "min", "scale_drift_max": "max"}


def check_detail(detail: str | None) -> None:
    """Refuse an unknown value of ``log_ranges``.

    Raises:
        ValueError: with those that there are.

    Example:
        >>> check_detail("all")
        Traceback (most recent call last):
        ...
        ValueError: log_ranges='all' is unknown; choose 'summary', 'tensors' (each of them) or null.
    """
    if detail not in (None, "summary", "tensors"):
        raise ValueError(f"log_ranges={detail!r} is unknown; choose 'summary', 'tensors' (each of them) or null.")


class RangeMonitor:
    """Watches the ranges of a prepared target and logs how they fare.

    Args:
        detail: "summary", four figures; "tensors", three more for each activation; ``None``, nothing.

    Example:
        >>> import torch
        >>> from lq.backends.prepare import prepare
        >>> from lq.ptq.calibrate import calibrate
        >>> module = LightningModule()
        >>> module.model = prepare(nn.Sequential(nn.Linear(2, 1)))
        >>> _ = calibrate(module.model, [torch.tensor([[0.0, 25.5]])])
        >>> f"{RangeMonitor('summary').take(module, 'model')['qat/scale/input_1']:.1f}"  # 255 steps in uint8
        '0.1'
    """

    def __init__(self, detail: Detail | None) -> None:
        self.detail = detail
        self.reset()

    def reset(self) -> None:
        """Forget the last run."""
        self.scales: dict[str, float] = {}
        self._target: nn.Module | None = None
        self._listener: RangeListener | None = None

    def resume(self, history: Sequence[Mapping[str, float]]) -> None:
        """Take up the scales where a run was broken off."""
        for row in history:
            scales = {key.removeprefix(SCALE): value for key, value in row.items() if key.startswith(SCALE)}
            self.scales = scales or self.scales

    def listen(self, module: LightningModule, name: str) -> None:
        """Count in the validation batch that comes next."""
        if self.detail is not None:
            self._target = target_of(module, name)
            self._listener = RangeListener(self._target, _VALUES)

    def stop(self) -> None:
        """Count no further batch."""
        if self._listener is not None:
            self._listener.remove()

    def log_validation(self, trainer: Trainer, module: LightningModule) -> None:
        """Log saturation, levels in use and what is dead; all processes have to call it.

        Dead channels of weights that are split among processes are not counted: that would take all of them.
        """
        if self._listener is None or self._target is None:
            return
        rows, weights = self._listener.rows(), [] if is_sharded(self._target) else weight_ranges(self._target)
        self._target = self._listener = None
        _log(module, range_summary([*weights, *rows]))
        if self.detail == "tensors":
            _log_tensors(trainer, rows)

    @property
    def later(self) -> tuple[str, ...]:
        """The figure that ``log_epoch`` logs, if any."""
        return () if self.detail is None else (f"{FOR_LOGGERS}scale_drift_max",)

    def log_epoch(self, module: LightningModule, name: str) -> dict[str, float]:
        """Log how far the scales have moved since the last epoch, and return them."""
        before, figures = self.scales, self.take(module, name)
        if before and figures:
            _log(module, {"scale_drift_max": scale_drift(before, self.scales)})
        return figures

    def take(self, module: LightningModule, name: str) -> dict[str, float]:
        """Remember the scales of now, between two epochs, and return them."""
        if self.detail is None:
            return {}
        self.scales = activation_scales(target_of(module, name))
        return {f"{SCALE}{tensor}": scale for tensor, scale in self.scales.items()}


def _log(module: LightningModule, figures: dict[str, float]) -> None:
    for name, value in figures.items():
        module.log(f"{FOR_LOGGERS}{name}", value, sync_dist=True, reduce_fx=_REDUCTIONS[name])


def _log_tensors(trainer: Trainer, rows: list[RangeRow]) -> None:
    """To the loggers alone: so many figures would bury the others on the screen."""
    figures = {"epoch": float(trainer.current_epoch)}
    for row in rows:
        figures[f"{SCALE}{row['name']}"] = row["scale"]
        figures[f"qat/saturated/{row['name']}"] = row["saturated"]
        figures[f"qat/used_levels/{row['name']}"] = row["used_levels"] / row["levels"]
    for logger in trainer.loggers:
        logger.log_metrics(figures, step=trainer.global_step)

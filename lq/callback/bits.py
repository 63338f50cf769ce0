"""``auto_bits``: the bits of each layer's weight, chosen before the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from lightning.pytorch import LightningModule

from lq.analysis.bits import AutoBits, BitChoice, choose_bits
from lq.analysis.bits.settings import as_auto_bits
from lq.callback.search import require_early_start
from lq.config.qconfig import LayerQConfig, QConfig
from lq.config.schedule import QATSchedule
from lq.config.specs import ActivationSpec, WeightSpec
from lq.deployment.evaluation import ValidationData
from lq.export.exporters import ExporterChoice
from lq.lightning_module.target import target_of
from lq.lightning_module.validation import call_sample, labels_of, validation_samples
from lq.metrics.outputs import plain_targets_of

_WHO = "auto_bits"


def wanted_bits(given: str | AutoBits | Mapping[str, Any] | None, schedule: QATSchedule) -> AutoBits | None:
    """What was asked for; text is a budget.

    Raises:
        TypeError: if it is something else.
        ValueError: if the budget cannot be read, or QAT starts later than the training.

    Example:
        >>> wanted_bits("size=2.5MB", QATSchedule())
        AutoBits(budget='size=2.5MB', ...)
    """
    if given is None:
        return None
    wanted = as_auto_bits(given)
    require_early_start(_WHO, schedule, "let `lq bits` choose, and give its bits.yaml as the qconfig")
    return wanted


@dataclass(frozen=True)
class BitSearch:
    """Chooses bits; see :class:`lq.callback.search.Search`.

    Args:
        wanted: the budget.
        exporters: in whose files the weights are stored.

    Example:
        >>> search = BitSearch(AutoBits("size=2.5MB"))
        >>> four = QConfig(overrides={"0": {"weight": {"quant_min": -7, "quant_max": 7}}})
        >>> search.extends(four, QConfig()), search.extends(QConfig(), four)
        (True, False)
        >>> search.on_one_batch().wanted.batches
        1
    """

    wanted: AutoBits
    exporters: Sequence[ExporterChoice] = ()
    setting: ClassVar[str] = _WHO
    without_data: ClassVar[str] = "name the bits: QConfig(overrides={...})"

    def on_one_batch(self) -> BitSearch:
        """For a dev run."""
        return replace(self, wanted=replace(self.wanted, batches=1))

    def extends(self, known: QConfig, qconfig: QConfig) -> bool:
        """Whether the one is the other with more overrides and layers in float."""
        same = replace(known, overrides=qconfig.overrides, exclude=known.exclude[: len(qconfig.exclude)]) == qconfig
        chosen = self.wanted.activation_bits is not None
        return same and all(_keeps(known.overrides.get(key), own, chosen) for key, own in qconfig.overrides.items())

    def find(self, twin: LightningModule, name: str, qconfig: QConfig, validation: ValidationData) -> BitChoice:
        """The bits."""
        wanted, target_fn = self.wanted, validation.target_fn or plain_targets_of
        samples = validation_samples(twin, name, validation.loaders, validation.datamodule, target_fn, wanted.batches)
        wanted = replace(wanted, batches=len(samples) or wanted.batches)  # of every loader
        target, show = target_of(twin, name), validation.show_progress
        return choose_bits(target, samples, qconfig, wanted, call_sample, labels_of, self.exporters, show)


def _keeps(known: LayerQConfig | None, own: LayerQConfig, bits_of_activations: bool) -> bool:
    """Whether an override has all that the user's has, bits apart."""
    if known is None or (known.activation != own.activation and not bits_of_activations):
        return False
    grids = [(known.weight, own.weight), (known.activation, own.activation)]
    return all(_keeps_grid(theirs, ours) for theirs, ours in grids)


def _keeps_grid(known: WeightSpec | ActivationSpec | None, own: WeightSpec | ActivationSpec | None) -> bool:
    theirs, ours = (grid.as_given() if grid else {} for grid in (known, own))
    return all(theirs.get(name) == value for name, value in ours.items() if not name.startswith("quant_"))

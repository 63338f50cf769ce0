"""Which qconfig a run prepares with: the user's, changed by what a search before the first step has found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info

from lq.analysis.tensors import has_ranges
from lq.backends.prepare import qconfig_of
from lq.callback.checkpoint_to_load import Known
from lq.callback.example import early_validation_loaders
from lq.callback.processes import copy_on_first_process
from lq.callback.progress import is_dev_run
from lq.checkpoints.entry import KEY, CheckpointEntry
from lq.config.points import Point
from lq.config.qconfig import QConfig
from lq.config.schedule import QATSchedule
from lq.deployment.evaluation import ValidationData
from lq.lightning_module.target import is_target_prepared, target_of

_SEARCHED = "_lq_searched"  # a learning rate finder leaves no other trace where nothing was found


class _Found(Protocol):
    """A change of a qconfig; ``str`` of it says which, and why."""

    def apply(self, qconfig: QConfig) -> QConfig:
        """The qconfig with the change."""
        ...


AnyFound = TypeVar("AnyFound", bound=_Found, covariant=True)


class Search(Protocol[AnyFound]):
    """What looks at the float model, before the first step of a fit.

    Example:
        >>> from lq.analysis.auto_exclude import AutoExclude
        >>> from lq.callback.exclusions import ExclusionSearch
        >>> search: Search = ExclusionSearch(AutoExclude())
        >>> search.setting, search.without_data
        ('auto_exclude', 'exclude layers by name: QConfig(exclude=[...])')
    """

    @property
    def setting(self) -> str:
        """Its name in the callback."""
        ...

    @property
    def without_data(self) -> str:
        """What to do where there are no validation data."""
        ...

    def on_one_batch(self) -> Search[AnyFound]:
        """For a dev run."""
        ...

    def extends(self, known: QConfig, qconfig: QConfig) -> bool:
        """Whether the one may be the other with a change."""
        ...

    def find(self, twin: LightningModule, name: str, qconfig: QConfig, validation: ValidationData) -> AnyFound:
        """Look for a change.

        Args:
            twin: a float copy of the module.
            name: of its target.
            qconfig: the user's.
            validation: the validation data, and the figure that counts.
        """
        ...


def require_early_start(setting: str, schedule: QATSchedule, otherwise: str) -> None:
    """Refuse a search for a run that trains in float first.

    Args:
        setting: the name of the search.
        schedule: of the run.
        otherwise: what can be done instead.

    Raises:
        ValueError: if QAT starts later than the training.

    Example:
        >>> require_early_start("auto_bits", QATSchedule(start="5%"), "give the bits of each layer")
        Traceback (most recent call last):
        ...
        ValueError: auto_bits needs the trained float weights before the first step, but with schedule.start='5%' they
        are trained in the same fit. Train in float first and start QAT from that checkpoint; or give the bits of ...
    """
    if Point.parse("start", schedule.start).value > 0:
        raise ValueError(
            f"{setting} needs the trained float weights before the first step, but with schedule.start="
            f"{schedule.start!r} they are trained in the same fit. Train in float first and start QAT from that "
            f"checkpoint; or {otherwise}."
        )


def choose_qconfig(
    trainer: Trainer,
    module: LightningModule,
    name: str,
    qconfig: QConfig,
    search: Search[AnyFound] | None,
    validation: ValidationData,
    checkpoint_of_run: Known,
) -> tuple[QConfig | None, AnyFound | None]:
    """The qconfig to prepare with: the user's, with what a search has found if one was asked for.

    An earlier fit is believed; only a new one searches. Before there is one, nothing is prepared.

    Args:
        trainer: in ``setup``.
        module: the LightningModule.
        name: of its target.
        qconfig: the user's.
        search: what looks for changes.
        validation: metric and labels; the loaders are the trainer's.
        checkpoint_of_run: gives the checkpoint that is going to be loaded.

    Returns:
        the qconfig, ``None`` as long as nobody knows it, and what was found in this very run.

    Raises:
        ValueError: if an earlier fit had another qconfig, there are no validation data, or the search fails.

    Example:
        >>> from torch import nn
        >>> from lq.analysis.auto_exclude import AutoExclude
        >>> from lq.callback.exclusions import ExclusionSearch
        >>> module, search = LightningModule(), ExclusionSearch(AutoExclude())
        >>> module.model = nn.Sequential(nn.Linear(4, 2))
        >>> asked = Trainer(barebones=True), module, "model", QConfig(), search, ValidationData()
        >>> choose_qconfig(*asked, checkpoint_of_run=dict)  # before a fit
        (None, None)
        >>> entry = CheckpointEntry("model", QConfig(exclude=["0"]), started=True).to_dict()
        >>> qconfig, _ = choose_qconfig(*asked, checkpoint_of_run=lambda: {KEY: entry})
        >>> qconfig.exclude
        ('0',)
    """
    if search is None:
        return qconfig, None
    if is_target_prepared(module, name) and _was_fitted(module, name, qconfig):
        known: QConfig = qconfig_of(target_of(module, name))
        return known if search.extends(known, qconfig) else qconfig, None  # which is going to be refused
    checkpoint = checkpoint_of_run()
    if KEY in checkpoint:
        entry = CheckpointEntry.from_dict(checkpoint[KEY])
        if not search.extends(entry.qconfig, qconfig):
            entry.require_same_plan(name, qconfig)
        return entry.qconfig, None
    if trainer.state.fn != "fit":
        return qconfig if is_target_prepared(module, name) else None, None
    _require_float(module, name, search.setting)
    wanted = search.on_one_batch() if is_dev_run(trainer) else search
    validation = replace(validation, loaders=_loaders(trainer, module, search))
    found = copy_on_first_process(
        trainer, module, lambda twin: wanted.find(_in_float(twin, checkpoint), name, qconfig, validation)
    )
    rank_zero_info(f"lq: {search.setting}: {found}")
    module.__dict__[_SEARCHED] = True
    return found.apply(qconfig), found


def _was_fitted(module: LightningModule, name: str, qconfig: QConfig) -> bool:
    target = target_of(module, name)
    return qconfig_of(target) != qconfig or _SEARCHED in module.__dict__ or has_ranges(target)


def _require_float(module: LightningModule, name: str, setting: str) -> None:
    if is_target_prepared(module, name):
        raise ValueError(
            f"{setting} needs a float module, but this {type(module).__name__} was already prepared for QAT and not "
            "trained since. Fit a new module, or let this QATCallback prepare it."
        )


def _loaders(trainer: Trainer, module: LightningModule, search: Search[Any]) -> Any:
    loaders = early_validation_loaders(trainer, module, search.setting)
    if loaders is None:
        raise ValueError(
            f"{search.setting} compares layers on the validation data, and this fit has none. Give it some, or "
            f"{search.without_data}."
        )
    return loaders


def _in_float(twin: LightningModule, checkpoint: Mapping[str, Any]) -> LightningModule:
    if "state_dict" in checkpoint:
        twin.load_state_dict(checkpoint["state_dict"], strict=twin.strict_loading)
    return twin.float().eval()

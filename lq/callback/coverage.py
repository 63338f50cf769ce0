"""Is what was planned what runs? Whatever an instrumented target misses would be silently float."""

from __future__ import annotations

from lightning.pytorch import Trainer
from torch import nn

from lq.instrument.attach import attach_again, instrument_of
from lq.instrument.classes import is_instrumented
from lq.instrument.listen import Listener
from lq.messages import some_of

_SHOWN = 3


def take_in_exchanged(target: nn.Module) -> str | None:
    """Take in modules that somebody has exchanged since the target was prepared, such as SyncBatchNorms.

    Args:
        target: the prepared target.

    Returns:
        what to say of them, ``None`` if there are none.

    Raises:
        ValueError: if one was exchanged by something that cannot be quantized in its place.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> target = prepare(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)))
        >>> target[0], target[1] = nn.Linear(4, 2), nn.SyncBatchNorm(2)
        >>> take_in_exchanged(target)
        'lq: modules were replaced after QAT had prepared them: 0 (Linear). Calls that the new modules make in ...'
    """
    new = attach_again(target)
    others = {path: kind for path, kind in new.items() if "BatchNorm" not in kind}
    if not others:
        return None
    names = some_of((f"{path} ({kind})" for path, kind in others.items()), _SHOWN)
    return (
        f"lq: modules were replaced after QAT had prepared them: {names}. Calls that the new modules make in the same "
        "place are quantized. List QATCallback after the callback that replaces them, so that all of their calls are "
        "planned."
    )


class Reach:
    """Hears whether the steps of the first epoch call the target or a part of it, long before QAT starts, if need be.

    Args:
        trainer: in training.
        target: the prepared target.
        name: of it.

    Example:
        >>> import torch
        >>> from lq.backends.prepare import prepare
        >>> target, trainer = prepare(nn.Sequential(nn.Linear(4, 2))), Trainer(barebones=True)
        >>> reach = Reach(trainer, target, "model")
        >>> _ = target(torch.zeros(1, 4))  # in a validation
        >>> reach.called
        False
        >>> trainer.training = True
        >>> _ = target(torch.zeros(1, 4))
        >>> reach.called
        True
    """

    def __init__(self, trainer: Trainer, target: nn.Module, name: str) -> None:
        self.trainer, self.name, self.called = trainer, name, False
        parts = [part for part in target.modules() if part is target or is_instrumented(part)]
        self._listeners = [Listener(part, before=self._note) for part in parts]

    def _note(self, *_: object) -> None:
        if self.trainer.training:  # and not in a validation in between
            self.called = True
            self.remove()

    def check(self) -> None:
        """Stop listening at the end of the epoch, which all processes reach.

        Raises:
            ValueError: if no process has heard a call.
        """
        self.remove()
        if not self.trainer.strategy.reduce_boolean_decision(self.called, all=False):
            raise _not_called(self.name, "Nothing in the first epoch of training called")

    def remove(self) -> None:
        """Stop listening."""
        for listener in self._listeners:
            listener.remove()


def _not_called(name: str, what: str = "The first training step did not call") -> ValueError:
    return ValueError(
        f"{what} the target, {name or 'the module itself'}, so nothing would be trained for int8. Name the part that "
        "training_step calls: QATCallback(target=...)."
    )


def shows_calls(target: nn.Module, outputs: object) -> bool:
    """Whether a training step shows what training calls: one that skips its batch calls and returns nothing.

    Args:
        target: the prepared target.
        outputs: of the step; there are none in manual optimization, where steps may take turns.

    Example:
        >>> import torch
        >>> from lq.backends.prepare import prepare, set_phase
        >>> target = prepare(nn.Sequential(nn.Linear(4, 2)))
        >>> set_phase(target, fake_quant=True, observer=True, freeze_bn=False)
        >>> shows_calls(target, outputs=None), shows_calls(target, outputs={"loss": torch.ones(())})
        (False, True)
        >>> _ = target(torch.zeros(1, 4))
        >>> shows_calls(target, outputs=None)
        True
    """
    instrument = instrument_of(target)
    return bool(outputs) or instrument is None or bool(instrument.ran)


def check_reached(target: nn.Module, name: str) -> str | None:
    """Check after the first training batch that the sites of the plan have run.

    Args:
        target: the prepared target.
        name: of it.

    Returns:
        what to say of sites that have not run; ``None`` if all have, or nobody counts.

    Raises:
        ValueError: if none has: no step calls the target.

    Example:
        >>> import torch
        >>> from lq.backends.prepare import prepare, set_phase
        >>> target = prepare(nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2)))
        >>> set_phase(target, fake_quant=True, observer=True, freeze_bn=False)
        >>> _ = target[0](torch.zeros(1, 4))
        >>> check_reached(target, "model")
        'lq: 1 of 2 planned calls did not run in the first training step: linear in 1. They get ranges if ...'
    """
    instrument = instrument_of(target)
    if instrument is None or not (instrument.planned or instrument.deferred):
        return None
    planned = instrument.planned
    if not planned.keys() & instrument.ran:  # what is planned at its first call has had none
        raise _not_called(name)
    missing = [call for i, call in planned.items() if i not in instrument.ran]
    if not missing:
        return None
    shown = some_of((f"{call.operation} in {call.place or 'its forward'}" for call in missing), _SHOWN, "; ")
    return (
        f"lq: {len(missing)} of {len(planned)} planned calls did not run in the first training step: {shown}. "
        "They get ranges if a later step runs them; otherwise they stay in float."
    )


def take_unplanned(target: nn.Module) -> str | None:
    """What has run in float because nobody planned it, since this was asked last.

    Args:
        target: the prepared target.

    Returns:
        a sentence, ``None`` if there was nothing.

    Example:
        >>> import torch
        >>> from lq.backends.prepare import prepare, set_phase
        >>> class Repeats(nn.Sequential):
        ...     times = 1
        ...     def forward(self, x):
        ...         for _ in range(self.times):
        ...             x = super().forward(x)
        ...         return x
        >>> target = prepare(Repeats(nn.Linear(2, 2)), example_args=(torch.zeros(1, 2),))
        >>> set_phase(target, fake_quant=True, observer=True, freeze_bn=False)
        >>> target.times = 3
        >>> _ = target(torch.zeros(1, 2))
        >>> take_unplanned(target)
        'lq: calls in this epoch are not in the plan and ran in float: 0.linear (2 times). Set example_input_array ...'
    """
    instrument = instrument_of(target)
    if instrument is None or not instrument.unplanned:
        return None
    counts = instrument.unplanned.most_common()
    instrument.unplanned.clear()
    shown = some_of((f"{name} ({'once' if count == 1 else f'{count} times'})" for name, count in counts), _SHOWN)
    return (
        f"lq: calls in this epoch are not in the plan and ran in float: {shown}. Set example_input_array of "
        "the LightningModule to inputs for which forward makes these calls."
    )

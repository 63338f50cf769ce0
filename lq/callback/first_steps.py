"""What is checked once in a fit: in the target's first call, in the first steps, and at the end of the first epoch."""

from __future__ import annotations

from collections.abc import Callable

from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn

from lq.callback.compilation import is_compiled
from lq.callback.coverage import Reach, check_reached, shows_calls
from lq.callback.first_call import watch_first_call
from lq.callback.forward_check import ForwardCheck
from lq.instrument.listen import Listener
from lq.tracing.structure import Inputs


class FirstSteps:
    """Listens to the first calls of a target, and lets go of it after each check.

    Example:
        >>> FirstSteps().end_epoch()  # nothing was watched
    """

    def __init__(self) -> None:
        self._call: Listener | None = None
        self._forward: ForwardCheck | None = None
        self._reach: Reach | None = None
        self._is_new, self._calls_are_due = True, True

    def watch(self, module: LightningModule, name: str, check: Callable[[Inputs], None], is_chosen: bool) -> None:
        """Wait for the first call.

        Args:
            module: the LightningModule.
            name: of its target.
            check: gets the inputs of that call, on the CPU, before it runs.
            is_chosen: whether the user has named the target; who names a part knows that it is one.
        """
        if name and not is_chosen:
            self._forward = ForwardCheck(module, name, rank_zero_warn)
        self._call = watch_first_call(module, name, check)

    def begin_step(self, trainer: Trainer, module: LightningModule, target: nn.Module, name: str) -> None:
        """Before the first step: hear whether the steps of this epoch call the target."""
        if self._is_new and not is_compiled(module):
            self._reach = Reach(trainer, target, name)
        self._is_new = False

    def end_step(self) -> None:
        """After a step: a module that trains without its ``forward`` would be listened to for ever."""
        if self._forward is not None:
            self._forward.remove()
            self._forward = None

    def check_calls(self, module: LightningModule, target: nn.Module, name: str, outputs: object) -> bool:
        """After a step of QAT: have the calls run that were planned?

        Args:
            module: the LightningModule.
            target: prepared.
            name: of it.
            outputs: of the step.

        Returns:
            whether this was the first such step that shows it.

        Raises:
            ValueError: if none has.
        """
        if not (self._calls_are_due and shows_calls(target, outputs)):
            return False
        self._calls_are_due = False
        note = None if is_compiled(module) else check_reached(target, name)
        if note is not None:
            rank_zero_warn(note)
        return True

    def end_epoch(self) -> None:
        """After the first epoch.

        Raises:
            ValueError: if nothing in it has called the target.
        """
        if self._reach is not None:
            self._reach.check()
            self._reach = None

    def remove(self) -> None:
        """Stop listening."""
        for listener in (self._call, self._forward, self._reach):
            if listener is not None:
                listener.remove()
        self._call = self._forward = self._reach = None

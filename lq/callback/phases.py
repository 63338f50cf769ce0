"""A phase of the schedule, applied to a prepared target, and what its observers report."""

from __future__ import annotations

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import distributed, nn

from lq.backends.prepare import set_phase, state_of
from lq.compat.torch_private import BatchNorm
from lq.config.schedule import Phase
from lq.messages import some_of


class PhaseSwitch:
    """Switches a prepared target between phases, and remembers which BatchNorms it froze.

    Observers observe in training steps also where the target is in evaluation mode, in which ``from_pretrained`` of
    transformers leaves a model, and Lightning with it.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> target = prepare(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)))
        >>> switch = PhaseSwitch()
        >>> switch.apply(target, Phase(fake_quant=True, observer=False, freeze_bn=True))
        >>> target.get_submodule("0").training
        False
        >>> switch.thaw()
        >>> target.get_submodule("0").training
        True
    """

    def __init__(self) -> None:
        self._frozen: dict[nn.Module, int] = {}  # and how many batches each had seen by then
        self._freezes = self._looked = False
        self._target: nn.Module | None = None

    def apply(self, target: nn.Module, phase: Phase) -> None:
        """Set the flags of ``target``, and freeze the BatchNorms that no layer has absorbed too.

        All processes have to call it, for the same phase.
        """
        self._target, state = target, state_of(target)
        state.awake = True
        if not state.training:
            state.train()
        set_phase(target, fake_quant=phase.fake_quant, observer=phase.observer, freeze_bn=phase.freeze_bn)
        if phase.freeze_bn and not self._freezes:
            share_statistics(target)
        self._freezes = phase.freeze_bn
        if phase.freeze_bn:
            found = {name: m for name, m in target.named_modules() if isinstance(m, BatchNorm) and m.training}
            self._tell_of_moving(found)
            for module in found.values():
                module.eval()
                if module not in self._frozen:  # to look waits for the GPU, and some come again in each step
                    self._frozen[module] = _seen(module)

    def _tell_of_moving(self, norms: dict[str, BatchNorm]) -> None:
        """Warn of those that somebody trains after all; those in layers stay frozen in training mode, too."""
        again = {name: norm for name, norm in norms.items() if norm in self._frozen}
        if self._looked or not again:
            return
        self._looked = True  # once, as it waits for the GPU
        moving = [name for name, norm in again.items() if _seen(norm) > self._frozen[norm]]
        if moving:
            rank_zero_warn(
                f"lq: the statistics of {some_of(moving)} are frozen now, but still move, because training_step puts "
                "these BatchNorms back into training mode. Call train() in on_train_epoch_start instead, or let them "
                "move: QATSchedule(freeze_bn='never')."
            )

    def end_step(self) -> None:
        """Let observers follow the mode of the target again, until the next step."""
        if self._target is not None:
            state = state_of(self._target)
            state.awake = False
            if state.training != self._target.training:
                state.train(self._target.training)

    def thaw(self) -> None:
        """Put the frozen BatchNorms back into training mode, for whatever trains them next."""
        self.end_step()
        for module in self._frozen:
            module.train()
        self._frozen = {}


def _seen(norm: BatchNorm) -> int:
    return 0 if norm.num_batches_tracked is None else int(norm.num_batches_tracked)


@torch.no_grad()
def share_statistics(target: nn.Module) -> None:
    """Give the BatchNorms of all processes the running statistics of the first.

    DDP does so before forward passes, but not before all of them (gradient accumulation, averaged weights); where
    frozen statistics differ, so do the functions that are trained.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> _ = norm.running_mean.fill_(3.0)
        >>> share_statistics(norm)
        >>> norm.running_mean  # of the first process, which here is the only one
        tensor([3., 3.])
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    norms = [module for module in target.modules() if isinstance(module, BatchNorm)]
    buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
    for dtype in dict.fromkeys(buffer.dtype for buffer in buffers):
        alike = [buffer for buffer in buffers if buffer.dtype == dtype]
        joined = torch.cat([buffer.reshape(-1) for buffer in alike])
        distributed.broadcast(joined, src=0)
        start = 0
        for buffer in alike:
            buffer.copy_(joined[start : start + buffer.numel()].view_as(buffer))
            start += buffer.numel()


def has_batch_norm(target: nn.Module) -> bool:
    """Whether there are statistics to freeze.

    Example:
        >>> has_batch_norm(nn.Sequential(nn.BatchNorm1d(4))), has_batch_norm(nn.LayerNorm(4))
        (True, False)
    """
    return any(isinstance(module, BatchNorm) for module in target.modules())


def take_nonfinite(target: nn.Module) -> str | None:
    """A warning on batches that the observers skipped since the last call, ``None`` if there were none.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> target = prepare(nn.Sequential(nn.Linear(2, 1)))
        >>> set_phase(target, fake_quant=True, observer=True, freeze_bn=False)
        >>> _ = target(torch.tensor([[1.0, torch.inf]]))
        >>> state_of(target).end_of_step()
        >>> take_nonfinite(target)
        'lq: NaN or infinity reached fake quantizers; these batches were left out of their ranges: ... (1 batch)...'
        >>> take_nonfinite(target) is None
        True
    """
    state = state_of(target)
    skipped = [(n, c) for n, c in zip(state.names, state.nonfinite.tolist(), strict=True) if c]
    if not skipped:
        return None
    state.nonfinite.zero_()
    return (
        "lq: NaN or infinity reached fake quantizers; these batches were left out of their ranges: "
        + some_of(f"{name} ({count} {'batch' if count == 1 else 'batches'})" for name, count in skipped)
        + ". The first in the list is where to look; lower the learning rate or clip gradients."
    )

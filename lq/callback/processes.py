"""Several processes: which ways to start them are refused, and how all wait for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.seed import isolate_rng
from torch import distributed

from lq.compat.packages import is_a
from lq.core.collective import alone

Result = TypeVar("Result")

_SPLITTING = (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)
_LONG = timedelta(days=30)


def check_strategy(trainer: Trainer) -> None:
    """Refuse strategies that leave no process with a whole weight.

    Raises:
        ValueError: for fully sharded, tensor-parallel and DeepSpeed training.
    """
    strategy = trainer.strategy
    if is_a(strategy, *_SPLITTING):
        raise ValueError(
            f"{type(strategy).__name__} splits the model among processes, but QAT needs whole weights for their "
            "scales and for the int8 model. Use strategy='ddp', 'ddp_spawn', 'ddp_notebook' or a single device; where "
            "memory is short, accumulate_grad_batches, precision='bf16-mixed' or a smaller batch."
        )


@contextmanager
def others_wait() -> Iterator[None]:
    """All processes leave this context together, however long one of them works in it.

    The barrier of a training's own process group gives up after minutes, which ends the processes that wait.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        yield
        return
    group: Any = distributed.new_group(backend="gloo", timeout=_LONG)
    try:
        yield
    finally:
        distributed.barrier(group=group)
        distributed.destroy_process_group(group)


def on_first_process(trainer: Trainer, work: Callable[[], Result]) -> Result:
    """Do some work in the first process, while the others wait for what comes out.

    The random numbers of the training stay what they would have been.

    Args:
        trainer: of the run; all processes have to call this.
        work: is called in the first one.

    Returns:
        its result, in all of them.

    Raises:
        Exception: whatever the work has raised, in all processes.
    """
    outcome: Any = None
    with others_wait(), isolate_rng(), alone():
        if trainer.is_global_zero:
            try:
                outcome = work()
            except Exception as error:
                outcome = error
    outcome = trainer.strategy.broadcast(outcome)
    if isinstance(outcome, Exception):
        raise outcome
    result: Result = outcome
    return result

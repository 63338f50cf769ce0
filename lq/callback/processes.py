"""Several processes: which ways to start them are refused, how weights are split, and how all wait for one."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.utilities.seed import isolate_rng
from torch import distributed

from lq.compat.packages import is_a
from lq.core.collective import alone
from lq.core.sharding import is_sharded
from lq.lightning_module.copies import detached_copy, free_copies

Result = TypeVar("Result")

_SPLITTING = (FSDPStrategy, DeepSpeedStrategy)
_LONG = timedelta(days=30)


def check_strategy(strategy: Strategy) -> None:
    """Refuse strategies under which a layer does not get its whole weight.

    Args:
        strategy: of a Trainer, in ``setup``.

    Raises:
        ValueError: for FSDP of the first kind, tensor-parallel and DeepSpeed training.

    Example:
        >>> check_strategy(FSDPStrategy())
        Traceback (most recent call last):
        ...
        ValueError: FSDPStrategy cannot be used with QATCallback: a layer does not see its whole weight, which scales
        and the int8 model need. Use ModelParallelStrategy(data_parallel_size=N, tensor_parallel_size=1) with ...
    """
    if is_a(strategy, *_SPLITTING):
        raise ValueError(
            f"{type(strategy).__name__} cannot be used with QATCallback: a layer does not see its whole weight, which "
            "scales and the int8 model need. Use ModelParallelStrategy(data_parallel_size=N, tensor_parallel_size=1) "
            "with fully_shard in configure_model, 'ddp', or a single device. To save memory, use "
            "QATCallback(save='bytes'), precision='bf16-mixed' or a smaller batch."
        )
    if splits_weights(strategy):
        size = strategy.device_mesh["tensor_parallel"].size()  # type: ignore[attr-defined]
        if size > 1:
            raise ValueError(
                f"tensor_parallel_size is {size}: each process would compute with a part of a weight, but a scale "
                f"needs the whole one. Use ModelParallelStrategy(data_parallel_size={strategy.world_size}, "  # type: ignore[attr-defined]
                "tensor_parallel_size=1) with fully_shard in configure_model."
            )


def splits_weights(strategy: Strategy) -> bool:
    """Whether ``configure_model`` is going to split the weights among processes, by ``fully_shard``.

    Example:
        >>> splits_weights(ModelParallelStrategy()), splits_weights(Trainer(barebones=True).strategy)
        (True, False)
    """
    return is_a(strategy, ModelParallelStrategy)


@contextmanager
def _others_wait() -> Iterator[None]:
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


def copy_on_first_process(
    trainer: Trainer, module: LightningModule, work: Callable[[LightningModule], Result]
) -> Result:
    """Do some work on a copy of the module in the first process, while the others wait for what comes out.

    Args:
        trainer: of the run; all processes have to call this.
        module: the running one; where it is split among processes, all of them give their part to the copy.
        work: is called in the first one, with a copy that nothing else uses, on the CPU.

    Returns:
        its result, in all of them.

    Raises:
        Exception: whatever the work has raised, in all processes.

    Example:
        >>> from torch import nn
        >>> module, trainer = LightningModule(), Trainer(barebones=True)
        >>> module.model = nn.Linear(1, 1)
        >>> copy_on_first_process(trainer, module, lambda twin: twin.model.weight is module.model.weight)
        False
    """
    try:
        if is_sharded(module):
            twin = detached_copy(module)
            return on_first_process(trainer, lambda: work(twin))
        return on_first_process(trainer, lambda: work(detached_copy(module)))
    finally:
        free_copies(module)


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

    Example:
        >>> import torch
        >>> before = torch.get_rng_state()
        >>> on_first_process(Trainer(barebones=True), lambda: len(torch.randn(3)))
        3
        >>> torch.get_rng_state().equal(before)
        True
    """
    outcome: Any = None
    failure: Exception | None = None
    with _others_wait(), isolate_rng(), alone():
        if trainer.is_global_zero:
            try:
                outcome = work()
            except Exception as error:
                failure, outcome = error, _sendable(error)
    outcome = trainer.strategy.broadcast(outcome)
    if isinstance(outcome, Exception):
        raise failure or outcome
    result: Result = outcome
    return result


def _sendable(error: Exception) -> Exception:
    """The error, or its text where the other processes could not read it: they would wait for it in vain."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__} in the first process: {error}")
    return error

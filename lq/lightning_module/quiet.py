"""A Trainer of lq's own, beside that of the user, whose screen and logs it leaves alone."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger

from lq.compat.packages import of_package

_LOGGERS = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")  # of both packages


def quiet_trainer(module: LightningModule, **settings: Any) -> Trainer:
    """A Trainer that runs on the CPU, in this process, and writes neither files nor a progress bar.

    Args:
        module: what it is going to run; it comes from the same package, ``lightning`` or ``pytorch_lightning``.
        settings: further arguments of the Trainer.

    Example:
        >>> trainer = quiet_trainer(LightningModule(), max_epochs=2)
        >>> trainer.max_epochs, trainer.log_dir, trainer.callbacks
        (2, None, [])
    """
    made: Trainer = of_package(Trainer, module)(
        accelerator="cpu",
        devices=1,
        logger=DummyLogger(),  # for modules that log images and the like
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,  # it would end that of the run, which is still on the screen
        log_every_n_steps=1,  # Lightning warns of trainings that are shorter than an interval
        **settings,
    )
    return made


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without Lightning's lines and warnings on the hardware that it found and the loaders that it was given.

    Example:
        >>> logger = logging.getLogger("lightning.pytorch")
        >>> with quiet_lightning():
        ...     logger.isEnabledFor(logging.WARNING), logger.isEnabledFor(logging.ERROR)
        (False, True)
    """
    names = [name for name in logging.root.manager.loggerDict if name.startswith(_LOGGERS)]
    loggers = [logging.getLogger(name) for name in {*_LOGGERS, *names}]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(pytorch_)?lightning[._]")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

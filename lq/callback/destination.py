"""Where a run's artifact goes: decided once, in ``setup``, in words of the place where it will be used."""

from __future__ import annotations

from lightning.pytorch import Trainer

from lq.callback.progress import is_dev_run
from lq.deployment.destination import Destination
from lq.export.artifact.directory import AnyPath

_NAME = "int8"


def choose_destination(trainer: Trainer, export_dir: AnyPath | None) -> Destination | None:
    """Where the artifact goes, which can be written to; ``None`` in a ``fast_dev_run`` and in all processes but one.

    Args:
        trainer: in ``setup``.
        export_dir: the user's choice, a path or a URL; ``None`` is beside the logs, or in the trainer's root directory.

    Raises:
        OSError: if it cannot be written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     trainer = Trainer(barebones=True, default_root_dir=folder)
        ...     choose_destination(trainer, None).name.removeprefix(folder)
        '/int8'
        >>> choose_destination(trainer, "memory://runs/seven").name
        'memory://runs/seven'
    """
    root = trainer.log_dir or trainer.default_root_dir  # on every rank: log_dir is a collective
    place = export_dir or f"{root.rstrip('/') or root}/{_NAME}"
    if is_dev_run(trainer) or not trainer.is_global_zero:
        return None
    destination = Destination.at(place)
    destination.check()
    return destination

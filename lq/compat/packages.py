"""Lightning comes as two packages, ``lightning`` and ``pytorch_lightning``, each with classes of its own: both work.

lq is written on the first; what a user's module, Trainer or callback of the second is asked for goes through here.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, TypeGuard

from lightning.pytorch import LightningDataModule, LightningModule

_OTHER = "pytorch_lightning"


def _counterpart(kind: type, owner: Any) -> type:
    """The class of the same name in the package that an object belongs to."""
    if isinstance(owner, kind) or not _is_of_other(owner):
        return kind
    found: type = getattr(importlib.import_module(_module_name(kind)), kind.__name__)
    return found


def _module_name(kind: type) -> str:
    return kind.__module__.replace("lightning.pytorch", _OTHER, 1).replace("lightning.fabric", "lightning_fabric", 1)


def _is_of_other(owner: Any) -> bool:
    return any(base.__module__.split(".")[0] == _OTHER for base in type(owner).__mro__)


def is_a(value: Any, *kinds: type) -> bool:
    """``isinstance`` for classes of Lightning, from either package.

    Example:
        >>> from lightning.pytorch.callbacks import Callback, EarlyStopping
        >>> is_a(EarlyStopping("loss"), Callback)
        True
    """
    if isinstance(value, kinds):
        return True
    if _OTHER not in sys.modules:
        return False
    names = {(_module_name(kind), kind.__name__) for kind in kinds}
    return any((base.__module__, base.__name__) in names for base in type(value).__mro__)


def is_lightning_module(module: Any) -> TypeGuard[LightningModule]:
    """Whether ``module`` is a LightningModule.

    Example:
        >>> is_lightning_module(LightningModule()), is_lightning_module(LightningDataModule())
        (True, False)
    """
    return is_a(module, LightningModule)


def overrides(owner: Any, name: str) -> bool:
    """Whether a LightningModule or LightningDataModule has a method of its own in the place of Lightning's.

    Example:
        >>> class Lit(LightningModule):
        ...     def forward(self, x):
        ...         return x
        >>> overrides(Lit(), "forward"), overrides(Lit(), "configure_model")
        (True, False)
    """
    base = _counterpart(LightningModule if is_lightning_module(owner) else LightningDataModule, owner)
    own, theirs = getattr(owner, name, None), getattr(base, name, None)
    return own is not None and getattr(own, "__func__", own) is not theirs


def of_package(kind: Any, owner: Any) -> Any:
    """A class of Lightning, from the package that ``owner`` belongs to.

    Args:
        kind: of ``lightning.pytorch``.
        owner: a LightningModule, a LightningDataModule or a Trainer.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> of_package(Trainer, LightningModule()) is Trainer
        True
    """
    return _counterpart(kind, owner)

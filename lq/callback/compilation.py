"""torch.compile beside QAT: what is compiled, and when it has to pause."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from lightning.pytorch import LightningModule
from torch import nn

from lq.compat.torch_private import was_compiled


def is_compiled(module: LightningModule) -> bool:
    """Whether calls of the module run compiled code: ``fit(torch.compile(module))`` or ``.compile()`` of any part.

    Example:
        >>> module = LightningModule()
        >>> module.model = nn.Linear(2, 2)
        >>> before = is_compiled(module)
        >>> module.model.compile(backend="eager")
        >>> before, is_compiled(module)
        (False, True)
    """
    # torch (2.8 to 2.15) and Lightning (2.4 to 2.6) have no public names for these.
    return getattr(module, "_compiler_ctx", None) is not None or any(
        getattr(part, "_compiled_call_impl", None) is not None for part in module.modules()
    )


class CompilationPause:
    """Lets compiled code run eagerly while hooks listen: it does not notice hooks that come and go.

    Example:
        >>> net, calls = nn.Linear(2, 2), []
        >>> net.compile(backend="eager")
        >>> _ = net(torch.zeros(1, 2))
        >>> _ = net.register_forward_hook(lambda *_: calls.append("heard"))
        >>> pause = CompilationPause()
        >>> _ = pause.begin(), net(torch.zeros(1, 2)), pause.end()
        >>> calls
        ['heard']
    """

    def __init__(self) -> None:
        self._stance = ExitStack()
        self._is_on = False

    def begin(self) -> None:
        """Pause, if it has not paused yet."""
        if not self._is_on:
            self._stance.enter_context(torch.compiler.set_stance("force_eager"))
            self._is_on = True

    def end(self) -> None:
        """Go on."""
        self._stance.close()
        self._is_on = False


def check_target_is_not_compiled(part: nn.Module, name: str) -> None:
    """Refuse a target that preparation would make eager without a word.

    Raises:
        ValueError: if it was compiled itself, before it was prepared.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> model.compile(backend="eager")
        >>> check_target_is_not_compiled(model, "model")
        Traceback (most recent call last):
        ...
        ValueError: The target 'model' was compiled before QAT prepares it, and what was compiled is the float model...
    """
    if was_compiled(part) or "forward" in part.__dict__:
        what = f"target {name!r}" if name else "LightningModule, which is the target itself,"
        raise ValueError(
            f"The {what} was compiled before QAT prepares it, and what was compiled is the float model. Compile the "
            "LightningModule around it, trainer.fit(torch.compile(module)), or the target when it is prepared: "
            f"self.{name or 'model'}.compile() in on_fit_start."
        )

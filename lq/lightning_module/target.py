"""Which part of a LightningModule is quantized."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import fx, nn
from torchmetrics import Metric, MetricCollection

from lq.backends.prepare import is_prepared
from lq.compat.packages import overrides
from lq.conversion.graph import as_graph
from lq.core.checkpoint import part_of_state
from lq.core.modules import QAT_LAYERS
from lq.core.sharding import whole
from lq.core.state import STATE
from lq.tracing.axes import Axes
from lq.tracing.layers import RECURRENT_LAYERS
from lq.tracing.structure import Inputs


def build_layers(module: LightningModule, trainer: Trainer | None = None) -> None:
    """Call ``configure_model`` if the module has one, before the strategy of a run does.

    One that splits layers which are there already, by ``fully_shard``, has no processes to split them among.

    Args:
        module: the LightningModule.
        trainer: of the run, if there is one, whose precision the layers are built in.

    Raises:
        Exception: whatever it raises, if there are no layers.

    Example:
        >>> class Late(LightningModule):
        ...     def configure_model(self):
        ...         self.model = nn.Linear(4, 2)
        >>> module = Late()
        >>> build_layers(module)
        >>> module.model
        Linear(in_features=4, out_features=2, bias=True)
    """
    if not overrides(module, "configure_model"):
        return
    try:
        with _precision_of(trainer):
            module.configure_model()
    except Exception:
        if module.device_mesh is not None or not _has_layers(module):
            raise


@contextmanager
def _precision_of(trainer: Trainer | None) -> Iterator[None]:
    """As Lightning calls ``configure_model``."""
    if trainer is None:
        yield
        return
    with trainer.precision_plugin.module_init_context():
        yield


def find_target(module: LightningModule, name: str | None = None) -> str:
    """The dotted name of the part to quantize; "" is the LightningModule itself.

    Args:
        module: the LightningModule.
        name: the user's choice; ``None`` takes the only child that holds quantizable or recurrent layers, or the module
            itself if layers sit directly on it (or on several children, or on one that is never called, such as a
            ``ModuleList``) and it has a ``forward``.

    Returns:
        the name.

    Raises:
        ValueError: if the name does not exist, or nothing or too much could be meant.

    Example:
        >>> module = LightningModule()
        >>> module.loss, module.backbone = nn.MSELoss(), nn.Sequential(nn.Linear(4, 2))
        >>> find_target(module)
        'backbone'
        >>> module.head = nn.Sequential(nn.Linear(2, 1))
        >>> find_target(module)
        Traceback (most recent call last):
        ...
        ValueError: LightningModule has no forward() and several parts that could be quantized: ['backbone', 'head'].
        Choose one: QATCallback(target='backbone').
    """
    if name is not None:
        _check_name(module, name)
        return name
    candidates = [child for child, m in module.named_children() if _has_layers(m)]
    if not candidates:
        raise ValueError(
            f"{type(module).__name__} has no layer to quantize (Linear, Conv1d, Conv2d, Conv3d). Build its layers in "
            "__init__ or configure_model: those built in LightningModule.setup() do not exist yet when QAT is prepared."
        )
    recurrent = [child for child, m in module.named_children() if _has_layers(m, RECURRENT_LAYERS)]
    if overrides(module, "forward") and not set(recurrent) <= set(candidates):
        return ""
    parts = [getattr(module, child) for child in candidates]
    direct = [part for part in parts if isinstance(part, tuple(QAT_LAYERS)) or not _has_forward(part)]
    if len(candidates) == 1 and not direct:
        return candidates[0]
    if overrides(module, "forward"):
        return ""
    raise ValueError(
        f"{type(module).__name__} has no forward() and several parts that could be quantized: {candidates}. "
        f"Choose one: QATCallback(target={candidates[0]!r})."
    )


def _check_name(module: LightningModule, name: str) -> None:
    try:
        found = module.get_submodule(name)
    except AttributeError:
        names = [child for child, _ in module.named_children()]
        raise ValueError(
            f"target={name!r}: {type(module).__name__} has no such submodule. Its children are {names}; "
            "dotted names such as 'model.backbone' work too."
        ) from None
    if isinstance(found, tuple(QAT_LAYERS)):
        holder = name.rpartition(".")[0]
        raise ValueError(
            f"target={name!r} is a single {type(found).__name__}; name the module that holds it and choose the layer "
            f"there: QATCallback(target={holder or None!r}, qconfig=QConfig(include=[{name.rpartition('.')[2]!r}]))."
        )
    if not _has_layers(found):
        raise ValueError(
            f"target={name!r}: {type(found).__name__} has no layer to quantize (Linear, Conv1d, Conv2d, Conv3d)."
        )


def _has_layers(module: nn.Module, kinds: tuple[type[nn.Module], ...] = tuple(QAT_LAYERS)) -> bool:
    if isinstance(module, (Metric, MetricCollection)):
        return False
    return any(isinstance(m, kinds) for m in module.modules())


def _has_forward(module: nn.Module) -> bool:
    """Whether it can be called, as a ``ModuleList`` or ``ModuleDict`` cannot."""
    return "forward" in module.__dict__ or type(module).forward is not nn.Module.forward


def target_of(module: nn.Module, name: str) -> nn.Module:
    """The submodule ``name``, or the module itself for "".

    Example:
        >>> module = nn.ModuleDict({"encoder": nn.Sequential(nn.ReLU())})
        >>> target_of(module, "encoder.0"), target_of(module, "") is module
        (ReLU(), True)
    """
    return module.get_submodule(name) if name else module


def prepared_graph(
    module: nn.Module, name: str, example: Inputs | None = None, axes: Axes | None = None
) -> fx.GraphModule:
    """The graph of a prepared target, sharing its parameters and ranges.

    Args:
        module: the module that holds the target.
        name: of the target.
        example: inputs of one call of it; ``None`` takes those of an earlier call.
        axes: dimensions of inputs that shall be dynamic, too; see :func:`lq.tracing.axes.checked_axes`.

    Raises:
        ValueError: if the target is not prepared, or cannot be exported.

    Example:
        >>> import torch
        >>> from lq.backends.prepare import prepare
        >>> net = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
        >>> module = nn.ModuleDict({"net": prepare(net, example_args=(torch.zeros(1, 4),))})
        >>> graph = prepared_graph(module, "net")
        >>> [str(node.target) for node in graph.graph.nodes][:4]
        ['input', 'qat_state.fq_input_1', '0', 'qat_state.fq_0']
        >>> graph.get_parameter("0.weight") is net[0].weight
        True
    """
    target = target_of(module, name)
    if not is_prepared(target):
        raise ValueError(f"{type(target).__name__} is not prepared for QAT.")
    return as_graph(target, example, name, axes)


def float_state(prepared: nn.Module) -> dict[str, Any]:
    """The part of a prepared module's state dict that the float module has.

    All processes have to call it where the module is split among them.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> prepared = prepare(nn.Sequential(nn.Linear(4, 2)))
        >>> len(prepared.state_dict()) > 2, list(float_state(prepared))
        (True, ['0.weight', '0.bias'])
    """
    state = part_of_state(prepared.state_dict())
    for key in [key for key in state if key.startswith(f"{STATE}.")]:
        del state[key]
    for key, value in state.items():
        state[key] = whole(value)
    return state


def is_target_prepared(module: nn.Module, name: str) -> bool:
    """Whether the target is prepared already.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> module = nn.ModuleDict({"net": prepare(nn.Sequential(nn.Linear(4, 2))), "head": nn.Linear(2, 1)})
        >>> is_target_prepared(module, "net"), is_target_prepared(module, "head")
        (True, False)
    """
    return is_prepared(target_of(module, name))

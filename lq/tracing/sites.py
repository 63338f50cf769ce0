"""Where an instrumented module quantizes: plain data, which a checkpoint keeps and another process attaches again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lq.config.specs import ActivationSpec, WeightSpec


@dataclass(frozen=True)
class CallAt:
    """One call of a torch function.

    Args:
        place: dotted name of the module whose ``forward`` makes it; "" is the target itself.
        operation: what it computes, see :func:`lq.tracing.functions.operation`.
        nth: how many such calls the same place has made before it, within one call of the target.

    Example:
        >>> from torch import nn
        >>> from lq.backends.prepare import plan_of, prepare
        >>> sites = plan_of(prepare(nn.Sequential(nn.Linear(4, 2), nn.ReLU()))).sites
        >>> sites.layers[0].call
        CallAt(place='0', operation='linear', nth=0)
    """

    place: str
    operation: str
    nth: int


@dataclass(frozen=True)
class LayerAt:
    """A layer with a quantized weight.

    Args:
        name: that it has in the plan.
        call: the call that computes it.
        spec: grid of the weight.
        channel_axis: of the weight, the axis of output channels.
        norm: the call of the BatchNorm that belongs to it.
        weight: dotted name of the weight, "" if it is computed.
        quantizer: name in the state of what quantizes the weight.
        apart: whether something lies between it and its BatchNorm in training, such as a dropout.
        kept: whether a module keeps what lies between it and its BatchNorm as an attribute.
        left: dotted names of the modules whose output that is.
        entered: of those whose input it is.

    Example:
        >>> from torch import nn
        >>> from lq.backends.prepare import plan_of, prepare
        >>> (layer,) = plan_of(prepare(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))).sites.layers
        >>> layer.weight, layer.quantizer, layer.norm
        ('0.weight', 'wq_0', CallAt(place='1', operation='batch_norm', nth=0))
    """

    name: str
    call: CallAt
    spec: WeightSpec
    channel_axis: int = 0
    norm: CallAt | None = None
    weight: str = ""
    quantizer: str = ""
    apart: bool = False
    kept: bool = False
    left: tuple[str, ...] = ()
    entered: tuple[str, ...] = ()


@dataclass(frozen=True)
class TensorAt:
    """A place where a tensor is rounded.

    Args:
        slot: its range.
        call: the call whose result, or one of whose arguments, is rounded.
        argument: path to the argument, positions and keywords; empty is the result.
        absorbs: whether the call is an activation that the rounding's clamp computes.
        behind: the call in front of that activation, if a layer or join makes the value.
        owned: whether nobody else needs the tensor.
        makers: dotted names of the modules whose output it is in front of the activation; their hooks may keep it.
        entered: of those whose input it is then.
        returned: whether the target returns it, or a view of it, so that others may write into it.
        cloned: whether somebody writes into the result later, or the call into the argument.

    Example:
        >>> from torch import nn
        >>> from lq.backends.prepare import plan_of, prepare
        >>> entry, exit = plan_of(prepare(nn.Sequential(nn.Linear(4, 2), nn.ReLU()))).sites.tensors
        >>> entry.call.operation, entry.argument
        ('linear', (0,))
        >>> exit.call.operation, exit.absorbs, exit.behind.operation
        ('relu', True, 'linear')
    """

    slot: int
    call: CallAt
    argument: tuple[int | str, ...] = ()
    absorbs: bool = False
    behind: CallAt | None = None
    owned: bool = False
    makers: tuple[str, ...] = ()
    cloned: bool = False
    entered: tuple[str, ...] = ()
    returned: bool = False


@dataclass(frozen=True)
class Sites:
    """All that :func:`lq.instrument.attach.attach` has to know.

    Args:
        places: dotted names of the modules that notice when they are called.
        names: of the slots, in execution order.
        specs: their grids.
        activations: what each absorbs.
        layers: quantized weights.
        tensors: rounded tensors.
        fresh: joins that were written in place, and make a new tensor instead.
        training: for places whose calls differ in training: operation, and pairs of the nth call in training and the
            one in evaluation that it is.
        opened: places, and the operations, such as attention, that are computed step by step there; of a recurrent
            one the number of steps, else 0.
        counts: places, operations, and how many such calls the place makes, with a site or without.

    Example:
        >>> from torch import nn
        >>> from lq.backends.prepare import plan_of, prepare
        >>> sites = plan_of(prepare(nn.Sequential(nn.Linear(4, 2), nn.ReLU()))).sites
        >>> sites.places, sites.names, sites.activations
        (('', '0', '1'), ('fq_input_1', 'fq_0'), ('none', 'relu'))
    """

    places: tuple[str, ...]
    names: tuple[str, ...]
    specs: tuple[ActivationSpec, ...]
    activations: tuple[str, ...]
    layers: tuple[LayerAt, ...]
    tensors: tuple[TensorAt, ...]
    fresh: tuple[CallAt, ...] = ()
    training: tuple[tuple[str, str, tuple[tuple[int, int], ...]], ...] = ()
    opened: tuple[tuple[str, str, int], ...] = ()
    counts: tuple[tuple[str, str, int], ...] = ()

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Sites:
        """What ``dataclasses.asdict`` made plain.

        Example:
            >>> tensor = TensorAt(0, CallAt("", "add", 0))
            >>> sites = Sites(("",), ("fq_x",), (ActivationSpec(),), ("none",), (), (tensor,))
            >>> Sites.from_dict(dataclasses.asdict(sites)) == sites
            True
        """
        layers = tuple(
            LayerAt(
                **{
                    **row,
                    "call": CallAt(**row["call"]),
                    "spec": WeightSpec(**row["spec"]),
                    "norm": _call(row["norm"]),
                    **{name: tuple(row.get(name, ())) for name in ("left", "entered")},  # older checkpoints have none
                }
            )
            for row in plain["layers"]
        )
        tensors = tuple(
            TensorAt(
                **{
                    **row,
                    "call": CallAt(**row["call"]),
                    "argument": tuple(row["argument"]),
                    "behind": _call(row["behind"]),
                    "makers": tuple(row["makers"]),
                    "entered": tuple(row.get("entered", ())),
                }
            )
            for row in plain["tensors"]
        )
        training = tuple((place, name, tuple((a, b) for a, b in pairs)) for place, name, pairs in plain["training"])
        return cls(
            tuple(plain["places"]),
            tuple(plain["names"]),
            tuple(ActivationSpec(**spec) for spec in plain["specs"]),
            tuple(plain["activations"]),
            layers,
            tensors,
            tuple(CallAt(**call) for call in plain["fresh"]),
            training,
            tuple((place, name, steps) for place, name, steps in plain["opened"]),
            # older checkpoints have none
            tuple((place, name, count) for place, name, count in plain.get("counts", ())),
        )


def in_place_joins(sites: Sites) -> Sites:
    """The same plan with joins that work in place where the user wrote them so, and copies where that may matter.

    Example:
        >>> call = CallAt("", "add", 0)
        >>> made = Sites(("",), ("fq",), (ActivationSpec(),), ("none",), (), (TensorAt(0, call, owned=True),), (call,))
        >>> changed = in_place_joins(made)
        >>> changed.fresh, changed.tensors[0].owned, changed.tensors[0].cloned
        ((), False, True)
    """
    written = set(sites.fresh)
    tensors = tuple(
        dataclasses.replace(
            t,
            cloned=t.cloned or not t.argument or t.call in written,
            owned=t.owned and not {t.call, t.behind} & written,
        )
        for t in sites.tensors
    )
    return dataclasses.replace(sites, fresh=(), tensors=tensors)


def _call(plain: Mapping[str, Any] | None) -> CallAt | None:
    return None if plain is None else CallAt(**plain)

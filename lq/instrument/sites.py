"""What happens at one call of a torch function: weights and tensors are rounded, activations absorbed, norms folded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lq.core.fake_quantize import FakeQuantize
from lq.core.folding import fold_batch_norm, folding_pays, normalize_frozen
from lq.core.marks import activate, rounding_mark, weight_mark
from lq.core.memory import is_same_memory
from lq.core.weight_quantizer import WeightQuantizer
from lq.instrument.keepers import is_heard
from lq.instrument.places import Call, Instrument, Place
from lq.tracing.layer_calls import LAYERS, argument, first_argument, with_argument
from lq.tracing.structure import tensors_of

_FRESH: Mapping[Any, Any] = {
    Tensor.add_: torch.add,
    Tensor.__iadd__: torch.add,
    Tensor.mul_: torch.mul,
    Tensor.__imul__: torch.mul,
}


@dataclass(eq=False)
class Site:
    """What happens at one call; all of it optional.

    Args:
        index: of the site within the instrument.
        function: the operation.
        inputs: positions of arguments that are rounded, each with its quantizer, and whether the call writes into it,
            which a backward pass needs.
        layer: quantizer of the weight.
        norm: the BatchNorm behind a layer, which it takes in where that is less work.
        apart: whether something lies between the two in training.
        kept: whether a module keeps what lies between the two as an attribute.
        folds_with: index of the layer's site, at the site of its BatchNorm.
        counter: whether the call counts batches for a BatchNorm that may be frozen.
        output: quantizer of the result; of an activation it absorbs that.
        absorbs: whether ``output`` takes the call's input, and computes the activation too; without one, whether what
            made the input has one for it.
        expects: whether a layer or join makes that input.
        gives: at a layer or join in front of an activation that absorbs: the site of that.
        owned: whether nobody else needs the tensor that is rounded.
        left: modules whose output is what lies between a layer and its BatchNorm, or what an activation reads.
        entered: modules whose input that is.
        clones: whether somebody writes into the result later, which a backward pass needs.
        returned: whether the target returns the result, into which a loss may write.
        fresh: whether a join that is written in place makes a new tensor.
        number: of the layer, in the plan.
        change: what replaces the result of a layer, for a while.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> from lq.instrument.classes import place_of
        >>> net = prepare(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), example_args=(torch.ones(1, 4),))
        >>> layer, relu = (place_of(module).sites()[0] for module in net[:2])
        >>> layer.function, layer.layer is not None, layer.gives is relu
        ('linear', True, True)
        >>> relu.function, relu.absorbs, relu.output is net.qat_state.fq_0
        ('relu', True, True)
    """

    index: int
    function: str
    inputs: tuple[tuple[tuple[int | str, ...], FakeQuantize, bool], ...] = ()
    layer: WeightQuantizer | None = None
    norm: nn.Module | None = None
    apart: bool = False
    kept: bool = False
    folds_with: int | None = None
    counter: bool = False
    output: FakeQuantize | None = None
    absorbs: bool = False
    expects: bool = False
    gives: Site | None = None
    owned: bool = False
    left: tuple[nn.Module, ...] = ()
    entered: tuple[nn.Module, ...] = ()
    clones: bool = False
    returned: bool = False
    fresh: bool = False
    number: int = -1
    change: Callable[[Tensor], Tensor] | None = None


def run_site(
    instrument: Instrument, call: Call, place: Place, site: Site, func: Any, args: tuple[Any, ...], kwargs: Any
) -> Any:
    """Make the call that a site stands for.

    Args:
        instrument: of the target.
        call: the running one of the target.
        place: the module that makes the call.
        site: what happens at it.
        func: a function of torch.
        args: positional arguments of it.
        kwargs: keyword arguments of it.

    Returns:
        what the call returns, or that rounded.

    Example:
        >>> place = Place("", nn.ReLU(), Instrument())
        >>> doubles = Site(0, "relu", change=lambda out: 2 * out)
        >>> run_site(place.instrument, Call(), place, doubles, torch.relu, (torch.tensor([-1.0, 1.0]),), {})
        tensor([0., 2.])
        >>> place.instrument.ran
        {0}
    """
    if not torch.compiler.is_compiling():
        instrument.ran.add(site.index)
    for path, quantizer, written in site.inputs:
        args, kwargs = _with_rounded(instrument, call, (args, kwargs), path, quantizer, written)
    if site.absorbs:
        return _activation(instrument, call, place, site, func, args, kwargs)
    if site.layer is not None:
        out = _layer(instrument, call, place, site, func, args, kwargs)
    elif site.folds_with is not None:
        out = _norm(instrument, call, place, site, func, args, kwargs)
    elif site.counter and args[0] is place.module.num_batches_tracked:
        state = instrument.state
        assert state is not None
        return args[0] if state.freeze_bn and state.fake_quant else func(*args, **kwargs)
    else:
        out = (_FRESH.get(func, func) if site.fresh else func)(*args, **kwargs)
    if site.change is not None:
        out = site.change(out)
    if site.output is not None:
        return _rounded(instrument, call, site, site.output, out)
    if site.gives is not None:
        call.pending.append((out, site.gives))
    return out


def _with_rounded(
    instrument: Instrument,
    call: Call,
    given: tuple[Any, Any],
    path: tuple[int | str, ...],
    quantizer: FakeQuantize,
    written: bool,
) -> tuple[Any, Any]:
    """Arguments and keywords with the tensor at ``path`` rounded; they are copied, a list may be the user's own."""

    def round_it(x: Tensor) -> Tensor:
        out = _quantize(instrument, call, quantizer, x, False)
        return out.clone() if written else out

    args, kwargs = given
    if isinstance(path[0], str):
        return args, _replaced(kwargs, path, round_it)
    return _replaced(args, path, round_it), kwargs


def _replaced(values: Any, path: tuple[int | str, ...], change: Callable[[Tensor], Tensor]) -> Any:
    if not path:
        return change(values) if isinstance(values, Tensor) else values
    first, rest = path[0], path[1:]
    if isinstance(first, str):
        return {**values, first: _replaced(values[first], rest, change)} if first in values else values
    if not isinstance(values, (tuple, list)) or first >= len(values):
        return values  # it was given in another way this time
    new = [*values[:first], _replaced(values[first], rest, change), *values[first + 1 :]]
    return new if isinstance(values, list) else tuple(new)


def _quantize(instrument: Instrument, call: Call, quantizer: FakeQuantize, x: Tensor, owned: bool) -> Tensor:
    if instrument.rehearsing:
        return _activated_in_place(x, quantizer.activation) if owned else activate(x, quantizer.activation).clone()
    if instrument.marking:
        return rounding_mark(x, quantizer.slot, quantizer.activation)
    out: Tensor = quantizer(x, owned, call.recomputing)
    return out


def _activated_in_place(x: Tensor, activation: str) -> Tensor:
    """As the rounding of a tensor that nobody else needs works: in the memory of that."""
    return x if activation == "none" else x.copy_(activate(x, activation))


def _rounded(
    instrument: Instrument, call: Call, site: Site, quantizer: FakeQuantize, x: Any, given: bool = False
) -> Any:
    """``x`` on its grid; ``given`` is one that came from outside, or of which somebody has another view."""
    if not isinstance(x, Tensor):
        return x
    # A checkpoint computes again from what it was given, which is not ours to overwrite.
    takes_its_input = site.absorbs or site.folds_with is not None
    kept = given or (takes_its_input and (call.checkpointed or call.recomputing))
    out = _quantize(instrument, call, quantizer, x, site.owned and not kept and not is_heard(site.left, site.entered))
    # The backward pass of a rounding in float32 reads its result.
    returned = site.returned and out.requires_grad and out.dtype == torch.float32
    return out.clone() if site.clones or returned else out


def _activation(instrument: Instrument, call: Call, place: Place, site: Site, func: Any, args: Any, kwargs: Any) -> Any:
    """An activation behind a value that is still to be rounded; what made the value says on which grid."""
    x = first_argument(args, kwargs)
    owner, given = _waiting(call, x)
    if owner is None:
        # Who made the input of a part that is called alone, or computed again by a checkpoint, cannot be seen, and for
        # dynamo it may be another object. While marks are set torch.export runs the code itself: objects are what they
        # are.
        traced = torch.compiler.is_compiling() and not instrument.marking
        unseen = traced or any(given is x for given in tensors_of(call.given))
        if site.output is None or (site.expects and not unseen):
            if site.expects and not instrument.marking:
                instrument.unplanned[f"{place.path}.{site.function}".lstrip(".")] += 1
            return func(*args, **kwargs)
        owner = site
    assert owner.output is not None
    return _rounded(instrument, call, owner, owner.output, x, given)


def _waiting(call: Call, x: Tensor) -> tuple[Site | None, bool]:
    """The site that rounds a tensor which a layer or join has made, and whether ``x`` is another view of that.

    Hooks of the backward pass hand on a view of what they watch.
    """
    is_same = [tensor is x for tensor, _ in call.pending]
    found = next((i for i, same in enumerate(is_same) if same), None)
    if found is None and not torch.compiler.is_compiling():
        found = next((i for i, (tensor, _) in enumerate(call.pending) if is_same_memory(tensor, x)), None)
    return (None, True) if found is None else (call.pending.pop(found)[1], not is_same[found])


def _layer(instrument: Instrument, call: Call, place: Place, site: Site, func: Any, args: Any, kwargs: Any) -> Any:
    state, quantizer = instrument.state, site.layer
    assert state is not None
    assert quantizer is not None
    if not instrument.marking and (quantizer.off or instrument.rehearsing or not state.fake_quant):
        return func(*args, **kwargs)
    at = LAYERS[site.function]
    x, weight, bias = (argument(one, args, kwargs) for one in (at.input, at.weight, at.bias))
    if instrument.marking:
        weight = weight_mark(weight, site.number)
    else:
        weight, bias = _quantized(call, place, site, quantizer, x, weight, bias, state.freeze_bn)
    args, kwargs = with_argument(at.weight, weight, args, kwargs)
    args, kwargs = with_argument(at.bias, bias, args, kwargs)
    return func(*args, **kwargs)


def _quantized(
    call: Call, place: Place, site: Site, quantizer: WeightQuantizer, x: Tensor, weight: Tensor, bias: Any, frozen: bool
) -> tuple[Tensor, Any]:
    norm, training = site.norm, place.module.training
    alone = call.outermost is place and not place.is_root  # so that its BatchNorm is called apart, if it is
    # Whoever sees what lies between the two sees what it always was.
    seen = site.kept or is_heard(site.left, site.entered)
    if norm is None or alone or seen or x.dim() != weight.dim():
        return quantizer.quantized(weight, training), bias
    # The BatchNorm alone may be in training mode, to adapt to new data. Evaluation does not ask for the phase, or
    # torch.compile would compile it for each.
    moving = training or norm.training
    if not moving or (frozen and not site.apart and folding_pays(x, weight)):
        call.folded.add(site.index)
        scales, moved = fold_batch_norm(norm, bias)
        return quantizer.quantized(weight, training, scales, fold=True), moved.to(weight.dtype)
    factor = None if quantizer.spec.per_channel else fold_batch_norm(norm, bias)[0]
    return quantizer.quantized(weight, training, factor), bias


def _norm(instrument: Instrument, call: Call, place: Place, site: Site, func: Any, args: Any, kwargs: Any) -> Any:
    state = instrument.state
    assert state is not None
    if instrument.marking:
        x = first_argument(args, kwargs)
        return func(*args, **kwargs) if place.whole is None else normalize_frozen(place.module, x)
    if site.folds_with in call.folded:
        call.folded.discard(site.folds_with)
        return first_argument(args, kwargs)
    if state.fake_quant and state.freeze_bn and place.module.training:
        return normalize_frozen(place.module, first_argument(args, kwargs))
    return func(*args, **kwargs)

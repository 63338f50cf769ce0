"""The quantization state of one prepared model: all activation ranges in flat tensors, and the phase flags.

Layers write the minimum and maximum of their output into a slot; one vectorised update per training step moves every
range of the network, with one collective when several processes train. Flags are plain Python, so that reading
them neither synchronises a GPU nor breaks a compiled graph; what depends on data is a tensor, and compiled code never
asks for its value. A slot without a range has qparams that round and clip nothing, so it needs no flag at all; the
first batch is not quantized, since its own range would be another one in every process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lq.compat.torch_private import stands_for_extra_state, version_of
from lq.config.specs import ActivationSpec
from lq.core import native
from lq.core.calibration.clipping import ClippedRanges, needs_histogram
from lq.core.checkpoint import as_bytes, from_bytes, require_same_slots
from lq.core.collective import all_reduce
from lq.core.float32 import Constant, Float32Buffers
from lq.core.qparams import (
    ACTIVATIONS,
    QParams,
    compiled_step_and_ends,
    of_each,
    scale_zero_point,
    slot_grid,
    step_and_ends,
)
from lq.core.straight_through import RoundingValues, exact, marking

STATE = "qat_state"  # the name under which a prepared module holds it


@dataclass
class _Known:
    """What eager code has read of the ranges, and of which version of them."""

    version: object
    grids: tuple[Tensor, Tensor, Tensor]
    qparams: list[QParams]
    roundings: dict[bool, list[RoundingValues]] = field(default_factory=dict)  # by whether those of float32


class QATState(Float32Buffers):
    """Ranges, flags and slots of one prepared model; it is the submodule ``qat_state`` of that model.

    Its buffers have their final shape from the start: ``min_val`` and ``max_val`` (float32, one entry per slot,
    infinite until the slot has seen a batch, unless its grid fixes them) and ``nonfinite`` (int64, batches with NaN or
    infinity per slot, which never enter the ranges). Slots whose observer works on a histogram have theirs in
    ``histograms`` (``None`` without such slots); their ranges are searched for after every update, but while fake
    quantization is off only once they are asked for.

    Args:
        names: one per slot, in execution order.
        specs: grid of each slot.
        activations: activation absorbed by each slot: "none", "relu" or "relu6".

    Example:
        >>> state = QATState(["input"], [ActivationSpec(0, 4)], ["none"])
        >>> state.observer = state.fake_quant = True
        >>> state.observe(0, torch.tensor([-1.0, 0.3, 3.0]))
        >>> state.end_of_step()
        >>> state.min_val, state.max_val, state.qparams()
        (tensor([-1.]), tensor([3.]), [(1.0, -1.0, 3.0)])
    """

    min_val: Tensor
    max_val: Tensor
    nonfinite: Tensor

    def __init__(self, names: list[str], specs: list[ActivationSpec], activations: list[str]) -> None:
        super().__init__()
        self.plan: object = None
        self.qconfig: object = None
        self.fake_quant = self.observer = self.freeze_bn = self.saves_bytes = False
        self.pinned: list[QParams] | None = None
        self.before_step: list[QParams] | None = None
        self.waits = False
        self.awake = False
        self.fill(names, specs, activations)

    def fill(self, names: list[str], specs: list[ActivationSpec], activations: list[str]) -> None:
        """Make the slots, without ranges; the phase stays as it is.

        Args:
            names: as for the constructor, and so are the others.
            specs: grids.
            activations: absorbed activations.
        """
        self.names, self.specs, self.activations = list(names), list(specs), list(activations)
        self.writers = [0] * len(names)  # fake quantizers of each slot: usually one
        # Lowest and highest value of each slot since the last step, as a pair or as a tensor of two.
        self._batch: list[tuple[Tensor, Tensor] | Tensor | None] = [None] * len(names)
        self._forget()
        self._unsearched = False
        count = len(names)
        # Not in the default type: in Lightning's "bf16-true" that is bfloat16 during a step.
        self.register_buffer("min_val", torch.full((count,), torch.inf, dtype=torch.float32))
        self.register_buffer("max_val", torch.full((count,), -torch.inf, dtype=torch.float32))
        self.fix_ranges()
        self.register_buffer("nonfinite", torch.zeros(count, dtype=torch.int64))
        self._grids = [slot_grid(spec, activation) for spec, activation in zip(specs, activations, strict=True)]
        self._slot_grids = Constant(_columns(self._grids, 5))
        running = [(s.averaging_constant, s.observer != "moving_average_minmax") for s in specs]
        self._slot_averaging = Constant(_columns(running, 2))
        limits = [ACTIVATIONS[activation] for activation in activations]
        self.histograms = ClippedRanges(specs, limits) if any(map(needs_histogram, specs)) else None

    @property
    def _grid(self) -> Tensor:
        """A column for each slot, as :func:`~lq.core.qparams.step_and_ends` takes them."""
        return self._slot_grids.on(self.min_val.device)

    @property
    def _running(self) -> Tensor:
        """For each slot, how far a range moves towards that of a batch, and whether it never shrinks instead."""
        return self._slot_averaging.on(self.min_val.device)

    def train(self, mode: bool = True) -> QATState:
        """Training or evaluation mode of all quantizers.

        While a training step runs (:attr:`awake`) they stay in training mode where gradients are computed, so that a
        target that is trained in evaluation mode is observed.
        """
        return super().train(mode or (self.awake and torch.is_grad_enabled()))

    def fix_ranges(self) -> None:
        """Give the slots their ranges whose grids fix them."""
        for slot, spec in enumerate(self.specs):
            if spec.fixed_range is not None:
                self.min_val[slot], self.max_val[slot] = spec.fixed_range

    def empty(self) -> None:
        """Take all slots and quantizers out."""
        self._modules.clear()
        self.fill([], [], [])

    def observe_by(self, observer: str) -> None:
        """Start over without ranges, and with another observer for the slots that have the usual one.

        Args:
            observer: for slots of ``"moving_average_minmax"``.
        """
        usual = "moving_average_minmax"
        self.specs = [replace(s, observer=observer) if s.observer == usual else s for s in self.specs]
        limits = [ACTIVATIONS[activation] for activation in self.activations]
        searched = any(map(needs_histogram, self.specs))
        self.histograms = ClippedRanges(self.specs, limits).to(self.min_val.device) if searched else None
        self.min_val.fill_(torch.inf)
        self.max_val.fill_(-torch.inf)
        self.fix_ranges()
        self._batch = [None] * len(self.names)
        self._forget()
        self._unsearched = False

    def _forget(self) -> None:
        """What was read of ranges that are others now."""
        self._known: _Known | None = None
        self._ready = [False] * len(self.names)

    def qparams(self) -> list[QParams]:
        """``(scale, low, high)`` of every slot, as :func:`~lq.core.functional.fake_quantize` takes them.

        Floats on the CPU, where reading them costs nothing; 0-dim tensors on other devices and under torch.compile.
        """
        self.settle()
        return self._read().qparams

    def slot_qparams(self, slot: int) -> QParams:
        """:meth:`qparams` of one slot."""
        if self.pinned is not None:
            return self.pinned[slot]
        self.settle()
        if torch.compiler.is_compiling():
            scale, low, high = compiled_step_and_ends(self.min_val, self.max_val, self._grid)
            return scale[slot], low[slot], high[slot]
        return self._read().qparams[slot]

    def rounding(self, slot: int, dtype: torch.dtype) -> RoundingValues | None:
        """What follows from :meth:`slot_qparams` for activations of a dtype; ``None`` where each site computes it.

        A GPU computes that of all slots at once, because it would launch a kernel for each number of each site.
        """
        if self.pinned is not None or self.min_val.is_cpu or torch.compiler.is_compiling():
            return None
        known, is_float32 = self._read(), dtype == torch.float32
        if is_float32 not in known.roundings:
            vectors = (marking if is_float32 else exact)(*known.grids)
            known.roundings[is_float32] = list(map(RoundingValues, *(torch.as_tensor(v).unbind() for v in vectors)))
        return known.roundings[is_float32][slot]

    def ready(self, slot: int) -> bool:
        """Whether the slot has a range. A GPU is waited for until it has one: ranges do not go away again."""
        if not self._ready[slot]:
            self._ready = torch.isfinite(self.max_val - self.min_val).tolist()
        return self._ready[slot]

    def observed(self) -> list[bool]:
        """Whether each slot whose range comes from data has one."""
        known = torch.isfinite(self.min_val).tolist()
        return [has for has, spec in zip(known, self.specs, strict=True) if spec.fixed_range is None]

    def scale_zero_point(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point of every slot, float32 of shape (slots,)."""
        self.settle()
        return scale_zero_point(self.min_val, self.max_val, self._grid)

    def pin(self) -> list[QParams]:
        """The qparams of now, for :attr:`pinned`: what is computed again has to be rounded as it was before."""
        return self.pinned if self.pinned is not None else self.qparams()

    def settle(self) -> None:
        """Search the ranges of slots with histograms, if those changed since the last search."""
        if self.histograms is not None and self._unsearched:
            self.histograms.write(self.min_val, self.max_val)
            self._unsearched = False

    def _read(self) -> _Known:
        """Qparams of the present ranges, computed when these have changed: once a step."""
        low, high, version = self.min_val, self.max_val, None
        if not low.is_inference():
            version = version_of(low), version_of(high), low.data_ptr(), high.data_ptr(), low.device
        known = self._known
        if known is None or version is None or known.version != version:
            grids = step_and_ends(low, high, self._grid)
            known = self._known = _Known(version, grids, of_each(grids))
        return known

    def observe(self, slot: int, x: Tensor) -> None:
        """Note the range of ``x`` for the update at the end of this step."""
        if self.specs[slot].fixed_range is None:
            with torch.no_grad():
                low, high = self._range_of(slot, x.detach())
                self.note(slot, (low.float(), high.float()))

    def ends_to_fill(self, slot: int, x: Tensor) -> Tensor | None:
        """Memory for the range of ``x``, float32 of shape (2,), if it can be found while ``x`` is rounded.

        Returns:
            to be given to :func:`~lq.core.functional.fake_quantize` and then to :meth:`note`; ``None`` if ``x`` has to
            be observed before.
        """
        in_histogram = self.histograms is not None and slot in self.histograms.rows
        if in_histogram or self.specs[slot].fixed_range is not None:
            return None
        return x.new_empty(2) if self.min_val.is_cpu and native.usable(x) else None

    def note(self, slot: int, ends: tuple[Tensor, Tensor] | Tensor) -> None:
        """Note a range for the update at the end of this step: the lowest and the highest value."""
        earlier = self._batch[slot] if self.waits or self.writers[slot] > 1 else None
        if earlier is not None:
            (lowest, highest), (low, high) = earlier, ends
            ends = torch.minimum(lowest, low), torch.maximum(highest, high)
        self._batch[slot] = ends

    def _range_of(self, slot: int, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.histograms is not None and slot in self.histograms.rows:
            return self.histograms.observe(self.histograms.rows[slot], x)
        if ACTIVATIONS[self.activations[slot]][0] == 0.0:  # half the work
            high = x.amax()
            return self._grid[3, slot], high  # its floor, 0, in float32
        low, high = torch.aminmax(x)
        return low, high

    def forward(self, output: Any) -> Any:
        """Last node of a prepared graph: passes the model's output on and updates the ranges once per training step."""
        self.end_of_call()
        return output

    def end_of_call(self) -> None:
        """The model has been called: update the ranges, unless somebody else says when a step is over."""
        if not self.waits:
            self.end_of_step()

    def end_of_step(self) -> None:
        """Update the ranges by all calls since the last step; with several processes all of them have to call it.

        Whoever trains may say when that is (:attr:`waits`), so that it need not be in a forward pass, which one process
        may make more often than another.
        """
        if not torch.compiler.is_compiling():
            self.before_step = None if self._known is None else self._known.qparams
        if self.training and self.observer and self.names:  # it has none before it is planned
            self.update()

    @torch.no_grad()
    def update(self) -> None:
        """Move every range by this step's batch, over all processes: one vectorised update, one collective.

        Moving average: ``range += averaging_constant * (batch - range)``. Where there is no range yet, or one of a
        single value, the batch is taken as it is. A batch whose range is not finite is counted in ``nonfinite`` and
        otherwise ignored. Histograms, if there are any, are a second update, with two collectives.
        """
        low, high, nonfinite = self._reduced_batch()
        batch = torch.stack([low, torch.maximum(low, high)])  # behind a ReLU that lets nothing pass there are zeros
        usable = (low < torch.inf) & ~nonfinite
        current = torch.stack([self.min_val, self.max_val])
        # Nothing yet, or one value alone, such as 0, from which a range would move slowly: branches whose last weight
        # starts at 0 would saturate for long.
        first = self.min_val >= self.max_val
        constant, is_minmax = self._running
        averaged = current + constant * (batch - current)
        widest = torch.stack([torch.minimum(current[0], batch[0]), torch.maximum(current[1], batch[1])])
        new = torch.where(first, batch, torch.where(is_minmax.bool(), widest, averaged))
        new = torch.where(usable, new, current)
        self.min_val.copy_(new[0])
        self.max_val.copy_(new[1])
        self.nonfinite.add_(nonfinite.to(self.nonfinite.dtype))
        self._batch = [None] * len(self.names)
        if self.histograms is not None:
            self.histograms.update()
            self._unsearched = True
            if self.fake_quant:
                self.settle()

    def _reduced_batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Lowest and highest value of every slot over all processes, and where a value was not finite.

        A slot that did not run anywhere comes out as (inf, -inf).
        """
        from_kernels = [ends for ends in self._batch if isinstance(ends, Tensor)]
        if len(from_kernels) == len(self._batch):
            lows, highs = torch.stack(from_kernels).unbind(1)
        else:
            infinity = torch.full((), torch.inf, dtype=torch.float32, device=self.min_val.device)
            pairs = [(infinity, -infinity) if ends is None else tuple(ends) for ends in self._batch]
            lows, highs = map(torch.stack, zip(*pairs, strict=True))
        if from_kernels:  # which do not know of a ReLU, behind which the lowest value does not matter
            floors = self._grid[3]
            lows = torch.where((floors == 0.0) & (lows < torch.inf), floors, lows)
        ends = torch.stack([-lows, highs])
        ran = ~(ends == -torch.inf).all(dim=0)
        # How a maximum over processes treats NaN is not defined; infinity is safe.
        ends = torch.where(ran & ~torch.isfinite(ends), torch.inf, ends)
        all_reduce(ends, "MAX")
        return -ends[0], ends[1], (ends == torch.inf).any(dim=0)

    def get_extra_state(self) -> Tensor:
        """Names and flags, so that a checkpoint says by itself what it holds; see :func:`.checkpoint.as_bytes`."""
        flags = {"fake_quant": self.fake_quant, "observer": self.observer, "freeze_bn": self.freeze_bn}
        return as_bytes(self.names, flags)

    def set_extra_state(self, state: Tensor | dict[str, Any]) -> None:
        """Take the flags."""
        if stands_for_extra_state(state):
            return
        flags = from_bytes(state)
        self.fake_quant, self.observer, self.freeze_bn = flags["fake_quant"], flags["observer"], flags["freeze_bn"]

    def check_checkpoint(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """Refuse a checkpoint of another plan, before anything of it is loaded.

        Args:
            state_dict: the checkpoint's.
            prefix: of the keys in it that are those of this state.

        Raises:
            ValueError: if the checkpoint's fake quantizers are not those of this model.
        """
        extra = state_dict.get(f"{prefix}_extra_state")
        if extra is not None and not stands_for_extra_state(extra):
            require_same_slots(from_bytes(extra)["names"], self.names)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        self.check_checkpoint(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._batch = [None] * len(self.names)
        self._forget()
        self._unsearched = self._unsearched and f"{prefix}min_val" not in state_dict

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.settle()  # so that what is loaded needs no search
        super()._save_to_state_dict(*args, **kwargs)

    def _apply(self, fn: Any, recurse: bool = True) -> QATState:
        self._known = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "_known": None,
            "pinned": None,
            "before_step": None,
            "_batch": [None] * len(self.names),
        }

    def extra_repr(self) -> str:
        """Number of slots and the flags."""
        flags = f"fake_quant={self.fake_quant}, observer={self.observer}, freeze_bn={self.freeze_bn}"
        return f"slots={len(self.names)}, {flags}"


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> Tensor:
    """Rows of numbers as float32, column after column."""
    return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), width).T.contiguous()

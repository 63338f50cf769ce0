"""The quantization state of one prepared model: all activation ranges in flat tensors, and the phase flags.

Layers write the minimum and maximum of their output into a slot; one vectorised update per training step moves every
range of the network, with one collective when several processes train. Flags are plain Python, so that reading
them neither synchronises a GPU nor breaks a compiled graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lq.core.calibration.clipping import ClippedRanges, needs_histogram
from lq.core.checkpoint import require_same_slots
from lq.core.float32 import Float32Buffers
from lq.core.functional import Scalar, affine_qparams
from lq.qconfig import ActivationSpec

ACTIVATIONS: dict[str, tuple[float, float]] = {
    "none": (-torch.inf, torch.inf),
    "relu": (0.0, torch.inf),
    "relu6": (0.0, 6.0),
}

QParams = tuple[Scalar, Scalar, Scalar]


class QATState(Float32Buffers):
    """Ranges, flags and slots of one prepared model; it is the submodule ``qat_state`` of that model.

    Its buffers have their final shape from the start: ``min_val`` and ``max_val`` (float32, one entry per slot,
    infinite until the slot has seen a batch) and ``nonfinite`` (int64, batches with NaN or infinity per slot, which
    never enter the ranges). Slots whose observer works on a histogram have theirs in ``histograms`` (``None`` without
    such slots); their ranges are searched for when they are next needed after an update.

    Args:
        names: one per slot, in execution order.
        specs: grid of each slot.
        activations: activation absorbed by each slot: "none", "relu" or "relu6".
    """

    min_val: Tensor
    max_val: Tensor
    nonfinite: Tensor
    _grid: Tensor
    _running: Tensor

    def __init__(self, names: list[str], specs: list[ActivationSpec], activations: list[str]) -> None:
        super().__init__()
        self.names, self.specs, self.activations = list(names), list(specs), list(activations)
        self.plan: object = None
        self.qconfig: object = None
        self.fake_quant = False
        self.observer = False
        self.freeze_bn = False
        self._batch: list[tuple[Tensor, Tensor] | None] = [None] * len(names)
        self._seen = [False] * len(names)
        self._cache: tuple[Any, list[QParams]] | None = None
        count = len(names)
        self.register_buffer("min_val", torch.full((count,), torch.inf))
        self.register_buffer("max_val", torch.full((count,), -torch.inf))
        self.register_buffer("nonfinite", torch.zeros(count, dtype=torch.int64))
        grid = [
            (s.quant_min, s.quant_max, s.symmetric, *ACTIVATIONS[a]) for s, a in zip(specs, activations, strict=True)
        ]
        self.register_buffer("_grid", torch.tensor(grid).reshape(count, 5).T.contiguous(), persistent=False)
        running = [(s.averaging_constant, s.observer != "moving_average_minmax") for s in specs]
        self.register_buffer("_running", torch.tensor(running).reshape(count, 2).T.contiguous(), persistent=False)
        limits = [ACTIVATIONS[activation] for activation in activations]
        self.histograms = ClippedRanges(specs, limits) if any(map(needs_histogram, specs)) else None

    def qparams(self) -> list[QParams]:
        """``(scale, low, high)`` of every slot, as :func:`~lq.core.functional.fake_quantize` takes them.

        Floats on the CPU, where reading them costs nothing; 0-dim tensors on other devices and under torch.compile.
        """
        self.settle()
        if torch.compiler.is_compiling():
            return self._qparams(self.min_val, self.max_val)
        if self.min_val.is_inference():
            return self._qparams(self.min_val, self.max_val)
        ends = (self.min_val, self.max_val)
        key = tuple((end._version, end.data_ptr(), end.device) for end in ends)
        if self._cache is None or self._cache[0] != key:
            self._cache = key, self._qparams(self.min_val, self.max_val)
        return self._cache[1]

    def scale_zero_point(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point of every slot, float32 of shape (slots,)."""
        self.settle()
        return _scale_zero_point(self.min_val, self.max_val, self._grid)

    def settle(self) -> None:
        """Search the ranges of slots with histograms, if those changed since the last search."""
        if self.histograms is not None and self.histograms.stale:
            self.histograms.write(self.min_val, self.max_val)

    @torch.no_grad()
    def _qparams(self, min_val: Tensor, max_val: Tensor, slots: slice = slice(None)) -> list[QParams]:
        grid = self._grid[:, slots]
        quant_min, quant_max, _, floor, _ = grid.unbind()
        scale, zero_point = _scale_zero_point(min_val, max_val, grid)
        # An absorbed ReLU shows in a symmetric grid, whose lowest value would be negative.
        bottom = torch.clamp(quant_min - zero_point, min=floor)
        top = quant_max - zero_point
        table = torch.stack([scale, bottom, top], dim=1)
        if table.is_cpu and not torch.compiler.is_compiling():
            return [(s, b, t) for s, b, t in table.tolist()]
        return [(row[0], row[1], row[2]) for row in table.unbind()]

    def observe(self, slot: int, x: Tensor) -> QParams | None:
        """Note the range of ``x`` for the update at the end of this step.

        Returns:
            qparams to use now, ``None`` while fake quantization is off.
        """
        with torch.no_grad():
            low, high = self._note(slot, x.detach())
            self._batch[slot] = (low.float(), high.float())
            if not self.fake_quant:
                return None
            if self._seen[slot]:
                return self.qparams()[slot]
            return self._qparams(low.float()[None], high.float()[None], slice(slot, slot + 1))[0]

    def _note(self, slot: int, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.histograms is not None and slot in self.histograms.rows:
            return self.histograms.observe(self.histograms.rows[slot], x)
        if ACTIVATIONS[self.activations[slot]][0] == 0.0:  # a ReLU cuts the lower end off: half the work
            high = x.amax()
            return torch.zeros_like(high), high
        low, high = torch.aminmax(x)
        return low, high

    def ready(self, slot: int) -> bool:
        """Whether the slot has a range."""
        return self._seen[slot]

    def forward(self, output: Any) -> Any:
        """Last node of a prepared graph: passes the model's output on and updates the ranges once per training step."""
        if self.observer and self.training:
            self.update()
        return output

    @torch.no_grad()
    def update(self) -> None:
        """Move every range by this step's batch, over all processes: one vectorised update, one collective.

        Moving average: ``range += averaging_constant * (batch - range)``, the first batch taken as it is. A batch
        whose range is not finite is counted in ``nonfinite`` and otherwise ignored. Histograms, if there are any, are a
        second update, with two collectives.
        """
        low, high, nonfinite = self._reduced_batch()
        batch = torch.stack([low, high])
        usable = (low <= high) & ~nonfinite
        current = torch.stack([self.min_val, self.max_val])
        first = torch.isinf(current)
        constant, is_minmax = self._running[0], self._running[1].bool()
        averaged = current + constant * (batch - current)
        widest = torch.stack([torch.minimum(current[0], batch[0]), torch.maximum(current[1], batch[1])])
        new = torch.where(first, batch, torch.where(is_minmax, widest, averaged))
        new = torch.where(usable, new, current)
        self.min_val.copy_(new[0])
        self.max_val.copy_(new[1])
        self.nonfinite.add_(nonfinite.to(self.nonfinite.dtype))
        self._note_seen(usable)
        self._batch = [None] * len(self.names)
        if self.histograms is not None:
            self.histograms.update()

    def _reduced_batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Lowest and highest value of every slot over all processes, and where a value was not finite.

        A slot that did not run anywhere comes out as (inf, -inf).
        """
        nothing = torch.full((), torch.inf, device=self.min_val.device)
        pairs = [pair or (nothing, -nothing) for pair in self._batch]
        ran = torch.tensor([pair is not None for pair in self._batch], device=nothing.device)
        ends = torch.stack([torch.stack([-low, high]) for low, high in pairs], dim=1)
        # How a maximum over processes treats NaN is not defined; infinity is safe.
        ends = torch.where(ran & ~torch.isfinite(ends), torch.inf, ends)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(ends, torch.distributed.ReduceOp.MAX)
        return -ends[0], ends[1], (ends == torch.inf).any(dim=0)

    def _note_seen(self, usable: Tensor) -> None:
        """A slot is ready once it has a range; reading ``usable`` waits for a GPU, so not once all are ready."""
        ran = [pair is not None for pair in self._batch]
        if torch.compiler.is_compiling():
            self._seen = [was or now for was, now in zip(self._seen, ran, strict=True)]
        elif any(now and not was for was, now in zip(self._seen, ran, strict=True)):
            self._seen = [was or now for was, now in zip(self._seen, usable.tolist(), strict=True)]

    def get_extra_state(self) -> dict[str, Any]:
        """Names and flags, so that a checkpoint says by itself what it holds."""
        flags = {"fake_quant": self.fake_quant, "observer": self.observer, "freeze_bn": self.freeze_bn}
        return {"names": list(self.names), **flags}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take the flags; refuse a checkpoint of another plan.

        Raises:
            ValueError: if the checkpoint's quantizers are not those of this model.
        """
        require_same_slots(state["names"], self.names)
        self.fake_quant, self.observer, self.freeze_bn = state["fake_quant"], state["observer"], state["freeze_bn"]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._seen = torch.isfinite(self.min_val).tolist()
        self._batch = [None] * len(self.names)
        self._cache = None

    def _apply(self, fn: Any, recurse: bool = True) -> QATState:
        self._cache = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None, "_batch": [None] * len(self.names)}

    def extra_repr(self) -> str:
        """Number of slots and the flags."""
        flags = f"fake_quant={self.fake_quant}, observer={self.observer}, freeze_bn={self.freeze_bn}"
        return f"slots={len(self.names)}, {flags}"


def _scale_zero_point(min_val: Tensor, max_val: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    quant_min, quant_max, symmetric, floor, ceiling = grid.unbind()
    low, high = torch.clamp(min_val, floor, ceiling), torch.clamp(max_val, floor, ceiling)
    return affine_qparams(low, high, quant_min, quant_max, symmetric.bool())

"""Fake quantization on the CPU in one pass over memory: C that the system's compiler translates at the first use.

Where that cannot be, or a tensor is none that it can take (:func:`usable`), callers compute the same values with
PyTorch's operations, to the bit.
"""

from __future__ import annotations

from lq.core.native.activations import can_unpack as can_unpack
from lq.core.native.activations import round_and_pack as round_and_pack
from lq.core.native.activations import round_values as round_values
from lq.core.native.activations import unpack as unpack
from lq.core.native.build import SWITCH as SWITCH
from lq.core.native.build import Library as Library
from lq.core.native.build import library as library
from lq.core.native.calls import has_rows as has_rows
from lq.core.native.calls import off as off
from lq.core.native.calls import takes_rows as takes_rows
from lq.core.native.calls import usable as usable
from lq.core.native.weights import factor_gradients as factor_gradients
from lq.core.native.weights import fold_batch_norm as fold_batch_norm
from lq.core.native.weights import learned_gradients as learned_gradients
from lq.core.native.weights import round_rows as round_rows
from lq.core.native.weights import round_weight as round_weight
from lq.core.native.weights import search_scale as search_scale
from lq.core.native.weights import weight_scale as weight_scale

"""Weights of few bits in files: two in a byte where the format has such integers, compressed where it has not."""

from __future__ import annotations

import io
import zipfile
from typing import Any

from torch import fx

from lq.backends.prepare import plan_of

_LOW = 6  # bits; more are stored as bytes
_NIBBLE = (-8, 7)


def lowest_bits(prepared: fx.GraphModule) -> int:
    """Bits of the smallest grid of a weight; 8 if there is none.

    Example:
        >>> import torch
        >>> from lq.conversion.graph import as_graph
        >>> from lq.backends.prepare import prepare
        >>> net = prepare(torch.nn.Sequential(torch.nn.Linear(4, 2)), example_args=(torch.ones(1, 4),))
        >>> lowest_bits(as_graph(net))
        7
    """
    sites = plan_of(prepared).sites
    return 8 if sites is None else min((layer.spec.bits for layer in sites.layers), default=8)


def stored_archive(content: io.BytesIO, prepared: fx.GraphModule) -> bytes:
    """An archive of PyTorch, with compressed records if weights have few bits.

    PyTorch reads such archives like others. Weights of b bits take at most about b bits each in it.

    Args:
        content: as ``torch.jit.save`` or ``torch.export.save`` wrote it.
        prepared: what it holds.

    Example:
        >>> import lq, torch
        >>> from lq.ptq.static import prepare_static
        >>> net, x = torch.nn.Sequential(torch.nn.Linear(4, 2)), torch.rand(8, 4)
        >>> content = io.BytesIO()
        >>> torch.save(torch.zeros(10_000, dtype=torch.int8), content)
        >>> for weight in (lq.WeightSpec(-127, 127), lq.WeightSpec(-7, 7)):
        ...     len(stored_archive(content, prepare_static(net, [x], lq.QConfig(weight=weight)))) > 10_000
        True
        False
    """
    if lowest_bits(prepared) > _LOW:
        return content.getvalue()
    smaller = io.BytesIO()
    with zipfile.ZipFile(content) as given, zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED) as made:
        for record in given.infolist():
            made.writestr(record.filename, given.read(record))
    return smaller.getvalue()


def fits_in_four_bits(values: Any) -> bool:
    """Whether all integers of an array do.

    Example:
        >>> import numpy as np
        >>> fits_in_four_bits(np.array([-7, 7], np.int8)), fits_in_four_bits(np.array([9], np.int8))
        (True, False)
    """
    return bool(values.size and values.min() >= _NIBBLE[0] and values.max() <= _NIBBLE[1])


def two_in_a_byte(values: Any) -> Any:
    """Integers of four bits in bytes, the first in the lower half; a last half that is left over is 0.

    Args:
        values: int8 array in [-8, 7], any shape.

    Returns:
        uint8 array, one-dimensional.

    Example:
        >>> import numpy as np
        >>> two_in_a_byte(np.array([1, -1, 7], np.int8)).tolist()
        [241, 7]
    """
    import numpy as np

    halves = values.reshape(-1).astype(np.uint8) & 15
    if halves.size % 2:
        halves = np.append(halves, np.uint8(0))
    return halves[0::2] | (halves[1::2] << 4)

"""The contract of every architecture (see tests/backends/zoo.py) where a vendor's quantizer decides."""

from __future__ import annotations

import pytest

from lq.backends.prepare import prepare
from lq.qconfig import QConfig
from tests.backends.zoo import ZOO, keep_contract

pytest.importorskip("torchao")

X86, XNNPACK = (QConfig(backend="pt2e", quantizer=name) for name in ("x86_inductor", "xnnpack"))


# Share of the layers that have an int8 kernel of torch's own: x86_inductor leaves outputs in float where it can fuse.
@pytest.mark.parametrize(
    ("name", "qconfig", "kernels"),
    [
        ("torchvision resnet18", X86, 0.5),
        ("several inputs, by keyword", XNNPACK, 0.9),
    ],
)
def test_the_contract(name, qconfig, kernels):
    if not ZOO[name].is_installed:
        pytest.skip(f"{ZOO[name].needs} is not installed")
    kept = keep_contract(ZOO[name], qconfig, kernels)
    assert kept.quantized == kept.layers
    assert kept.float_parts == ()


def test_what_cannot_be_exported_is_refused():
    entry = ZOO["branch that depends on values"]
    args, kwargs = entry.inputs(2)
    with pytest.raises(ValueError, match=r"torch\.export refuses Gated: .* QATCallback\(target=\.\.\.\), or use"):
        prepare(entry.make(), X86, args, kwargs)

"""Activations of 16 bits where there are none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lq
from lq.config.qconfig import QConfig
from lq.config.specs import ActivationSpec
from lq.conversion.convert import convert
from lq.conversion.wide import check_eight_bits, wide_activations

WIDE = ActivationSpec(0, 65535)


def prepared(qconfig: QConfig | str, layers: int = 1) -> nn.Module:
    x = torch.randn(8, 4)
    made = lq.prepare(nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers))), qconfig, example_args=(x,))
    lq.calibrate(made, [x])
    return made


def test_nothing_is_said_of_eight_bits() -> None:
    net = prepared("qnn")
    assert wide_activations(net) == []
    check_eight_bits(net, "PyTorch")


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (1, "fq_input_1, fq_0 have"),
        (2, "fq_input_1, fq_0, fq_1 have"),
        (4, "fq_input_1, fq_0, fq_1 and 2 more have"),
    ],
)
def test_those_of_sixteen_are_named(layers: int, names: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^Here does not support 16-bit activations, but {names} 16 bits\. Use 8 bits, or export"
    ):
        check_eight_bits(prepared(QConfig("qnn", activation=WIDE), layers), "Here")


def test_a_single_one_is_named_and_not_converted() -> None:
    net = prepared(QConfig("qnn", overrides={"0": lq.LayerQConfig(activation=WIDE)}))
    with pytest.raises(ValueError, match=r"PyTorch does not support 16-bit activations, but fq_0 has 16 bits\."):
        convert(net)

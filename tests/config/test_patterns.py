from __future__ import annotations

from torch import nn

from lq.config.patterns import matches


class MyLinear(nn.Linear):
    pass


def test_patterns_name_modules_or_types() -> None:
    assert matches("layer?.*", "layer1.0", None)
    assert not matches("Layer?.*", "layer1.0", None)
    assert matches("type:Linear", "x", MyLinear(1, 1))
    assert not matches("type:Linear", "x", None)

from __future__ import annotations

import pytest

from lq.config.specs import ActivationSpec, WeightSpec


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quant_min": -64, "quant_max": 63}, "is not symmetric; write quant_min=-63"),
        ({"quant_min": -128, "quant_max": 128}, "257 levels; 2 to 8 bits"),
        ({"quant_min": 5, "quant_max": -5}, "must be below"),
        ({"quant_min": 0, "quant_max": 1}, "2 levels"),
        ({"observer": "histogram"}, r"weight: unknown observer 'histogram'; choose one of \['minmax', 'mse'\]"),
    ],
)
def test_impossible_weight_grids_are_refused(arguments: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        WeightSpec(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quant_min": 3, "quant_max": 9}, "must hold 0"),
        ({"symmetric": True}, "needs a signed range"),
        ({"observer": "histogramm"}, "unknown observer 'histogramm'; choose one of"),
        ({"averaging_constant": 0.0}, r"must lie in \(0, 1\]"),
        ({"averaging_constant": 1.5}, r"must lie in \(0, 1\]"),
        ({"percentile": 50}, r"percentile=50 must lie in \(50, 100\]"),
        ({"percentile": 100.1}, r"must lie in \(50, 100\]"),
        ({"quant_max": 256}, "257 levels"),
        ({"quant_max": 65534}, r"65535 levels; .* An activation may have 16: quant_min=0, quant_max=65535\."),
        ({"quant_min": -32768, "quant_max": 32767}, "65536 levels"),
        ({"quant_max": 65535, "observer": "entropy"}, "observer='entropy' is for 8 bits and fewer"),
        ({"fixed_range": (1.0, 2.0)}, r"fixed_range=\[1.0, 2.0\] must hold 0"),
        ({"fixed_range": (0.0, 0.0)}, "must be the lower end first"),
        ({"fixed_range": 1.0}, r"must be two numbers, e.g. \[0.0, 1.0\]"),
    ],
)
def test_impossible_activation_grids_are_refused(arguments: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        ActivationSpec(**arguments)


@pytest.mark.parametrize(
    ("spec", "bits"),
    [
        (WeightSpec(-1, 1), 2),
        (WeightSpec(-7, 7), 4),
        (WeightSpec(), 7),
        (WeightSpec(-127, 127), 8),
        (ActivationSpec(0, 15), 4),
        (ActivationSpec(), 8),
    ],
)
def test_bits(spec: WeightSpec | ActivationSpec, bits: int):
    assert spec.bits == bits
    assert f"int{bits} " in str(spec)


def test_an_activation_may_have_sixteen_bits_and_a_weight_may_not() -> None:
    spec = ActivationSpec(0, 65535)
    assert (spec.bits, str(spec)) == (16, "uint16 [0, 65535] affine, moving_average_minmax")
    with pytest.raises(ValueError, match=r"for 4 bits\.$"):
        WeightSpec(0, 65535)

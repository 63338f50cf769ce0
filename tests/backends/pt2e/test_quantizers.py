from __future__ import annotations

import importlib
from typing import Any

import pytest

from lq.backends.pt2e.quantizers import QUANTIZERS, make_quantizer
from lq.config.qconfig import QConfig

pytest.importorskip("torchao")


def of(quantizer: str, **options: Any) -> Any:
    return make_quantizer(QConfig(backend="pt2e", quantizer=quantizer, quantizer_options=options))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_named_ones_are_made_for_training(name):
    quantizer = of(name)
    config = getattr(quantizer, "global_config", None)
    assert config.is_qat
    assert not config.input_activation.is_dynamic


def test_options_reach_the_configuration():
    assert of("x86_inductor").global_config.input_activation.quant_max == 255
    assert of("x86_inductor", reduce_range=True).global_config.input_activation.quant_max == 127
    with pytest.raises(ValueError, match=r"quantizer_options=\{'reduced': 1\} do not fit x86_inductor: .*'reduced'"):
        of("x86_inductor", reduced=1)


def test_one_of_ones_own():
    assert type(of("tests.backends.pt2e.quantizers.OnlyLinear", fixed=True)).__name__ == "OnlyLinear"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("x86", r"'x86' is neither one of \['x86_inductor', 'xnnpack'\] nor a dotted path"),
        ("tests.backends.pt2e.quantizers.Missing", "has nothing of that name that can be called"),
        ("tests.backends.pt2e.quantizers.no_quantizer", r"makes a object, which has no annotate\(\)"),
    ],
)
def test_what_is_no_quantizer_is_refused(path, message):
    with pytest.raises(ValueError, match=message):
        of(path)


def test_without_torchao_it_says_what_to_install(monkeypatch):
    def fail(name: str, *args: Any) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ImportError, match="pip install -U torchao"):
        of("x86_inductor")

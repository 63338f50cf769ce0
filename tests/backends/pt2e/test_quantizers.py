from __future__ import annotations

import importlib
from typing import Any

import pytest

from lq.backends.pt2e.quantizers import make_quantizer
from lq.backends.pt2e.vendors import VENDORS
from lq.config.qconfig import QConfig

pytest.importorskip("torchao")


def of(quantizer: str, **options: Any) -> Any:
    return make_quantizer(QConfig(backend="pt2e", quantizer=quantizer, quantizer_options=options))


def test_one_of_ones_own():
    assert type(of("tests.backends.pt2e.quantizers.OnlyLinear", fixed=True)).__name__ == "OnlyLinear"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("x86", r"'x86' is neither one of \['x86_inductor', .*\] nor a dotted path"),
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


@pytest.mark.parametrize(("name", "vendor"), VENDORS.items())
def test_without_the_vendors_package_it_says_what_to_install(name, vendor, monkeypatch):
    find = importlib.import_module

    def fail(name: str, *args: Any) -> Any:
        if name == "torchao.quantization.pt2e":
            return find(name, *args)
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ImportError, match=rf"quantizer='{name}' cannot be imported \(.*\): pip install .*\.$") as error:
        of(name)
    assert vendor.needs in str(error.value)


def test_a_dotted_path_fails_as_its_import_does():
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'no_such_package'$"):
        of("no_such_package.Quantizer")

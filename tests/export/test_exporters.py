from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from lq.config.qconfig import QConfig
from lq.config.specs import ActivationSpec
from lq.export.exporters import EXPORTERS, chosen
from tests.export.nets import IMAGES, example_of, residual


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make packages look as if they were not installed."""
    real = importlib.util.find_spec

    def hide(*packages: str) -> None:
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name in packages else real(name, *rest)
        )

    return hide


def test_names_and_options_in_order() -> None:
    found = chosen(["pt2", {"onnx": {"opset": 18}}, {"torch": None}])  # type: ignore[dict-item]
    assert [(c.name, dict(c.options)) for c in found] == [("pt2", {}), ("onnx", {"opset": 18}), ("torch", {})]
    assert [c.name for c in chosen([{"torch": {}, "pt2": {}}])] == ["torch", "pt2"]
    assert chosen([]) == []


def test_an_unknown_name_gets_all_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"unknown exporter 'tflite'; choose from torch, onnx, tensorrt, qnn, pt2"):
        chosen(["torch", "tflite"])


def test_a_repeated_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"exporters name onnx more than once; keep one each"):
        chosen(["onnx", "torch", {"onnx": {"opset": 20}}])


def test_an_unknown_option_gets_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"exporter 'onnx' has no option opsets; it has opset\."):
        chosen([{"onnx": {"opsets": 20}}])
    with pytest.raises(ValueError, match=r"exporter 'torch' has no option opset; it has none\."):
        chosen([{"torch": {"opset": 20}}])


@pytest.mark.parametrize("kind", ["onnx", "tensorrt"])
@pytest.mark.parametrize("opset", [13, 99])
def test_an_opset_out_of_range_is_refused_at_once(kind: str, opset: int) -> None:
    with pytest.raises(ValueError, match=rf"opset={opset} must be from 18 \(the oldest .* to 23; leave it out for 20"):
        chosen([{kind: {"opset": opset}}])


def test_a_string_is_no_list() -> None:
    with pytest.raises(TypeError, match=r"exporters='onnx' must be a list; write \['onnx'\]"):
        chosen("onnx")
    with pytest.raises(TypeError, match=r"exporter 3 must be a name, or a mapping such as \{'onnx'"):
        chosen([3])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("kind", "package", "line"),
    [
        ("onnx", "onnxruntime", r"onnxruntime, not installed here: pip install 'lightning-qat\[onnx\]'"),
        ("tensorrt", "onnx", r"onnx, not installed here: pip install 'lightning-qat\[onnx\]'"),
        ("openvino", "openvino", r"openvino, not installed here: pip install 'lightning-qat\[openvino\]'"),
    ],
)
def test_a_missing_package_gives_the_line_that_installs_it(kind: str, package: str, line: str, without: Any) -> None:
    without(package)
    with pytest.raises(ImportError, match=rf"exporter '{kind}' needs {line}"):
        chosen([kind])
    with pytest.raises(ImportError, match=rf"exporter '{kind}' needs {line}"):
        EXPORTERS[kind].load(None, None, {})  # type: ignore[arg-type]
    chosen(["torch", "pt2"])


def test_files_of_the_exporters_do_not_collide() -> None:
    files = [file for exporter in EXPORTERS.values() for file in exporter.files]
    assert len(files) == len(set(files))


def test_files_for_other_tools_are_not_the_model(tmp_path: Path) -> None:
    qnn = EXPORTERS["qnn"]
    assert qnn.files_in(tmp_path) == qnn.written_in(tmp_path) == ["int8.qnn.onnx"]
    (tmp_path / "int8.qnn.encodings").touch()
    assert qnn.files_in(tmp_path) == ["int8.qnn.onnx"]
    assert qnn.written_in(tmp_path) == ["int8.qnn.onnx", "int8.qnn.encodings"]


@pytest.mark.parametrize("kind", [kind for kind in EXPORTERS if kind != "qnn"])
def test_an_exporter_without_sixteen_bits_says_so(kind: str, tmp_path: Path) -> None:
    prepared = residual(QConfig("qnn", activation=ActivationSpec(0, 65535)))
    with pytest.raises(
        ValueError, match=rf"^exporter '{kind}' does not support 16-bit activations, but fq_x, .* export only 'qnn'"
    ):
        EXPORTERS[kind].export(prepared, example_of(IMAGES), tmp_path)
    assert list(tmp_path.iterdir()) == []

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lq.export.exporters import chosen
from lq.export.formats import onnx as onnx_export
from lq.export.formats.shared import is_shared, made_once, sharing
from tests.export.nets import calibrated, example_of
from tests.tiny import make_net


def test_what_fails_is_tried_again() -> None:
    def fails() -> None:
        raise ValueError("no")

    with sharing():
        for _ in range(2):
            with pytest.raises(ValueError, match="no"):
                made_once("key", fails)
        assert made_once("key", lambda: 1) == 1
    assert not is_shared()


def test_one_alone_keeps_nothing() -> None:
    with sharing(False):
        assert not is_shared()
        assert made_once("key", list) is not made_once("key", list)


def test_exporters_share_one_onnx_model_and_do_not_change_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnxruntime", "openvino"):
        pytest.importorskip(package)
    original, calls = onnx_export._model_of, []

    def counted(*args: Any) -> Any:
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(onnx_export, "_model_of", counted)
    x = torch.rand(4, 1, 6, 6)
    prepared, example = calibrated(make_net(), example_of(x)), example_of(x)
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    choices = chosen(["onnx", "openvino"])
    for directory in (alone, shared):
        directory.mkdir()
        calls.clear()
        with sharing(directory == shared):
            for choice in choices:
                choice.export(prepared, example, directory)
        assert len(calls) == (1 if directory == shared else 2)
    for name in ("int8.onnx", "int8.bin"):
        assert (alone / name).read_bytes() == (shared / name).read_bytes()

"""Inputs that have no batch in common, as the nodes and edges of a graph: files take any number of each."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lq
from lq.deployment.results import Deployment
from lq.export.formats.program import float_program
from lq.timing.bench import bench

KINDS = ["torch", "pt2", *("onnx" for _ in "1" if importlib.util.find_spec("onnxscript"))]
KINDS += ["openvino"] if importlib.util.find_spec("openvino") and "onnx" in KINDS else []


class Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.message = nn.Linear(4, 4)

    def forward(self, nodes: Tensor, edges: Tensor, ends: Tensor) -> Tensor:
        return nodes.index_add(0, ends, self.message(edges))


class OfOneNumber(Graph):
    """Its code has made the number of nodes a constant."""

    def forward(self, nodes: Tensor, edges: Tensor, ends: Tensor) -> Tensor:
        return nodes * len(nodes) + torch.zeros(len(nodes), 4).index_add(0, ends, self.message(edges))


def graph(nodes: int, edges: int) -> dict[str, Tensor]:
    ends = torch.randint(nodes, (edges,))
    return {"nodes": torch.rand(nodes, 4), "edges": torch.rand(edges, 4), "ends": ends}


def exported(net: nn.Module, folder: Path, kinds: list[str]) -> tuple[Any, Deployment]:
    prepared = lq.prepare(net, example_kwargs=graph(5, 9))
    lq.calibrate(prepared, [graph(5, 9)])
    return prepared.eval(), lq.export_artifact(prepared, [graph(5, 9)], folder / "int8", exporters=kinds)


def test_every_file_takes_any_number_of_nodes_and_edges(tmp_path: Path) -> None:
    torch.manual_seed(0)
    prepared, done = exported(Graph(), tmp_path, KINDS)
    assert not [note for note in done.notes if "sizes of the example" in note]
    for kind in KINDS:
        int8 = lq.load(tmp_path / "int8", kind)
        for nodes, edges in ((5, 9), (12, 40), (3, 1), (1, 2), (7, 7)):
            call = graph(nodes, edges)
            with torch.no_grad():
                torch.testing.assert_close(int8(**call), prepared(**call), atol=1e-5, rtol=0)
        with pytest.raises(ValueError, match=r"for \(nodes: float32\(any, 4\), .*, but nodes is float32\(5, 3\)"):
            int8(**{**graph(5, 9), "nodes": torch.rand(5, 3)})


def test_a_size_that_the_code_has_fixed_stays_so_and_is_told(tmp_path: Path) -> None:
    prepared, done = exported(OfOneNumber(), tmp_path, ["pt2"])
    assert ["pt2: the file takes inputs of exactly the sizes of the example" in note for note in done.notes] == [True]
    int8 = lq.load(tmp_path / "int8", "pt2")
    assert str(int8.signature) == "(nodes: float32(5, 4), edges: float32(any, 4), ends: int64(any))"
    with torch.no_grad():
        call = graph(5, 3)
        torch.testing.assert_close(int8(**call), prepared(**call), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"but nodes is float32\(6, 4\)"):
        int8(**graph(6, 9))


def test_a_program_tells_sizes_that_its_code_has_fixed() -> None:
    program, dynamic = float_program(OfOneNumber(), ((), graph(5, 9)))
    assert not dynamic
    shapes = [node.meta["val"].shape for node in program.graph.nodes if node.name in ("nodes", "edges")]
    assert [isinstance(shape[0], int) for shape in shapes] == [True, False]


def test_bench_gives_all_of_them_one_size(tmp_path: Path) -> None:
    exported(Graph(), tmp_path, ["torch"])
    rows = bench(tmp_path / "int8", Graph(), batch_sizes=(1, 3), min_time=0.01, compile=False).rows
    assert {(row["model"], row["batch_size"]) for row in rows} >= {("int8 torch", 1), ("int8 torch", 3)}


def test_the_manifest_names_independent_sizes(tmp_path: Path) -> None:
    exported(Graph(), tmp_path, ["torch"])
    inputs = json.loads((tmp_path / "int8" / "lq.json").read_text())["signature"]["inputs"]
    assert [entry["shape"] for entry in inputs] == [["any", 4], ["any", 4], ["any"]]

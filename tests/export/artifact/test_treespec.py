from __future__ import annotations

import collections
import json
import sys
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_flatten, tree_unflatten, treespec_dumps

from lq.export.artifact.treespec import load_treespec


@pytest.mark.parametrize(
    "value",
    [
        1,
        [1, (2, None)],
        {"a": 1, "b": {"c": []}},
        collections.OrderedDict(x=1),
        collections.defaultdict(list, a=1),
        collections.deque([1, 2], maxlen=3),
    ],
)
def test_what_torch_writes_of_usual_containers_is_read(value: Any) -> None:
    leaves, spec = tree_flatten(value)
    assert tree_unflatten(leaves, load_treespec(treespec_dumps(spec), "x")) == value


def forged(kind: str) -> str:
    if kind == "factory":
        text = treespec_dumps(tree_flatten(collections.defaultdict(list, a=torch.zeros(1)))[1])
        return text.replace("builtins", "this")
    if kind == "enumeration":
        node = {"type": "builtins.dict", "context": json.dumps([{"__enum__": True, "fqn": "this:s", "name": "x"}])}
        return json.dumps([1, {**node, "children_spec": [{"type": None, "context": None, "children_spec": []}]}])
    node = {"type": "this.Class", "context": "null", "children_spec": []}
    return json.dumps([1, node])


@pytest.mark.parametrize("kind", ["factory", "enumeration", "class"])
def test_nothing_is_imported(kind: str) -> None:
    with pytest.raises(ValueError, match=r"lq\.json: signature\.output"):
        load_treespec(forged(kind), "lq.json: signature.output")
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    "text", ["", "[]", "[2, {}]", '[1, {"type": null}]', "[1, 5]", "[" * 500, '[1, {"type": {}, "context": 1}]']
)
def test_a_damaged_structure_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"^lq\.json"):
        load_treespec(text, "lq.json")

"""Operations of other packages (``torchvision::deform_conv2d``): a model that has some loads where they are known."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram

from lq.compat.torch_private import OpOverload, has_operations_of
from lq.fields import Field

# What torch itself, or lq, has registered by the time a model is loaded.
_OF_TORCH = frozenset(
    {"aten", "prim", "prims", "quantized", "_quantized", "quantized_decomposed", "onednn", "mkldnn", "torch", "c10"}
    | {"higher_order", "inductor", "mkldnn_prepacked", "prepacked", "static_runtime", "cuda", "_c10d_functional"}
)

# Packages that are imported for a model that uses their operations; others the user has to import.
_KNOWN = frozenset({"torchvision", "torchaudio"})


def libraries_of(model: torch.jit.ScriptModule | ExportedProgram) -> list[str]:
    """The namespaces of operations in a model that torch alone does not have, in order.

    Example:
        >>> libraries_of(torch.export.export(torch.nn.Linear(4, 2), (torch.ones(1, 4),), strict=False))
        []
    """
    if isinstance(model, ExportedProgram):
        targets = (node.target for node in model.graph.nodes if node.op == "call_function")
        found = {t.namespace for t in targets if isinstance(t, OpOverload)}
    else:
        found = {kind.partition("::")[0] for kind in _kinds(model.inlined_graph)}
    return sorted(found - _OF_TORCH)


def import_libraries(info: Mapping[str, Any]) -> None:
    """Import what registers the operations of a model.

    Args:
        info: of the model in ``lq.json``; its "libraries" are namespaces, which have the name of the package.

    Raises:
        ImportError: if one is missing.

    Example:
        >>> import_libraries({"libraries": ["no_such_package"]})
        Traceback (most recent call last):
        ImportError: the model uses operations of no_such_package; install that, or import what registers them first.
    """
    for entry in Field(info, "lq.json: artifact").get("libraries", ()).each():
        name = entry.text()
        if has_operations_of(name):
            continue
        try:
            if name not in _KNOWN:  # a file names it, and what a file names is not imported
                raise ImportError(name)
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(
                f"the model uses operations of {name}; install that, or import what registers them first."
            ) from error


def _kinds(graph: Any) -> Iterator[str]:
    nodes: Iterable[Any] = graph.nodes()
    for node in nodes:
        yield node.kind()
        for block in node.blocks():
            yield from _kinds(block)

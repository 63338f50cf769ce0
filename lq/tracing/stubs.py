"""Annotations by hand, as torch.ao's eager mode wants them: stubs, FloatFunctional, ``qconfig = None``.

Its classes are known by name, so that nothing of ``torch.ao.quantization``, which is going to be removed, is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from lq.tracing.ops import recorded, relu_kind

_FUNCTIONAL = "lq_functional"
_MISSING = object()


def quant_stub(x: Any) -> Any:
    """Stands in a recorded graph where a QuantStub was called.

    Example:
        >>> from torch.ao.quantization import QuantStub
        >>> from lq.tracing.symbolic import read_calls
        >>> graph, *_ = read_calls(nn.Sequential(QuantStub(), nn.ReLU()), stubs=True)
        >>> list(graph.nodes)
        [input_1, quant_stub, relu, output]
    """
    return x


def dequant_stub(x: Any) -> Any:
    """Stands in a recorded graph where a DeQuantStub was called.

    Example:
        >>> from torch.ao.quantization import DeQuantStub
        >>> from lq.tracing.symbolic import read_calls
        >>> graph, *_ = read_calls(nn.Sequential(nn.ReLU(), DeQuantStub()), stubs=True)
        >>> list(graph.nodes)
        [input_1, relu, dequant_stub, output]
    """
    return x


def stub_function(module: nn.Module) -> Any:
    """What stands in a recorded graph for the call of a stub; ``None`` for other modules.

    Example:
        >>> from torch.ao.quantization import DeQuantStub, QuantStub
        >>> [getattr(stub_function(m), "__name__", None) for m in (QuantStub(), DeQuantStub(), nn.Identity())]
        ['quant_stub', 'dequant_stub', None]
    """
    if _is_of_torch_ao(module, "QuantStub"):
        return quant_stub
    return dequant_stub if _is_of_torch_ao(module, "DeQuantStub") else None


def _is_of_torch_ao(module: nn.Module | None, name: str) -> bool:
    return any(cls.__name__ == name and cls.__module__.startswith("torch") for cls in type(module).__mro__)


def functional_that_calls(root: nn.Module, path: str) -> str | None:
    """The FloatFunctional that hands its result to the module ``path``, as each does at the end of an operation.

    Args:
        root: the module that is recorded.
        path: dotted name of a module that is called.

    Returns:
        dotted name of the FloatFunctional; ``None`` if the module is not the last step of one.

    Example:
        >>> from torch.ao.nn.quantized import FloatFunctional
        >>> net = nn.ModuleDict({"join": FloatFunctional()})
        >>> functional_that_calls(net, "join.activation_post_process"), functional_that_calls(net, "join")
        ('join', None)
    """
    owner, _, last = path.rpartition(".")
    if last == "activation_post_process" and _is_of_torch_ao(root.get_submodule(owner), "FloatFunctional"):
        return owner
    return None


def mark_functional(node: fx.Node, owner: str) -> None:
    """Note on a node that its value is the result of the FloatFunctional ``owner``.

    Example:
        >>> graph = fx.symbolic_trace(lambda x, y: x + y).graph
        >>> *_, total, output = graph.nodes
        >>> mark_functional(total, "block.join")
        >>> functionals(graph)
        {add: 'block.join'}
    """
    node.meta[_FUNCTIONAL] = owner


def functionals(graph: fx.Graph) -> dict[fx.Node, str]:
    """The operations that a FloatFunctional computes, each with its dotted name; without the ReLU of ``add_relu``.

    Example:
        >>> from torch.ao.nn.quantized import FloatFunctional
        >>> from lq.tracing.symbolic import read_calls
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.join = FloatFunctional()
        ...     def forward(self, x):
        ...         return self.join.add_relu(x, x)
        >>> functionals(read_calls(Net(), stubs=True)[0])
        {add: 'join'}
    """
    found: dict[fx.Node, str] = {}
    for node in graph.nodes:
        owner = node.meta.get(_FUNCTIONAL)
        if owner is not None:
            found[node.args[0] if relu_kind(node) else node] = owner
    return found


def annotated_region(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose value comes from a QuantStub and has passed no DeQuantStub.

    Example:
        >>> from torch.ao.quantization import DeQuantStub, QuantStub
        >>> from lq.tracing.symbolic import read_calls
        >>> net = nn.Sequential(nn.Tanh(), QuantStub(), nn.ReLU(), DeQuantStub(), nn.Sigmoid())
        >>> sorted(map(str, annotated_region(read_calls(net, stubs=True)[0])))
        ['quant_stub', 'relu']
    """
    inside: set[fx.Node] = set()
    for node in graph.nodes:
        derives = any(source in inside for source in node.all_input_nodes)
        if node.target is quant_stub or (derives and node.target is not dequant_stub and node.op != "output"):
            inside.add(node)
    return inside


def quant_stubs(graph: fx.Graph) -> list[fx.Node]:
    """The calls of QuantStubs.

    Example:
        >>> from torch.ao.quantization import QuantStub
        >>> from lq.tracing.symbolic import read_calls
        >>> quant_stubs(read_calls(nn.Sequential(QuantStub(), nn.ReLU()), stubs=True)[0])
        [quant_stub]
    """
    return [node for node in graph.nodes if recorded(node) == quant_stub.__name__]


def is_switched_off(modules: Mapping[str, nn.Module], name: str) -> bool:
    """Whether the nearest of a module and its holders that has a ``qconfig`` says ``None``.

    Args:
        modules: of the model, by name.
        name: of one of them, or of a call that one of them makes.

    Example:
        >>> net = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2))
        >>> net[0].qconfig = None
        >>> modules = dict(net.named_modules())
        >>> is_switched_off(modules, "0.0"), is_switched_off(modules, "0.matmul"), is_switched_off(modules, "1")
        (True, True, False)
    """
    path = name.split(".") if name else []
    for length in range(len(path), -1, -1):
        module = modules.get(".".join(path[:length]))
        qconfig = getattr(module, "qconfig", _MISSING)
        if module is not None and qconfig is not _MISSING:
            return qconfig is None
    return False


def prepared_by_torch_ao(module: nn.Module) -> tuple[str, str] | None:
    """Name and class of a layer that torch.ao's ``prepare_qat`` or ``convert`` has put in, if there is one.

    Example:
        >>> from torch.ao.nn.quantized import FloatFunctional, ReLU6
        >>> prepared_by_torch_ao(nn.Sequential(nn.ReLU(), ReLU6()))
        ('1', 'ReLU6')
        >>> prepared_by_torch_ao(nn.Sequential(FloatFunctional()))
    """
    homes = ("torch.ao.nn.qat", "torch.ao.nn.intrinsic.qat", "torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")
    for name, part in module.named_modules():
        kind = type(part)
        if kind.__module__.startswith(homes) and not kind.__module__.endswith("functional_modules"):
            return name, kind.__name__
    return None

"""Annotations by hand, as torch.ao's eager mode wants them: stubs, FloatFunctional, ``qconfig = None``.

Its classes are known by name, so that nothing of ``torch.ao.quantization``, which is going to be removed, is imported.
"""

from __future__ import annotations

from torch import fx, nn

from lq.tracing.ops import module_of, reads_no_values, relu_kind

_FUNCTIONAL = "lq_functional"
_MISSING = object()


def is_stub(module: nn.Module | None) -> bool:
    """Whether ``module`` is a QuantStub or a DeQuantStub.

    Example:
        >>> from torch.ao.quantization import DeQuantStub, QuantStub
        >>> is_stub(QuantStub()), is_stub(DeQuantStub()), is_stub(nn.Identity())
        (True, True, False)
    """
    return is_quant_stub(module) or is_dequant_stub(module)


def is_quant_stub(module: nn.Module | None) -> bool:
    """Whether ``module`` says that a tensor is quantized from here on."""
    return _is_of_torch_ao(module, "QuantStub")


def is_dequant_stub(module: nn.Module | None) -> bool:
    """Whether ``module`` says that a tensor is float again."""
    return _is_of_torch_ao(module, "DeQuantStub")


def _is_of_torch_ao(module: nn.Module | None, name: str) -> bool:
    return any(cls.__name__ == name and cls.__module__.startswith("torch") for cls in type(module).__mro__)


def mark_functional(root: nn.Module, node: fx.Node) -> None:
    """Note on a node that its value is the result of a FloatFunctional.

    Args:
        root: the traced module.
        node: a call of the ``nn.Identity`` with which a FloatFunctional ends.
    """
    owner = str(node.target).rpartition(".")[0]
    source = node.args[0]
    if isinstance(source, fx.Node) and _is_of_torch_ao(root.get_submodule(owner), "FloatFunctional"):
        source.meta[_FUNCTIONAL] = owner


def functionals(graph_module: fx.GraphModule) -> dict[fx.Node, str]:
    """The operations that a FloatFunctional computes, each with its dotted name; without the ReLU of ``add_relu``."""
    modules = dict(graph_module.named_modules())
    found: dict[fx.Node, str] = {}
    for node in graph_module.graph.nodes:
        owner = node.meta.get(_FUNCTIONAL)
        if owner is not None:
            found[node.args[0] if relu_kind(node, modules) else node] = owner
    return found


def annotated_region(graph_module: fx.GraphModule) -> set[fx.Node]:
    """The nodes whose value comes from a QuantStub and has passed no DeQuantStub."""
    modules = dict(graph_module.named_modules())
    inside: set[fx.Node] = set()
    for node in graph_module.graph.nodes:
        module = module_of(node, modules)
        derives = any(source in inside for source in node.all_input_nodes) and not reads_no_values(node)
        if is_quant_stub(module) or (derives and not is_dequant_stub(module) and node.op != "output"):
            inside.add(node)
    return inside


def quant_stubs(graph_module: fx.GraphModule) -> list[fx.Node]:
    """The calls of QuantStubs."""
    modules = dict(graph_module.named_modules())
    return [node for node in graph_module.graph.nodes if is_quant_stub(module_of(node, modules))]


def erase_stubs(graph_module: fx.GraphModule, keep: tuple[fx.Node, ...] = ()) -> None:
    """Drop the calls of stubs, which compute nothing."""
    modules = dict(graph_module.named_modules())
    for node in list(graph_module.graph.nodes):
        if is_stub(module_of(node, modules)) and node not in keep:
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)
    graph_module.recompile()


def is_switched_off(root: nn.Module, name: str) -> bool:
    """Whether the nearest of a module and its holders that has a ``qconfig`` says ``None``.

    Example:
        >>> net = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2))
        >>> net[0].qconfig = None
        >>> is_switched_off(net, "0.0"), is_switched_off(net, "1")
        (True, False)
    """
    path = name.split(".") if name else []
    for length in range(len(path), -1, -1):
        qconfig = getattr(root.get_submodule(".".join(path[:length])), "qconfig", _MISSING)
        if qconfig is not _MISSING:
            return qconfig is None
    return False


def prepared_by_torch_ao(module: nn.Module) -> tuple[str, str] | None:
    """Name and class of a layer that torch.ao's ``prepare_qat`` or ``convert`` has put in, if there is one."""
    homes = ("torch.ao.nn.qat", "torch.ao.nn.intrinsic.qat", "torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")
    for name, part in module.named_modules():
        kind = type(part)
        if kind.__module__.startswith(homes) and not kind.__module__.endswith("functional_modules"):
            return name, kind.__name__
    return None

"""Attention in a recorded call: which products of matrices are its two."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import fx

from lq.config.specs import ActivationSpec
from lq.tracing.layer_calls import Argument, argument
from lq.tracing.ops import CALLED, is_same_grid, recorded

PRODUCTS: Mapping[str, tuple[Argument, Argument]] = {
    "matmul": ((0, "input"), (1, "other")),
    "bmm": ((0, "input"), (1, "mat2")),
    "baddbmm": ((1, "batch1"), (2, "batch2")),
}

ATTENTION = "scaled_dot_product_attention"

# What may lie between the product of queries and keys and the softmax: scale, mask, bias, soft cap.
_BEFORE = frozenset(
    {"add", "sub", "mul", "div", "tanh", "clamp", "masked_fill", "where", "to", "float", "type_as", "gather", "softmax"}
)
# What may lie between the softmax and the product with the values.
_BEHIND = frozenset({"to", "type_as", "half", "bfloat16", "masked_fill", "mul", "div", "where", "nan_to_num"})


@dataclass(frozen=True)
class Product:
    """A product of two activations.

    Args:
        node: its call.
        factors: what it multiplies.

    Example:
        >>> from torch import nn
        >>> from lq.tracing.symbolic import read_calls
        >>> class Net(nn.Module):
        ...     def forward(self, q, k, v):
        ...         return (q @ k.mT).softmax(-1) @ v
        >>> attention_products(read_calls(Net())[0])
        [Product(node=matmul, factors=(q, getattr_1)), Product(node=matmul_1, factors=(softmax, v))]
    """

    node: fx.Node
    factors: tuple[fx.Node, fx.Node]


@dataclass(frozen=True)
class Attention:
    """The attention that is quantized.

    Args:
        products: its products.
        probabilities: the grid of a softmax that is a factor of one.
        factors: the grid of all other factors; ``None`` is that of all activations.

    Example:
        >>> from lq.config.qconfig import QConfig
        >>> qconfig = QConfig(attention="int8")
        >>> str(Attention((), qconfig.probabilities, qconfig.factors).probabilities)
        'uint8 [0, 255] affine, from 0 to 1'
    """

    products: tuple[Product, ...] = ()
    probabilities: ActivationSpec | None = None
    factors: ActivationSpec | None = None


def attention_products(graph: fx.Graph) -> list[Product]:
    """The two products of every attention, in execution order: what a softmax reads, and what reads that softmax.

    Other products of two activations are left alone: the angles of rotary embeddings, positions times frequencies, are
    one, and eight bits cannot hold them.

    Args:
        graph: of :class:`lq.tracing.recording.Recorder`.

    Example:
        >>> from torch import nn
        >>> from lq.tracing.symbolic import read_calls
        >>> class Net(nn.Module):
        ...     def forward(self, q, k, v):
        ...         return (q @ (k @ v).mT).softmax(-1) @ v
        >>> [product.node for product in attention_products(read_calls(Net())[0])]  # k @ v is none
        [matmul_1, matmul_2]
    """
    found: set[fx.Node] = set()
    for softmax in (node for node in graph.nodes if is_softmax(node)):
        scores = _reached(softmax.all_input_nodes, _BEFORE, lambda node: node.all_input_nodes)
        values = _reached(softmax.users, _BEHIND, lambda node: node.users)
        if scores and values:
            found |= scores | values
    products = (_product(node) for node in graph.nodes if node in found)
    return [product for product in products if product is not None]


def is_softmax(node: fx.Node) -> bool:
    """Whether a recorded call is a softmax.

    Example:
        >>> from torch import nn
        >>> from lq.tracing.symbolic import read_calls
        >>> graph, *_ = read_calls(nn.Sequential(nn.ReLU(), nn.Softmax(-1)))
        >>> [node for node in graph.nodes if is_softmax(node)]
        [softmax]
    """
    return recorded(node) == "softmax"


def _reached(
    start: Iterable[fx.Node], through: frozenset[str], step: Callable[[fx.Node], Iterable[fx.Node]]
) -> set[fx.Node]:
    """The products that lie first on every way from some nodes on."""
    waiting, seen, found = list(start), set(start), set()
    while waiting:
        node = waiting.pop()
        if _product(node) is not None:
            found.add(node)
        elif recorded(node) in through or is_same_grid(node):
            new = [n for n in step(node) if n not in seen]
            seen.update(new)
            waiting += new
    return found


def _product(node: fx.Node) -> Product | None:
    """The product of two activations that a call is, if it is one."""
    if recorded(node) not in PRODUCTS:
        return None
    args, kwargs = node.meta.get(CALLED, (node.args, node.kwargs))
    first, second = (argument(at, args, kwargs) for at in PRODUCTS[recorded(node)])
    if not isinstance(first, fx.Node) or not isinstance(second, fx.Node):
        return None
    if first.meta.get("constant") or second.meta.get("constant"):
        return None
    return Product(node, (first, second))

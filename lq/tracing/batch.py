"""The batch size of a graph: any, or the one that the user's code has made a constant; and sizes that are no batch."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import fx, nn

from lq.compat.torch_private import noting_constant_sizes
from lq.tracing.samples import batch_size
from lq.tracing.structure import Inputs, tensors_of

_KEY, _CONSTANT = "lq_fixed_batch", "lq_constant_sizes"  # in the ``meta`` of a graph


@dataclass(frozen=True)
class FixedBatch:
    """The only batch size that a graph is right for.

    Args:
        size: of the inputs' first dimension.
        line: of the user's code that reads it as a number, "file:line, in function: `code`"; "" if it is not known.
        images: whether the batch is a list of so many images, as a graph holds no list of another length.
        independent: whether its samples do not depend on each other, so that a smaller batch can be filled up.

    Example:
        >>> print(FixedBatch(8, "net.py:12, in forward: `n = len(x)`").note)
        the exported model takes batches of exactly 8, because net.py:12, in forward: `n = len(x)` makes the size a
        constant; x.shape[0] in the place of len(x), int(...) or a number leaves it open
    """

    size: int
    line: str = ""
    images: bool = False
    independent: bool = False

    def check(self, sizes: Iterable[int]) -> None:
        """Refuse a batch for which the graph would compute wrong numbers, and no error.

        Raises:
            ValueError: if a size is another one.
        """
        others = sorted(set(sizes) - {self.size})
        if others:
            raise ValueError(
                f"the code of the model has made its batch size a constant, {self.size}, but it was called with "
                f"{', '.join(map(str, others))}. Give it whole batches, or export it again with x.shape[0] in the "
                "place of len(x), int(...) or a number."
            )

    @property
    def note(self) -> str:
        """What that means, and what to write instead."""
        if self.images:
            count = "one image" if self.size == 1 else f"{self.size} images"
            return f"the exported model takes {count} at a time, of one size; lq.load(...) takes lists of any length"
        others = ", and lq.load(...) fills up others" if self.independent else ""
        return (
            f"the exported model takes batches of exactly {self.size}{others}, because {self.line or 'its code'} makes "
            "the size a constant; x.shape[0] in the place of len(x), int(...) or a number leaves it open"
        )


def fixed_batch(graph: nn.Module) -> FixedBatch | None:
    """The only batch size that a captured graph, or what was made of it, is right for; ``None`` if it takes any.

    Example:
        >>> fixed_batch(nn.Linear(4, 2))
    """
    return graph.meta.get(_KEY) if isinstance(graph, fx.GraphModule) else None


def images_at_once(graph: nn.Module) -> int | None:
    """How many images a captured graph of a detector takes at a time; ``None`` for other modules.

    Example:
        >>> images_at_once(nn.Linear(4, 2))
    """
    batch = fixed_batch(graph)
    return batch.size if batch is not None and batch.images else None


def set_fixed_batch(
    graph: fx.GraphModule, batch: FixedBatch | None, constant_sizes: frozenset[int] = frozenset()
) -> None:
    """Note what :func:`fixed_batch` returns, and the sizes that :func:`open_sizes` leaves out.

    Example:
        >>> graph = fx.symbolic_trace(nn.ReLU())
        >>> set_fixed_batch(graph, FixedBatch(8))
        >>> fixed_batch(graph).size
        8
    """
    graph.meta[_KEY], graph.meta[_CONSTANT] = batch, constant_sizes


def open_sizes(model: nn.Module, example: Inputs) -> frozenset[int]:
    """The sizes of first dimensions of an example that other calls of a model may have otherwise.

    Args:
        model: a captured graph, or what was made of it; of another module no size is known to be a constant.
        example: inputs of one call.

    Returns:
        the batch alone, where all tensors share it. Where they do not, as the nodes and edges of a graph, the sizes
        are independent of each other; those of 1, which may be broadcast, and constants of the code are left out.

    Example:
        >>> import torch
        >>> sorted(open_sizes(nn.Identity(), ((torch.zeros(5, 4), torch.zeros(9), torch.zeros(1, 2)), {})))
        [5, 9]
    """
    batch = batch_size(example)
    if fixed_batch(model) is not None:
        return frozenset()
    if batch is not None:
        return frozenset({batch})
    constant = model.meta.get(_CONSTANT, frozenset()) if isinstance(model, fx.GraphModule) else frozenset()
    return frozenset(t.shape[0] for t in tensors_of(example) if t.dim() and t.shape[0] > 1) - constant


@contextmanager
def where_sizes_become_constants() -> Iterator[list[traceback.StackSummary]]:
    """Collect where, during an export, the code turns a dynamic size into a number.

    Example:
        >>> import torch
        >>> from lq.tracing.no_graph import line_in
        >>> class Net(nn.Module):
        ...     def forward(self, x):
        ...         return x * len(x)
        >>> shapes = [{0: torch.export.Dim.AUTO}]
        >>> with where_sizes_become_constants() as stacks:
        ...     _ = torch.export.export(Net(), (torch.ones(3),), dynamic_shapes=shapes, strict=False)
        >>> line_in(stacks[0])
        '...:3, in forward: `return x * len(x)`'
    """
    stacks: list[traceback.StackSummary] = []
    with noting_constant_sizes(lambda: stacks.append(traceback.extract_stack())):
        yield stacks

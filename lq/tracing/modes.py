"""One graph out of two: a module that was traced in training and in evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import fx

from lq.core.state import STATE
from lq.tracing.errors import UntraceableError, owner_of
from lq.tracing.tracer import require_default

_Twins = dict[fx.Node, fx.Node]
_REMEDY = (
    "Such a model has no single graph. Move that choice into a small module of its own, without layers, that reads "
    "self.training, or quantize a submodule that behaves alike in both (QATCallback(target=...))."
)


def merge_modes(train_graph: fx.Graph, eval_graph: fx.Graph) -> None:
    """Make ``train_graph`` right in both modes, using ``eval_graph``.

    Raises:
        UntraceableError: if they differ by more than a flag or the output.
    """
    twins = dict(_align(train_graph, eval_graph))
    _guard_defaults(train_graph)
    flag: fx.Node | None = None
    for train_node, eval_node in list(twins.items()):
        if train_node.op == "output":
            continue
        if _mapped((train_node.args, train_node.kwargs), twins) == (eval_node.args, eval_node.kwargs):
            continue
        flag = flag or _read_flag(train_graph)
        arguments = _Arguments(train_node, twins, flag)
        train_node.args = arguments.merged(train_node.args, eval_node.args)
        train_node.kwargs = arguments.merged(train_node.kwargs, eval_node.kwargs)
    _merge_outputs(train_graph, eval_graph, twins)


def _align(train_graph: fx.Graph, eval_graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Pairs of nodes that do the same in both graphs, in order; the training graph may hold more."""
    waiting = iter(train_graph.nodes)
    for eval_node in eval_graph.nodes:
        wanted = (eval_node.op, eval_node.target, owner_of(eval_node))
        for train_node in waiting:
            if (train_node.op, train_node.target, owner_of(train_node)) == wanted:
                yield train_node, eval_node
                break
        else:
            reason = f"`{eval_node.format_node()}` is computed in evaluation but not in training"
            raise UntraceableError(reason, _REMEDY, owner_of(eval_node))


def _read_flag(graph: fx.Graph) -> fx.Node:
    with graph.inserting_before(next(iter(graph.nodes))):
        flag = graph.call_module(f"{STATE}.training_flag")
    next(n for n in graph.nodes if n.op != "placeholder" and n is not flag).prepend(flag)
    return flag


def _guard_defaults(graph: fx.Graph) -> None:
    fixed = [n for n in graph.nodes if n.op == "placeholder" and "default" in n.meta]
    if not fixed:
        return
    last = [n for n in graph.nodes if n.op == "placeholder"][-1]
    with graph.inserting_after(last):
        for node in fixed:
            guard = graph.call_function(require_default, (node, node.meta["default"], str(node.target)))
            guard.meta["is_wrapped"] = True  # unpickling traces the code once more, and has to keep the call


def _mapped(arg: Any, twins: _Twins) -> Any:
    return fx.map_arg(arg, lambda n: twins.get(n, n))


class _Arguments:
    """The arguments of one node, right in both modes."""

    def __init__(self, node: fx.Node, twins: _Twins, flag: fx.Node) -> None:
        self.node, self.twins, self.flag = node, twins, flag

    def merged(self, train: Any, evaluation: Any) -> Any:
        if train is True and evaluation is False:
            return self.flag
        if isinstance(train, (tuple, list)) and isinstance(evaluation, (tuple, list)) and len(train) == len(evaluation):
            return type(train)(self.merged(a, b) for a, b in zip(train, evaluation, strict=True))
        if isinstance(train, dict) and isinstance(evaluation, dict) and train.keys() == evaluation.keys():
            return {key: self.merged(train[key], evaluation[key]) for key in train}
        if _mapped(train, self.twins) == evaluation:
            return train
        # Where a value differs, whoever computed it is at fault, not who reads it.
        makers = [owner_of(n) for n in (train, evaluation) if isinstance(n, fx.Node)]
        reason = f"`{self.node.name}` is passed {train!r} in training and {evaluation!r} in evaluation"
        raise UntraceableError(reason, _REMEDY, max([*makers, owner_of(self.node)], key=len))


def _merge_outputs(train_graph: fx.Graph, eval_graph: fx.Graph, twins: _Twins) -> None:
    train_out, eval_out = train_graph.output_node(), eval_graph.output_node()
    back = {eval_node: train_node for train_node, eval_node in twins.items()}
    wanted = fx.map_arg(eval_out.args[0], lambda n: back[n])
    if wanted == train_out.args[0]:
        return
    with train_graph.inserting_before(train_out):
        switch = train_graph.call_module(f"{STATE}.mode_switch", (train_out.args[0], wanted))
    train_out.args = (switch,)

"""Which recorded call is which: the place that makes it, the operation, and its number among those."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from torch import fx, nn

from lq.compat.torch_private import BatchNorm
from lq.tracing.labels import Calls, is_of_torch
from lq.tracing.opened import OPENABLE
from lq.tracing.recording import CLOSED, KEPT, Seen
from lq.tracing.sites import CallAt


class Naming:
    """The calls of one recording in evaluation, and which of them those of another one, in training, are.

    ``places`` are the target, whatever lies on the way to a call that counts, and modules that may call other things
    later. ``calls`` has the name of every node, ``counts`` the number of calls of each operation in each place.
    ``differing`` are the operations that a place calls more or less often in training: for each the pairs of the nth
    call there and the one in evaluation that it is. ``in_training`` has the nodes of the other recording by the names
    that they have in evaluation.

    Args:
        modules: of the target, by their dotted names.
        calls: every call, in the order in which they were made, in evaluation.
        training: the same in training; empty if that is not known.
        counting: the calls at which something happens.
        opened: modules that make calls step by step.

    Example:
        >>> import torch
        >>> from lq.instrument.record import record
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        >>> calls = record(net, (torch.ones(1, 4),), {}).evaluation.calls
        >>> naming = Naming(dict(net.named_modules()), calls, (), [node for _, node in calls])
        >>> list(naming.places), list(naming.calls.values())[1]
        (['', '0', '1'], CallAt(place='1', operation='relu', nth=0))
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        calls: Calls,
        training: Calls,
        counting: Collection[fx.Node],
        opened: Iterable[str] = (),
    ) -> None:
        self._modules = modules
        self.places = self._places([*calls, *training], counting) | dict.fromkeys(opened)
        named = list(self._named(calls))
        self.calls = {node: at for node, at in named if node is not None}
        self.counts = Counter((at.place, at.operation) for _, at in named)
        self.differing = self._differing(calls, training)
        self.in_training = self._as_in_evaluation(training)

    def kept(self) -> set[CallAt]:
        """The calls whose results a module has kept as an attribute, in evaluation or in training."""
        both = [*self.calls.items(), *((node, at) for at, node in self.in_training.items())]
        return {at for node, at in both if node.meta.get(KEPT)}

    def is_written_in_training(self, call: CallAt) -> bool:
        """Whether something writes into the result of a call in training that is no call of evaluation."""
        there, known = self.in_training.get(call), self.in_training.values()
        return there is not None and any(w not in known for w in there.meta.get("writers", ()))

    def apart(self, pairs: Iterable[tuple[fx.Node, fx.Node]]) -> set[CallAt]:
        """Of calls and their readers the readers that read something else in training."""
        there = self.in_training
        both = [(self.calls[made], self.calls[reader]) for made, reader in pairs]
        known = [(there[made], there[reader], reader) for made, reader in both if made in there and reader in there]
        return {at for made, reader, at in known if made not in reader.all_input_nodes}

    def _places(self, calls: Calls, counting: Collection[fx.Node]) -> dict[str, None]:
        found: dict[str, None] = {"": None}
        for seen, node in calls:
            if node in counting:
                found |= dict.fromkeys(seen.stack)
            elif seen.operation in (CLOSED, *OPENABLE.values()) or self._calls_more(seen.stack[-1]):
                found[seen.stack[-1]] = None
        return found

    def _calls_more(self, path: str) -> bool:
        """Whether a module may call other functions another time; a BatchNorm counts batches in training."""
        return not is_of_torch(self._modules[path]) or isinstance(self._modules[path], BatchNorm)

    def _place(self, seen: Seen) -> str:
        return next(path for path in reversed(seen.stack) if path in self.places)

    def _named(self, calls: Calls) -> Iterable[tuple[fx.Node | None, CallAt]]:
        counts: Counter[tuple[str, str]] = Counter()
        for seen, node in calls:
            key = (self._place(seen), seen.operation)
            yield node, CallAt(*key, counts[key])
            counts[key] += 1

    def _differing(self, calls: Calls, training: Calls) -> tuple[tuple[str, str, tuple[tuple[int, int], ...]], ...]:
        found = []
        there = self._lines(training)
        for key, lines in self._lines(calls).items():
            if key in there and there[key] != lines:
                known: dict[tuple[str, int], int] = {line: nth for nth, line in enumerate(lines)}
                pairs = [(nth, known[line]) for nth, line in enumerate(there[key]) if line in known]
                found.append((*key, tuple(pairs)))
        return tuple(found)

    def _lines(self, calls: Calls) -> dict[tuple[str, str], list[tuple[str, int]]]:
        """Of each operation in each place the lines that call it, numbered if one does so more than once."""
        found: dict[tuple[str, str], list[tuple[str, int]]] = {}
        for seen, _ in calls:
            lines = found.setdefault((self._place(seen), seen.operation), [])
            lines.append((seen.line, sum(line == seen.line for line, _ in lines)))
        return found

    def _as_in_evaluation(self, training: Calls) -> dict[CallAt, fx.Node]:
        numbers = {(place, name): dict(pairs) for place, name, pairs in self.differing}
        names, found = set(self.calls.values()), {}
        for node, at in self._named(training):
            nth = numbers.get((at.place, at.operation), {at.nth: at.nth}).get(at.nth)
            if node is not None and nth is not None and replace(at, nth=nth) in names:
                found[replace(at, nth=nth)] = node
        return found

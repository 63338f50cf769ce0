"""Modules whose ``forward`` makes calls that matter, and the call of the target that is running."""

from __future__ import annotations

import copy
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lq.core.state import QATState
from lq.instrument.hooks import NONE, Codes, first_unknown, hooks_so_far, later_hooks
from lq.tracing.structure import map_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lq.instrument.sites import Site

PLACE = "_lq_place"  # where a module keeps its own
LISTENERS = "_lq_listeners"  # and those who want to hear of its calls


def kept_example(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Inputs of a call to keep: a copy, as a user may fill the tensors anew, on the CPU, where memory is plenty.

    Example:
        >>> x = torch.ones(2)
        >>> kept = kept_example((x,), {"flag": True})
        >>> _ = x.zero_()
        >>> kept
        ((tensor([1., 1.]),), {'flag': True})
    """
    return map_tensors((args, dict(kwargs)), lambda t: t.detach().to("cpu", copy=True))


class Call:
    """What belongs to a running call of the target; each thread has its own.

    Example:
        >>> call = Call()
        >>> call.counts[0] = 2  # the operation of row 0 was called twice
        >>> call.start()
        >>> call.counts
        {}
    """

    def __init__(self) -> None:
        self.place: Place | None = None
        self.outermost: Place | None = None  # where it began: the target, or a part that is called alone
        self.in_mode = self.recomputing = self.busy = False
        self.checkpointed = False  # whether a checkpoint keeps the inputs of what runs
        self.grad = False  # whether gradients were on when the present place was entered
        self.start()

    def start(self) -> None:
        """Forget the last call."""
        self.counts: dict[int, int] = {}
        self.folded: set[int] = set()
        self.pending: list[tuple[Any, Site]] = []
        self.hooks: Codes = NONE  # what hooks run that the plan does not know
        self.given: Any = ()  # what the call began with: tensors that came from outside


class Instrument:
    """What all places of one target have in common.

    It holds no module but the state, so that a copy of one part drags nothing else along.

    Args:
        state: ranges and phase.
        sites: the plan, a :class:`~lq.tracing.sites.Sites`.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> from lq.instrument.attach import instrument_of
        >>> net = prepare(nn.Sequential(nn.Linear(4, 2)), example_args=(torch.ones(1, 4),))
        >>> instrument_of(net).planned
        {0: CallAt(place='0', operation='linear', nth=0)}
        >>> instrument_of(net).example
        ((tensor([[1., 1., 1., 1.]]),), {})
    """

    def __init__(self, state: QATState | None = None, sites: Any = None) -> None:
        self.state, self.sites = state, sites
        self.planned: dict[int, Any] = {}  # index of a site -> its call; without those that count batches in training
        self.example: Any = None  # inputs of one call, on the CPU
        self.deferred: Any = None  # makes the plan at the first call
        self._forget_calls()

    def _forget_calls(self) -> None:
        self.recorder: Any = None
        self.marking = self.rehearsing = False  # runs of ours, as is one with a recorder: nobody hears of them
        self.ran: set[int] = set()
        self.unplanned: Counter[str] = Counter()
        self.main = Call()
        self._calls: dict[int, Call] = {}
        self.hooks_before: int | None = None
        self._later: tuple[Any, Codes] = (None, NONE)

    def call(self) -> Call:
        """The running call of this thread."""
        # Not threading.local, what is in it is lost where torch.compile breaks its graph.
        if torch.compiler.is_compiling():
            return self.main
        ident = threading.get_ident()
        found = self._calls.get(ident)
        if found is None:
            found = self._calls[ident] = Call() if self._calls else self.main
        return found

    def later_hooks(self, module: nn.Module) -> Codes:
        """What the forward hooks of a part of the target run that the plan does not know."""
        now = hooks_so_far(), id(module)
        if self._later[0] != now:
            self._later = now, later_hooks(module, self.first_later_hook(module))
        return self._later[1]

    def first_later_hook(self, module: nn.Module) -> int:
        """The number of the first forward hook that the plan does not know."""
        if self.hooks_before is None:  # it came from a file
            self.hooks_before = first_unknown(module)
        return self.hooks_before

    def use(self, call: Call) -> Call | None:
        """Make ``call`` that of this thread; returns the former one."""
        ident = threading.get_ident()
        former = self._calls.get(ident)
        self._calls[ident] = call
        return former

    def leave(self, former: Call | None) -> None:
        """Undo :meth:`use`."""
        if former is None:
            del self._calls[threading.get_ident()]
        else:
            self._calls[threading.get_ident()] = former

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("state", "sites", "planned", "deferred")}

    def __setstate__(self, values: dict[str, Any]) -> None:
        self.example = None  # what a checkpoint of a plan says of the inputs is enough
        self.__dict__.update(values)
        self._forget_calls()

    def __deepcopy__(self, memo: dict[int, Any]) -> Instrument:
        made = memo[id(self)] = Instrument.__new__(Instrument)
        made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        made.example = self.example  # nobody writes into it
        made.hooks_before = self.hooks_before
        return made


class Row:
    """The sites of one operation in one place, in the order of the calls.

    Args:
        number: of the row, within its instrument.
        name: of the operation.

    Example:
        >>> from lq.instrument.sites import Site
        >>> row = Row(0, "add")
        >>> row.put(1, Site(0, "add"))  # the second addition in its module
        >>> [site is not None for site in row.sites]
        [False, True]
    """

    def __init__(self, number: int, name: str) -> None:
        self.number, self.name = number, name
        self.sites: list[Site | None] = []
        self.in_training: dict[int, int] | None = None  # nth call in training -> nth in evaluation
        # Of activations, what stands for a call that has no site: left alone by the plan, or not known to it. It may
        # have one after all, if a layer made its input that is called more or less often than it was planned.
        self.left_alone: Site | None = None
        self.unknown: Site | None = None

    def put(self, nth: int, site: Site) -> None:
        """Enter the site of the nth call."""
        self.pad(nth + 1)
        self.sites[nth] = site

    def pad(self, count: int) -> None:
        """Let the row know of at least so many calls."""
        self.sites += [None] * (count - len(self.sites))


class Place:
    """A module of the target, and the sites of the calls that its ``forward`` makes.

    Args:
        path: dotted name within the target.
        module: the module.
        instrument: what it shares with the others.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> from lq.instrument.classes import place_of
        >>> net = prepare(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), example_args=(torch.ones(1, 4),))
        >>> place = place_of(net[1])
        >>> place.path, [site.function for site in place.sites()], place.rows[torch.relu].name
        ('1', ['relu'], 'relu')
    """

    def __init__(self, path: str, module: nn.Module, instrument: Instrument) -> None:
        self.path, self.module, self.instrument = path, module, instrument
        self.rows: dict[Any, Row] = {}
        self.own_forward: Callable[..., Any] | None = None
        self.whole: Row | None = None  # sites that are the whole module
        self.is_root = False
        self.is_plain_leaf = False  # a layer of torch, whose forward calls no other code
        self.opened: dict[str, set[int]] = {}  # operations of which the steps are seen, and how many those may be

    def sites(self) -> list[Site]:
        """All sites, each once."""
        rows = [*self.rows.values(), *([] if self.whole is None else [self.whole])]
        return list({id(site): site for row in rows for site in row.sites if site is not None}.values())

    def __getstate__(self) -> dict[str, Any]:
        # Functions of torch do not all pickle; their names lead back to them.
        rows = {row.number: row for row in self.rows.values()}
        return {**self.__dict__, "rows": list(rows.values())}

    def __setstate__(self, values: dict[str, Any]) -> None:
        from lq.tracing.functions import functions_of

        self.__dict__.update(values)
        self.rows = {function: row for row in values["rows"] for function in functions_of(row.name)}

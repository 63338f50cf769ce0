"""What lq makes of each entry.

python -m tests.zoo.trial [PATTERN] [--exporters torch onnx] [--json FILE] [--markdown docs/matrix.md]

A run over all takes two hours on two cores. With --json and --resume it goes on where one has ended, and tries again
what had failed.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import math
import re
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lq
from lq.metrics import sqnr
from tests.tiny import quicken_deployment
from tests.zoo.catalogue import CATALOGUE, select
from tests.zoo.entry import Entry, Inputs, floating, quiet, seeded
from tests.zoo.work import share_in_int8

PASSED = "passed"
# Float operations in another order, as a folded BatchNorm or a bias that is added later.
TOLERANCE = 1e-5


class TooLong(BaseException):
    """An entry took too long; no step may take it for an error of its own."""


@dataclass
class Outcome:
    """How far an entry came.

    Args:
        name: of the entry.
        package: of the entry.
        prepared: whether ``lq.prepare`` took it.
        trained: whether two steps had a finite loss, and gradients reached the parameters that they reach in float.
        equal_to_float: whether it equals the float model while nothing is quantized, before and after these steps.
        converted: whether ``lq.convert`` took it.
        exported: for each exporter "passed", or what went wrong.
        share_int8: of the multiply-accumulates, attention's two products aside.
        sqnr_db: of the fake-quantized model against the float one.
        error: the first one.
        seconds: that all of it took.
        step: at which the first error came.
    """

    name: str
    package: str
    prepared: bool = False
    trained: bool = False
    equal_to_float: bool = False
    converted: bool = False
    exported: dict[str, str] = field(default_factory=dict)
    share_int8: float | None = None
    sqnr_db: float | None = None
    error: str = ""
    seconds: float = 0.0
    step: str = ""

    @property
    def all_exported(self) -> bool:
        return bool(self.exported) and set(self.exported.values()) == {PASSED}

    def fail(self, step: str, error: Exception) -> None:
        """Keep the first error."""
        if not self.step:
            self.step, self.error = step, f"{type(error).__name__}: {' '.join(str(error).split())}"

    @contextlib.contextmanager
    def at(self, step: str) -> Iterator[None]:
        """Note an error of this step, and go on."""
        try:
            yield
        except Exception as error:
            self.fail(step, error)


def try_entry(entry: Entry, exporters: Sequence[str] = ("torch",), qconfig: lq.QConfig | str = "portable") -> Outcome:
    """Prepare, compare, train, convert and export a model; each step is tried though one before it failed.

    The float model to compare with is a second one from the same seed: not every model can be copied.
    """
    outcome, start = Outcome(entry.name, entry.package), time.perf_counter()
    with quiet(), seeded(0):
        with outcome.at("build"):
            model, twin = entry.make(), entry.make()
        if not outcome.step:
            _try(outcome, entry, model, twin, exporters, qconfig)
    outcome.seconds = time.perf_counter() - start
    return outcome


def _try(
    outcome: Outcome,
    entry: Entry,
    model: nn.Module,
    twin: nn.Module,
    exporters: Sequence[str],
    qconfig: lq.QConfig | str,
) -> None:
    args, kwargs = example = entry.example()
    try:
        prepared = lq.prepare(model, qconfig, args, kwargs)
    except Exception as error:
        return outcome.fail("prepare", error)
    outcome.prepared = True
    with outcome.at("share"):
        outcome.share_int8 = share_in_int8(lq.plan_of(prepared), twin, example)
    equal = [False, False]
    with outcome.at("equal to float"):
        assert_equal_to_float(prepared, twin, example)
        equal[0] = True
    with outcome.at("train"):
        assert_trains_as_float(prepared, twin, entry)
        outcome.trained = True
    with outcome.at("equal to float after training"):
        take_state(twin, prepared)
        assert_equal_to_float(prepared, twin, example)
        equal[1] = True
    outcome.equal_to_float = all(equal)
    with outcome.at("calibrate"):
        # Two steps are few; what training leaves out, as LayerDrop does, would have no range at all.
        batches = [example, *(entry.example(seed) for seed in range(11, 18))]
        lq.calibrate(prepared, batches, call=lambda net, batch: net(*batch[0], **batch[1]), show_progress=False)
        outcome.sqnr_db = fake_quantized_db(prepared, twin, example)
    with outcome.at("convert"):
        int8 = lq.convert(prepared)
        _assert_finite(_evaluated(int8, example))
        outcome.converted = True
    for exporter in exporters:
        with outcome.at(f"export {exporter}"):
            outcome.exported[exporter] = PASSED
            try:
                _export(prepared, twin, entry, exporter, yardstick(outcome.sqnr_db))
            except Exception as error:
                outcome.exported[exporter] = f"{type(error).__name__}: {' '.join(str(error).split())}"
                raise
    return None


def assert_equal_to_float(prepared: nn.Module, twin: nn.Module, example: Inputs) -> None:
    """In evaluation, with nothing quantized, both give the same."""
    lq.set_phase(prepared, fake_quant=False, observer=False, freeze_bn=False)
    ours, theirs = _evaluated(prepared, example), _evaluated(twin, example)
    assert len(ours) == len(theirs), f"{len(ours)} tensors instead of {len(theirs)}"
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape, f"shape {tuple(one.shape)} instead of {tuple(other.shape)}"
        distance = float((one.double() - other.double()).norm() / other.double().norm().clamp_min(1e-30))
        assert other.numel() == 0 or distance <= TOLERANCE, f"differs from float by {distance:.1e}"


def assert_trains_as_float(prepared: nn.Module, twin: nn.Module, entry: Entry) -> None:
    """Two steps with fake quantization and observers: the loss is finite, the same parameters get a gradient."""
    lq.set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
    for step in range(2):
        args, kwargs = entry.training_example(20 + step)
        ours, theirs = (_one_step(net, entry, (args, kwargs), seed=30 + step) for net in (prepared, twin))
        names = {name for name, _ in twin.named_parameters()}
        missing, extra = sorted(theirs - ours), sorted((ours & names) - theirs)
        assert not missing, f"step {step}: no gradient for {len(missing)} parameters, as {missing[:3]}"
        assert not extra, f"step {step}: a gradient for {len(extra)} parameters that have none in float, as {extra[:3]}"


def _one_step(net: nn.Module, entry: Entry, inputs: Inputs, seed: int) -> set[str]:
    """The parameters that got a gradient."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    optimizer.zero_grad()
    with seeded(seed):
        loss = entry.loss(net.train()(*inputs[0], **inputs[1]))
        loss.backward()
    assert math.isfinite(loss.item()), f"the loss is {loss.item()}"
    reached = {name for name, p in net.named_parameters() if p.grad is not None}
    bad = [name for name, p in net.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    assert not bad, f"{len(bad)} gradients that are not finite, as {bad[:3]}"
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return reached


def take_state(twin: nn.Module, prepared: nn.Module) -> None:
    """Give the float model the weights and the statistics of the prepared one."""
    state, wanted = prepared.state_dict(), twin.state_dict()
    missing = sorted(wanted.keys() - state.keys())
    assert not missing, f"{len(missing)} keys are gone from the state dict, as {missing[:3]}"
    for key in state.keys() - wanted.keys():
        del state[key]  # from the dict itself, which knows the versions of the modules
    twin.load_state_dict(state)


def fake_quantized_db(prepared: nn.Module, twin: nn.Module, example: Inputs) -> float | None:
    """SQNR of the fake-quantized model against the float one; ``None`` where not even the shapes agree."""
    lq.set_phase(prepared, fake_quant=True, observer=False, freeze_bn=True)
    ours, theirs = _evaluated(prepared, example), _evaluated(twin, example)
    _assert_finite(ours)
    if [part.shape for part in ours] != [part.shape for part in theirs]:
        return None
    return float(sqnr(torch.cat([p.flatten() for p in theirs]), torch.cat([p.flatten() for p in ours])))


def _evaluated(net: nn.Module, example: Inputs) -> list[Tensor]:
    with torch.no_grad(), seeded(3):
        return floating(net.eval()(*example[0], **example[1]))


def _assert_finite(parts: list[Tensor]) -> None:
    assert parts, "no floating output"
    assert all(part.isfinite().all() for part in parts), "the output is not finite"


def yardstick(quantization_db: float | None) -> lq.Gate:
    """The gate: the usual one, or for nets that amplify any noise, their own quantization noise.

    An untrained net may make much of every flipped tie; a wrong wire adds more than all of quantization does.
    """
    usual = lq.Gate()
    if quantization_db is None or usual.min_sqnr_db is None or quantization_db >= usual.min_sqnr_db:
        return usual
    return lq.Gate(min_sqnr_db=quantization_db, min_agreement=None)


def _export(prepared: Any, twin: nn.Module, entry: Entry, exporter: str, gate: lq.Gate) -> None:
    batches = [positional(twin, entry.example(seed)) for seed in (1, 13)]
    with tempfile.TemporaryDirectory() as folder:
        deployment = lq.export_artifact(prepared, batches, Path(folder) / "int8", [exporter], gate)
    failed = [kind for kind, parity in deployment.parity.items() if not parity.passed]
    assert exporter in deployment.parity, f"{exporter} was not compared"
    assert not failed, f"{failed[0]} did not pass the gate"


def positional(module: nn.Module, inputs: Inputs) -> Any:
    """The arguments of one call as a batch: a tuple of positional ones where ``forward`` allows, else a mapping."""
    args, kwargs = inputs
    if not kwargs:
        return args
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    given = dict(bound.arguments)
    bound.apply_defaults()
    if bound.kwargs and bound.kwargs.keys() & kwargs.keys():
        return given
    last = max(index for index, name in enumerate(bound.arguments) if name in given)
    return bound.args[: last + 1]


@contextlib.contextmanager
def _within(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TooLong(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _try_within(entry: Entry, options: argparse.Namespace) -> Outcome:
    try:
        with _within(options.limit), pytest.MonkeyPatch.context() as monkeypatch:
            if not options.fresh:
                quicken_deployment(monkeypatch)
            return try_entry(entry, options.exporters)
    except TooLong as error:
        return Outcome(entry.name, entry.package, error=str(error), step="time", seconds=options.limit)


def _line(outcome: Outcome) -> str:
    marks = (outcome.prepared, outcome.trained, outcome.equal_to_float, outcome.converted)
    steps = " ".join("ok" if mark else "--" for mark in marks)
    files = " ".join(f"{kind}:{'ok' if what == PASSED else '--'}" for kind, what in outcome.exported.items())
    share = "     " if outcome.share_int8 is None else f"{outcome.share_int8:4.0%} "
    noise = "       " if outcome.sqnr_db is None else f"{outcome.sqnr_db:4.0f} dB"
    error = f"{outcome.step}: {outcome.error[:160]}" if outcome.step else ""
    return f"{outcome.name:56s} {steps} {files:10s} {share} {noise} {outcome.seconds:5.1f} s  {error}"


def _summary(outcomes: Sequence[Outcome]) -> Iterator[str]:
    for package in [*dict.fromkeys(outcome.package for outcome in outcomes), "all"]:
        rows = [outcome for outcome in outcomes if package in (outcome.package, "all")]
        ready, done = sum(row.prepared for row in rows), sum(row.all_exported for row in rows)
        sound = sum(row.all_exported and not row.step for row in rows)
        yield (
            f"{package}: prepared {ready} of {len(rows)}, exported {done} of {len(rows)}, "
            f"without any error {sound} of {len(rows)}"
        )


BEGIN, END = "<!-- zoo -->", "<!-- end of zoo -->"

PUBLISHED = """\
## Published models

These models are used as their packages publish them, with random weights. {tried}.

- *prepared*: `lq.prepare` takes the model.
- *exported*: the files of the exporters ({exporters}) pass the parity gate. If quantization itself changes the output
  of an untrained model by more than the gate allows, this change is the threshold.
- *work in int8*: the share of the multiply-accumulates of layers. The two products inside attention are not counted.

```
python -m tests.zoo.trial --exporters torch onnx --markdown docs/matrix.md
```
"""


RESUMED = "Models that had failed were tried again after a change of lq (`--resume`); the others were not."
TITLES = "| package | models | prepared | exported | work in int8, median | work in int8, lowest |"


def markdown(outcomes: Sequence[Outcome], exporters: Sequence[str], resumed: bool = False) -> str:
    """A table with a row for each package, and the entries that failed with the reason."""
    tried = f"{len(outcomes)} of the catalogue's {len(CATALOGUE)} models were tried"
    lines = [PUBLISHED.format(exporters=", ".join(f"`{name}`" for name in exporters), tried=tried)]
    if resumed:
        lines += [RESUMED, ""]
    lines += [TITLES, "| --- | --- | --- | --- | --- | --- |"]
    for package in [*dict.fromkeys(outcome.package for outcome in outcomes), "all"]:
        rows = [outcome for outcome in outcomes if package in (outcome.package, "all")]
        shares = [row.share_int8 for row in rows if row.share_int8 is not None]
        work = f"{statistics.median(shares):.0%} | {min(shares):.0%}" if shares else "- | -"
        ready, done = sum(row.prepared for row in rows), sum(row.all_exported for row in rows)
        lines.append(f"| {package} | {len(rows)} | {ready} | {done} | {work} |")
    failed = [f"- {row.name}, {row.step}: {_short(row.error)}" for row in outcomes if row.step]
    return "\n".join([BEGIN, *lines, "", *(["What does not work:", "", *failed, ""] if failed else []), END]) + "\n"


def _short(error: str) -> str:
    plain = re.sub(r"/\S*/(site-packages|tests)/", "", error).replace("|", "/")
    return plain if len(plain) <= 300 else f"{plain[:297]}..."


def write_markdown(path: Path, text: str) -> None:
    """Put the text in the place of the former one, or at the end."""
    before = path.read_text() if path.exists() else ""
    if BEGIN in before:
        head, _, rest = before.partition(BEGIN)
        text = head + text + rest.partition(f"{END}\n")[2]
    else:
        text = f"{before.rstrip()}\n\n{text}" if before else text
    path.write_text(text)


def _passed(file: Path, exporters: Sequence[str]) -> dict[str, Outcome]:
    """The outcomes of an earlier run that found no fault, by name."""
    outcomes = [Outcome(**row) for row in json.loads(file.read_text())] if file.exists() else []
    return {row.name: row for row in outcomes if not row.step and set(exporters) <= set(row.exported)}


def main() -> None:
    """Print a row for each entry and a summary for each package."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pattern", nargs="?", default="", help="regular expression in the name")
    parser.add_argument("--exporters", nargs="*", default=["torch"])
    parser.add_argument("--json", type=Path, help="where to write the outcomes")
    parser.add_argument("--markdown", type=Path, help="a document, of which the part on the zoo is written anew")
    parser.add_argument("--limit", type=int, default=120, help="seconds for one entry")
    parser.add_argument("--fresh", action="store_true", help="let the gate run artifacts in fresh processes, as ever")
    parser.add_argument("--resume", action="store_true", help="keep what passed in the file of --json; try the rest")
    options = parser.parse_args()
    passed = _passed(options.json, options.exporters) if options.resume and options.json else {}
    outcomes: list[Outcome] = []
    print(f"{'':56s} prepared, trained, equal to float, converted; exported; work in int8; SQNR; time; first error")
    for entry in select(options.pattern):
        if not entry.is_installed:
            print(f"{entry.name:56s} {entry.package} is not installed")
            continue
        outcomes.append(passed.get(entry.name) or _try_within(entry, options))
        print(_line(outcomes[-1]), flush=True)
        if options.json:
            options.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    print("\n".join(_summary(outcomes)))
    if options.markdown:
        write_markdown(options.markdown, markdown(outcomes, options.exporters, options.resume))


if __name__ == "__main__":
    main()

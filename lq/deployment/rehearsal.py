"""Every export is tried before the training, with ranges that are made up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import fx

from lq.backends.prepare import plan_of, state_of
from lq.deployment.in_float import batch_notes, float_notes, loss_notes, size_notes
from lq.deployment.outputs import calls_of_other_sizes, output_of
from lq.deployment.settings import DEFAULT_EXPORTERS
from lq.export.artifact.calls import smallest_call
from lq.export.artifact.scratch import scratch
from lq.export.artifact.signature import Signature
from lq.export.exporters import EXPORTERS, Chosen, ExporterChoice, chosen
from lq.export.formats.shared import sharing
from lq.messages import one_line
from lq.metrics.detections import comparable, mismatch
from lq.tracing.batch import fixed_batch
from lq.tracing.samples import batch_size
from lq.tracing.structure import Inputs, map_tensors


def rehearse(
    prepared: fx.GraphModule, example: Inputs, exporters: Sequence[ExporterChoice] = DEFAULT_EXPORTERS
) -> list[str]:
    """Export a copy with made-up ranges and run it, so that what would fail after the training fails before it.

    Args:
        prepared: a copy that nothing else uses, on the CPU; it is spoilt.
        example: inputs of one call, on the CPU.
        exporters: as for :class:`ExportSettings`.

    Returns:
        what the files will hold in float although it is planned in int8, and which take one batch size alone.

    Raises:
        ValueError: if an exporter cannot export the model.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> from lq.conversion.graph import as_graph
        >>> x = torch.rand(2, 4)
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Flatten(0), torch.nn.Linear(8, 2))
        >>> rehearse(as_graph(prepare(net, example_args=(x,)), ((x,), {})), ((x,), {}), ["torch", "pt2"])
        []
    """
    state = state_of(prepared)
    made_up = {"min_val": torch.full_like(state.min_val, -1.0), "max_val": torch.ones_like(state.max_val)}
    state.load_state_dict({**state.state_dict(), **made_up})
    state.fix_ranges()
    prepared.eval()
    signature = Signature.of(prepared, example, output_of(prepared, example))
    calls, others = _calls(prepared, example), calls_of_other_sizes(prepared, example)
    selected = chosen(exporters)
    with sharing(len(selected) > 1):
        infos = {}
        for choice in selected:
            resized = () if choice.exporter.static else others
            infos[choice.name] = _tried(prepared, example, choice, signature, calls, resized)
    notes = [] if fixed_batch(prepared) else batch_notes(batch_size(example), infos)
    notes += size_notes(prepared, example, infos) + float_notes(plan_of(prepared), infos)
    return notes + loss_notes(prepared)


def _calls(prepared: fx.GraphModule, example: Inputs) -> list[tuple[Inputs, Any]]:
    """The smallest call and its output, and one of two samples, as a file may hold the size of either; if it may be."""
    smallest = smallest_call(prepared, example)
    found = [(smallest, output_of(prepared, smallest))]
    if batch_size(smallest) == 1 and fixed_batch(prepared) is None:
        args, kwargs = map_tensors(example, lambda t: torch.cat([t, t])[:2] if t.dim() else t)
        with suppress(Exception):  # of a model that takes no other batch it is no fault of a file
            found.append(((args, kwargs), output_of(prepared, (args, kwargs))))
    return found


def _tried(
    prepared: fx.GraphModule,
    example: Inputs,
    choice: Chosen,
    signature: Signature,
    calls: Sequence[tuple[Inputs, Any]],
    others: Sequence[tuple[Inputs, Any]],
) -> dict[str, Any]:
    """What an exporter says of its files, which have been run, also on inputs of another size.

    What they compute is compared by its shape: with ranges that are made up numbers say little.
    """
    try:
        with scratch() as place, torch.no_grad():
            info = choice.export(prepared, example, place)
            model = choice.exporter.load(place, signature, info)
            for call, expected in calls:
                wrong = mismatch(comparable(expected), comparable(model(*call[0], **call[1])))
                if wrong:
                    raise ValueError(f"for a batch of {batch_size(call)}, {wrong}")
            for other, expected in others:
                wrong = _difference(model, other, expected)
                if wrong:
                    raise ValueError(f"for inputs of another size, as dynamic_axes wants them, {wrong}")
            return info
    except OSError:
        raise  # a full disk is no fault of the model
    except Exception as error:
        raise ValueError(
            f"The int8 model of {plan_of(prepared).model} cannot be exported as {choice.name!r}, so the run stops "
            f"before the training: {one_line(error, None)}.{_remedy(choice.name, error)}"
        ) from error


def _difference(model: Callable[..., Any], call: Inputs, expected: Any) -> str:
    """What is wrong with the output of a call, or why there is none; "" if nothing is."""
    try:
        return mismatch(comparable(expected), comparable(model(*call[0], **call[1])))
    except Exception as error:  # whatever the runtime raises
        return one_line(error)


def _remedy(name: str, error: Exception) -> str:
    """What can be done, if the error does not say it itself."""
    if "QATCallback(target=" in str(error):
        return ""
    others = ", ".join(other for other in EXPORTERS if other != name)
    return f" Name an inner module without that part, QATCallback(target=...), or choose other exporters, of {others}."

"""Which calls of the fake-quantized model the files of a delivery are compared on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from lq.deployment.outputs import calls_of_other_sizes, larger_call, output_of
from lq.deployment.results import Compared
from lq.export.artifact.calls import fits_batch
from lq.export.artifact.signature import Signature
from lq.metrics.detections import Comparable, comparable
from lq.tracing.batch import FixedBatch, fixed_batch
from lq.tracing.images import each_image
from lq.tracing.structure import Inputs

Call = tuple[Inputs, Comparable]  # with the output of the fake-quantized model


@dataclass(frozen=True)
class ComparedCalls:
    """Calls of a model with its outputs.

    Args:
        same: with the sizes of the example; there is at least one.
        others: with other sizes along the dynamic axes, which some files leave open.
        larger: by exporter, one with more samples than the others.
        notes: on validation batches that are not among them.

    Example:
        >>> import torch
        >>> x, scores = torch.rand(8, 4), torch.rand(8, 2)
        >>> calls = ComparedCalls(same=[(((x,), {}), scores)])
        >>> len(calls.same), len(calls.others), calls.larger
        (1, 0, {})
    """

    same: Sequence[Call]
    others: Sequence[Call] = ()
    larger: Mapping[str, Call] = field(default_factory=dict)
    notes: Sequence[str] = ()


def calls_to_compare(
    prepared: fx.GraphModule,
    example: Inputs,
    compared: Compared,
    signature: Signature,
    infos: Mapping[str, Mapping[str, Any]],
) -> ComparedCalls:
    """The calls of a validation that files can take, and what else they shall be tried on.

    Args:
        prepared: in evaluation mode.
        example: inputs of one call; it is compared if the validation has none.
        compared: what the validation has kept.
        signature: of the artifact.
        infos: exporter -> what it has returned.

    Example:
        >>> import torch
        >>> from lq.ptq.static import prepare_static
        >>> x = torch.rand(8, 4)
        >>> prepared, example = prepare_static(torch.nn.Sequential(torch.nn.Linear(4, 2)), [x]), ((x,), {})
        >>> signature = Signature.of(prepared, example, output_of(prepared, example))
        >>> calls = calls_to_compare(prepared, example, Compared(), signature, {"torch": {"dynamic_batch": True}})
        >>> calls.notes
        ['without validation results, agreement and SQNR are those of one training batch']
        >>> (args, _), expected = calls.larger["torch"]
        >>> args[0].shape, expected.shape
        (torch.Size([17, 4]), torch.Size([17, 2]))
    """
    batch = fixed_batch(prepared)
    calls = [pair for call, out in compared.calls for pair in _fitting(call, out, batch)]
    possible = [pair for pair in calls if not signature.resized(*pair[0])]
    same = [pair for pair in possible if not signature.static.resized(*pair[0])]
    others = [pair for pair in possible if not any(pair is one for one in same)]
    others += [(call, comparable(out)) for call, out in calls_of_other_sizes(prepared, example)]
    same = same or [(example, comparable(output_of(prepared, example)))]
    return ComparedCalls(same, others, _larger(prepared, same, infos), _notes(calls, possible, signature))


def _fitting(call: Inputs, output: Comparable, batch: FixedBatch | None) -> list[Call]:
    """A call and its output, image by image if that is how the graph takes them; none if it cannot take them."""
    if batch is not None and batch.images and batch.size == 1 and isinstance(output, list):
        return [(one, [answer]) for one, answer in zip(each_image(call), output, strict=True)]
    return [(call, output)] if fits_batch(call, batch) else []


def _notes(calls: Sequence[Call], possible: Sequence[Call], signature: Signature) -> list[str]:
    notes = []
    if len(possible) < len(calls):
        axes = next(filter(None, (signature.resized(*call) for call, _ in calls)))
        notes.append(
            f"{len(calls) - len(possible)} of {len(calls)} validation batches have other sizes than the example, for "
            f"which the files may hold constants, and were not compared; dynamic_axes={axes} leaves them open"
        )
    if not possible:
        notes.append("without validation results, agreement and SQNR are those of one training batch")
    return notes


def _larger(prepared: fx.GraphModule, calls: Sequence[Call], infos: Mapping[str, Mapping[str, Any]]) -> dict[str, Call]:
    """For the files that take any batch, a call with more samples than the others and its output."""
    kinds = [kind for kind, info in infos.items() if info.get("dynamic_batch") is not False]
    found = larger_call(prepared, [call for call, _ in calls]) if kinds else None
    return {} if found is None else dict.fromkeys(kinds, (found[0], comparable(found[1])))

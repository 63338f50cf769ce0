from __future__ import annotations

import torch
from torch import fx

from lq.deployment.compared_calls import ComparedCalls, calls_to_compare
from lq.deployment.outputs import output_of
from lq.deployment.results import Compared
from lq.export.artifact.signature import Signature
from lq.metrics.detections import comparable
from lq.tracing.structure import Inputs
from tests.export.nets import example_of, images, residual

EXAMPLE = example_of(images(4))


def chosen(prepared: fx.GraphModule, *calls: Inputs, dynamic_batch: bool = True) -> ComparedCalls:
    output = output_of(prepared, EXAMPLE)
    compared = Compared(calls=[(call, comparable(output)) for call in calls])
    signature = Signature.of(prepared, EXAMPLE, output)
    return calls_to_compare(prepared, EXAMPLE, compared, signature, {"torch": {"dynamic_batch": dynamic_batch}})


def test_the_example_is_compared_where_no_validation_ran() -> None:
    calls = chosen(residual())
    assert [call for call, _ in calls.same] == [EXAMPLE]
    assert calls.notes == ["without validation results, agreement and SQNR are those of one training batch"]


def test_batches_of_other_images_than_the_example_are_left_out_and_told() -> None:
    (x,), _ = EXAMPLE
    small = example_of(x[..., ::2, ::2])
    calls = chosen(residual(), EXAMPLE, small)
    assert [call for call, _ in calls.same] == [EXAMPLE]
    assert calls.others == []
    assert [note.split(" have")[0] for note in calls.notes] == ["1 of 2 validation batches"]


def test_files_of_any_batch_get_a_larger_one() -> None:
    prepared = residual()
    call, output = chosen(prepared, EXAMPLE).larger["torch"]
    assert call[0][0].shape[0] == 9  # twice the four of the example, and one more
    assert torch.equal(comparable(output_of(prepared, call))[0], output[0])
    assert chosen(prepared, EXAMPLE, dynamic_batch=False).larger == {}

import pytest
import torch
from torch import Tensor

from lq.core.checkpoint import as_bytes, from_bytes, require_same_slots


def test_names_and_flags_come_back_whatever_is_in_a_name():
    flags = {"fake_quant": True, "observer": False}
    for names in ([], ["fq_a", 'fq_"b"', "fq_ü"]):
        assert from_bytes(as_bytes(names, flags)) == {"names": names, **flags}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (torch.ones(3), r"bytes of JSON, and not a torch\.float32 of shape \[3\]"),
        (torch.ones(2, 2, dtype=torch.uint8), r"not a torch\.uint8 of shape \[2, 2\]"),
        (torch.tensor(list(b"{"), dtype=torch.uint8), "is not valid JSON"),
        (torch.tensor(list(b"[1]"), dtype=torch.uint8), "the text of names and flags of a prepared model is"),
    ],
)
def test_other_tensors_are_no_names_and_flags(extra: Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        from_bytes(extra)


def test_the_same_slots_pass():
    require_same_slots(["fq_a", "fq_b"], ["fq_a", "fq_b"])


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (["fq_a"], r"it lacks the fake quantizers \['fq_b'\]\. Nothing"),
        (["fq_a", "fq_b", "fq_c"], r": it has the fake quantizers \['fq_c'\], which this model lacks\. Nothing"),
        (["fq_b", "fq_a"], r"run in another order, 'fq_b' where this model has 'fq_a'"),
        (["fq_a", "fq_b", *"cdefgh"], r"has the fake quantizers \['c', 'd', 'e', 'f', 'g', '\.\.\.'\]"),
    ],
)
def test_others_are_refused_and_named(theirs: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        require_same_slots(theirs, ["fq_a", "fq_b"])

import pytest

from lq.core.checkpoint import require_same_slots


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

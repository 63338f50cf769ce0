"""What a checkpoint has to have in common with the model that loads it."""

from __future__ import annotations

from collections.abc import Iterable


def require_same_slots(theirs: list[str], ours: list[str]) -> None:
    """Refuse a checkpoint that was prepared with another plan.

    Args:
        theirs: names of the checkpoint's fake quantizers.
        ours: names of the model's.

    Raises:
        ValueError: if they differ.

    Example:
        >>> require_same_slots(["fq_a", "fq_b"], ["fq_a"])
        Traceback (most recent call last):
        ...
        ValueError: The checkpoint was prepared with another plan: it lacks the fake quantizers [] and has ['fq_b'] ...
    """
    if theirs != ours:
        missing, extra = _difference(ours, theirs), _difference(theirs, ours)
        raise ValueError(
            f"The checkpoint was prepared with another plan: it lacks the fake quantizers {missing} "
            f"and has {extra} that this model does not. Use the target, qconfig and architecture of that run."
        )


def _difference(a: Iterable[str], b: Iterable[str]) -> list[str]:
    other = set(b)
    found = [name for name in a if name not in other]
    return found[:5] + (["..."] if len(found) > 5 else [])

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
    if theirs == ours:
        return
    missing, extra = _difference(ours, theirs), _difference(theirs, ours)
    if missing or extra:
        what = f"it lacks the fake quantizers {missing} and has {extra} that this model does not"
    else:
        a, b = next(pair for pair in zip(theirs, ours, strict=True) if pair[0] != pair[1])
        what = f"its fake quantizers run in another order, {a!r} where this model has {b!r}"
    raise ValueError(
        f"The checkpoint was prepared with another plan: {what}. "
        "Nothing was loaded; use the target, qconfig and architecture of that run."
    )


def _difference(a: Iterable[str], b: Iterable[str]) -> list[str]:
    other = set(b)
    found = [name for name in a if name not in other]
    return found[:5] + (["..."] if len(found) > 5 else [])

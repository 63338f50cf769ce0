"""Words of messages: what an error says, and a few of many names."""

from __future__ import annotations

from collections.abc import Iterable


def one_line(said: object, limit: int | None = 300) -> str:
    """What an error says, without line breaks and final full stop.

    Args:
        said: an error, or its text.
        limit: characters after which it is cut off; ``None`` keeps all of it.

    Example:
        >>> one_line(ValueError("too  long."))
        'too long'
        >>> one_line(ValueError("some words too many"), limit=10)
        'some words...'
    """
    text = " ".join(str(said).split()).rstrip(".")
    return text if limit is None or len(text) <= limit else f"{text[:limit].rstrip()}..."


def counted(number: float, things: str) -> str:
    """A number of things; of one, without the "s".

    Example:
        >>> counted(1, "epochs"), counted(2, "epochs"), counted(0.5, "epochs")
        ('1 epoch', '2 epochs', '0.5 epochs')
    """
    return f"{number:g} {things.removesuffix('s') if number == 1 else things}"


def some_of(names: Iterable[object], most: int = 5, separator: str = ", ") -> str:
    """The first of many names, and how many others there are.

    Args:
        names: of anything.
        most: how many are shown.
        separator: between two of them.

    Example:
        >>> some_of(["a", "b"]), some_of("abcdefg", 3)
        ('a, b', 'a, b, c and 4 more')
    """
    texts = [str(name) for name in names]
    others = f" and {len(texts) - most} more" if len(texts) > most else ""
    return separator.join(texts[:most]) + others

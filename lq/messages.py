"""Words of messages: what an error says, and a few of many names."""

from __future__ import annotations


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

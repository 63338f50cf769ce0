"""What tracing refuses."""


class UntraceableError(ValueError):
    """The module cannot be turned into a graph; the message names the line and the remedy."""

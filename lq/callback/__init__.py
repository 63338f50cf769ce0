"""The Lightning callback: it decides when; functions elsewhere do what."""

from lq.callback.qat import QATCallback

__all__ = ["QATCallback"]

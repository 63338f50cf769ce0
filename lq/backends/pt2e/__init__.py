"""Backend ``pt2e``: a quantizer of torchao's PT2E flow, the vendor's, says what is quantized and where.

To read from top to bottom: ``quantizers`` (which there are), ``capture`` (a recorded call as the ATen graph that they
know), ``annotate`` (what one of them wants of the call: ``vendor_plan``) and ``choice``.
"""

from lq.backends.pt2e.choice import choose

__all__ = ["choose"]

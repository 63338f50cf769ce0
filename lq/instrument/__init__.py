"""The user's own module, quantized where it stands: what happens at the calls that its ``forward`` makes.

To read from top to bottom: ``places`` (a module whose forward makes calls that matter, and the call that is running),
``classes`` (how such a module notices that it is called), ``sites`` (what happens at one call), ``mode`` (from a call
of a torch function to its site), ``checkpointing`` (what ``torch.utils.checkpoint`` computes again) and ``attach``
(from a plan to sites).
"""

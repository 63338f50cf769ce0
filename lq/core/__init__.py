"""Fake quantization that trains at the price of float.

To read from top to bottom: ``functional`` (rounding an activation, with its gradient), ``qparams`` (from a range to
what that takes), ``weight`` and ``lsq`` (rounding a weight; scales that are learned), ``state`` (all ranges of a model,
and the phases), ``fake_quantize`` and ``layer`` (the modules that stand in a prepared graph) and ``modules`` (one class
for each kind of layer). ``calibration`` is apart: clipped ranges from histograms, which only some observers need.
"""

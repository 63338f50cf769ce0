"""The subcommands of the ``lq`` command, known without importing anything."""

from __future__ import annotations

import os

OF_LIGHTNING = {
    "fit": "train; add lq.QATCallback to the callbacks to train for int8",
    "validate": "run the validation once",
    "test": "run the test once",
    "predict": "run the prediction once",
}
OWN_SUBCOMMANDS = {
    "export": "export a trained checkpoint to one or more runtimes, without training again",
    "ptq": "quantize without training (the baseline for QAT)",
    "analyze": "measure how much quantization hurts each layer, and suggest layers to leave in float",
    "bits": "choose the number of bits of each layer for a size budget",
    "report": "compare float, PTQ and QAT on one HTML page",
    "bench": "measure size, latency and throughput of the exported files",
}
DOCTOR = {"doctor": "show what works on this machine, and what to install for the rest"}
SUBCOMMANDS = {**OF_LIGHTNING, **OWN_SUBCOMMANDS, **DOCTOR}

OVERVIEW = """usage: lq COMMAND [options]

Quantization-aware training for PyTorch Lightning.

{subcommands}

Name modules and data by import path; the working directory is searched, too:

  lq fit --model my_module.Net --data my_module.Data --trainer.max_epochs 3
  lq fit --config recipes/digits/qat.yaml
  lq export --ckpt_path runs/digits/version_0/checkpoints/last.ckpt --exporters '[onnx]'
  lq bench --artifact runs/digits/version_0/int8

lq COMMAND --help shows the options of a subcommand, --version the version. --debug, or LQ_DEBUG=1, shows
the whole traceback of an error."""


def debugging() -> bool:
    """Whether errors shall come with all that is known of them.

    Example:
        >>> debugging()
        False
    """
    return os.environ.get("LQ_DEBUG", "0") not in ("", "0")


def overview() -> str:
    """What ``lq --help`` prints.

    Example:
        >>> print(overview().splitlines()[0])
        usage: lq COMMAND [options]
    """
    return OVERVIEW.format(
        subcommands="\n".join(f"  {subcommand:<10}{about}" for subcommand, about in SUBCOMMANDS.items())
    )

"""The subcommands of the ``lq`` command, known without importing anything."""

from __future__ import annotations

import os

OF_LIGHTNING = {
    "fit": "train; with lq.QATCallback among the callbacks: for int8",
    "validate": "run the validation once",
    "test": "run the test once",
    "predict": "run the prediction once",
}
OWN_SUBCOMMANDS = {
    "export": "write a trained checkpoint for one or more runtimes, without training again",
    "ptq": "quantize without training: the baseline that QAT has to beat",
    "analyze": "what quantization does to every layer, and which ones to leave in float",
    "bits": "how many bits each layer gets under a budget of size",
    "report": "float, PTQ and QAT compared, on one HTML page",
    "bench": "size, latency and throughput of what was exported",
}
DOCTOR = {"doctor": "what works on this machine, and what to install for the rest"}
SUBCOMMANDS = {**OF_LIGHTNING, **OWN_SUBCOMMANDS, **DOCTOR}

OVERVIEW = """usage: lq COMMAND [options]

Quantization-aware training for PyTorch Lightning.

{subcommands}

Modules and data are named by import path; those of the working directory are found:

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

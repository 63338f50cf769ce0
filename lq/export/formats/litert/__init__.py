"""``litert``: a ``.tflite`` file for phones and microcontrollers, on integers from end to end.

The file is written from the graph itself, with the schema that LiteRT ships; scales and zero points are those that were
trained. See https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec. Layers lie with
channels last, as LiteRT wants them, and are moved at the ends only; ``docs/litert.md`` says what else is done, and
what LiteRT has no integers for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import fx, nn

from lq.backends.prepare import plan_of
from lq.checks import check_flag
from lq.export.artifact.files import write_file
from lq.export.artifact.manifest import MANIFEST_NAME
from lq.export.artifact.signature import Signature
from lq.export.formats.litert.call import UnsupportedError
from lq.export.formats.litert.ends import FLOAT32, Ends
from lq.export.formats.litert.report import describe, floating
from lq.export.formats.litert.runtime import interpreted
from lq.export.formats.litert.tensors import FixedBatchError
from lq.export.formats.litert.translation import Translated, translate
from lq.export.formats.output_names import output_names
from lq.export.formats.parts import call_of_one_part
from lq.export.formats.program import export_program, float_program
from lq.fields import Field
from lq.tracing.samples import batch_size, one_sample
from lq.tracing.structure import Inputs

FILE = "int8.tflite"


def check_options(
    full_int8: bool = False,
    inputs: str = FLOAT32,
    outputs: str = FLOAT32,
    channels_last: bool = False,
    xnnpack: bool = True,
    int4_weights: bool = False,
) -> None:
    """Check the options of the exporter.

    Raises:
        TypeError: if a flag is neither True nor False.
        ValueError: on a type that is neither "float32" nor "int8".

    Example:
        >>> check_options(inputs="uint8")
        Traceback (most recent call last):
        ...
        ValueError: inputs='uint8' must be 'float32' or 'int8'.
    """
    check_flag("full_int8", full_int8)
    check_flag("xnnpack", xnnpack)
    check_flag("int4_weights", int4_weights)
    Ends.of(inputs, outputs, channels_last)


def packs(int4_weights: bool = False, **others: Any) -> bool:
    """Whether weights of four bits and fewer are stored in four with these options.

    Example:
        >>> packs(), packs(int4_weights=True, xnnpack=False)
        (False, True)
    """
    return int4_weights is True


def export(
    prepared: fx.GraphModule,
    example: Inputs,
    directory: Path,
    full_int8: bool = False,
    inputs: str = FLOAT32,
    outputs: str = FLOAT32,
    channels_last: bool = False,
    xnnpack: bool = True,
    int4_weights: bool = False,
) -> dict[str, Any]:
    """Write ``int8.tflite``.

    Args:
        prepared: in evaluation mode, with ranges.
        example: inputs of one call, on the CPU.
        directory: where to.
        full_int8: refuse what would compute in float between two ends.
        inputs: "float32", or "int8" for the integers themselves, as microcontrollers take them.
        outputs: likewise.
        channels_last: images go in and come out as (batch, height, width, channels) rather than torch's way.
        xnnpack: whether :func:`load`, and so the parity gate, lets XNNPACK compute what it can.
        int4_weights: store weights of four bits and fewer in four. XNNPACK does not compute such layers; LiteRT's own
            kernels take longer.

    Returns:
        whether the batch is dynamic, which layers and operators compute on integers and which in float, and how many
        transposes there are.

    Raises:
        ValueError: if the model cannot be exported, or not as the options say.

    Example:
        >>> import tempfile, torch
        >>> from lq.ptq.static import prepare_static
        >>> x = torch.tensor([[-1.0, 0.5, 1.0]])
        >>> prepared = prepare_static(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), [x], "litert")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     info = export(prepared, ((x,), {}), Path(folder), full_int8=True)
        ...     print([path.name for path in Path(folder).iterdir()])
        ['int8.tflite']
        >>> info["dynamic_batch"], info["int8_layers"], info["float_operators"]
        (True, {'FULLY_CONNECTED': 1}, [])
    """
    check_options(full_int8, inputs, outputs, channels_last, xnnpack, int4_weights)
    ends = Ends.of(inputs, outputs, channels_last)
    made, largest = _translated(prepared, example, ends)
    if full_int8 and made.floating:
        raise UnsupportedError(
            f"full_int8=True, but these would compute in float: {floating(made, plan_of(prepared))}. Leave the option "
            "out, change them to what LiteRT has on integers (docs/litert.md), or let the layers around them be "
            "quantized."
        )
    content = made.content(output_names(prepared, example), plan_of(prepared).model, ends, int4_weights)
    write_file(directory / FILE, content)
    return {
        "dynamic_batch": largest is None and batch_size(example) is not None,
        "largest_batch": largest,
        "channels_last": channels_last,
        "xnnpack": xnnpack,
        **describe(made),
    }


def _translated(prepared: fx.GraphModule, example: Inputs, ends: Ends) -> tuple[Translated, int | None]:
    """The graph for a batch of any size, or of the smallest where an operator wants to know it."""
    has_batch = batch_size(example) is not None  # the only dimension that a translation leaves open
    program, dynamic = export_program(prepared, example, signed=True, dynamic=has_batch, batch_alone=True)
    if dynamic:
        try:
            return translate(program, ends), None
        except FixedBatchError:
            pass
    return translated_once(prepared, example, ends)


def translated_once(prepared: fx.GraphModule, example: Inputs, ends: Ends) -> tuple[Translated, int | None]:
    """The graph for one batch size, the smallest that the model takes, and that size.

    Raises:
        ValueError: if the model cannot be exported, or computes something else of a batch than of its samples.

    Example:
        >>> import torch
        >>> from lq.ptq.static import prepare_static
        >>> x = torch.tensor([[-1.0, 0.5, 1.0]])
        >>> prepared = prepare_static(nn.Sequential(nn.Linear(3, 4)), [x], "litert")
        >>> made, size = translated_once(prepared, ((x,), {}), Ends())
        >>> size, [made.net.lengths(value) for value in made.outputs]
        (1, [(1, 4)])
    """
    smallest = call_of_one_part(prepared, example)
    program, _ = export_program(prepared, smallest, signed=True, dynamic=False)
    return translate(program, ends), batch_size(smallest)


def write_float(model: nn.Module, example: Inputs, path: Path) -> int | None:
    """Write a float model as it is, to compare with.

    Args:
        model: in evaluation mode, on the CPU.
        example: inputs of one call.
        path: where to.

    Returns:
        the largest batch that the file takes; ``None`` is any.

    Raises:
        RuntimeError: if it cannot be exported.
        UnsupportedError: if LiteRT lacks an operator.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "float.tflite"
        ...     largest = write_float(nn.Linear(3, 4), ((torch.zeros(8, 3),), {}), path)
        ...     print(largest, path.read_bytes()[4:8])
        None b'TFL3'
    """
    try:
        program, dynamic = float_program(model, example, dynamic=batch_size(example) is not None)
        made, largest = translate(program), None if dynamic else batch_size(example)
    except FixedBatchError:
        smallest = one_sample(example)
        made, largest = translate(float_program(model, smallest, dynamic=False)[0]), batch_size(smallest)
    write_file(path, made.content(output_names(model, example), type(model).__name__))
    return largest


def load(
    directory: Path, signature: Signature, info: Mapping[str, Any], threads: int | None = None
) -> Callable[..., Any]:
    """``int8.tflite`` in LiteRT's interpreter; without ``threads`` it chooses.

    Example:
        >>> import tempfile, torch
        >>> from lq.ptq.static import prepare_static
        >>> x = torch.tensor([[-1.0, 0.5, 1.0]])
        >>> prepared = prepare_static(nn.Sequential(nn.Linear(3, 4)), [x], "litert")
        >>> signature = Signature.of(prepared, ((x,), {}), prepared(x))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model = load(Path(folder), signature, export(prepared, ((x,), {}), Path(folder)), threads=1)
        >>> bool((model(x) - prepared(x)).abs().max() < 0.05)
        True
    """
    given = Field(info, f"{directory / MANIFEST_NAME}: artifacts.litert")
    largest = given["largest_batch"]
    return interpreted(
        directory / FILE,
        signature,
        threads,
        xnnpack=given["xnnpack"].flag(),
        channels_last=given["channels_last"].flag(),
        largest_batch=None if largest.value is None else largest.integer(1),
    )

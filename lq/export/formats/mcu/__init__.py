"""``mcu``: a ``.tflite`` file for microcontrollers: integers from end to end, fixed shapes, judged by tflite-micro.

See https://github.com/tensorflow/tflite-micro. It is the file of the exporter ``litert`` for a batch of one, whose
inputs and outputs are integers; ``docs/microcontrollers.md`` says how it comes onto a chip.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import fx

from lq.backends.prepare import plan_of
from lq.export.artifact.files import write_file
from lq.export.artifact.manifest import MANIFEST_NAME
from lq.export.artifact.signature import Signature
from lq.export.formats.litert import translated_once
from lq.export.formats.litert.call import UnsupportedError
from lq.export.formats.litert.ends import INT8, Ends
from lq.export.formats.litert.report import describe, floating
from lq.export.formats.litert.translation import Translated
from lq.export.formats.mcu.interpreter import RefusedError, arena_bytes, interpreted
from lq.export.formats.output_names import output_names
from lq.fields import Field
from lq.tracing.structure import Inputs

FILE = "int8.mcu.tflite"


def check_options(inputs: str = INT8, outputs: str = INT8, channels_last: bool = True) -> None:
    """Check the options of the exporter.

    Raises:
        TypeError: if the flag is neither True nor False.
        ValueError: on a type that is neither "float32" nor "int8".

    Example:
        >>> check_options(inputs="float32", outputs="int8")
        >>> check_options(channels_last="yes")
        Traceback (most recent call last):
        ...
        TypeError: channels_last='yes' (str) is neither True nor False.
    """
    Ends.of(inputs, outputs, channels_last)


def export(
    prepared: fx.GraphModule,
    example: Inputs,
    directory: Path,
    inputs: str = INT8,
    outputs: str = INT8,
    channels_last: bool = True,
) -> dict[str, Any]:
    """Write ``int8.mcu.tflite``.

    Args:
        prepared: in evaluation mode, with ranges.
        example: inputs of one call, on the CPU.
        directory: where to.
        inputs: "int8" for the integers themselves, or "float32", which the chip quantizes first.
        outputs: likewise.
        channels_last: images go in and come out as (batch, height, width, channels), as cameras have them.

    Returns:
        the size of the batch, the layers by kind, the operators that a resolver on the chip has to know, the bytes of
        the arena, and how many transposes there are.

    Raises:
        UnsupportedError: if anything would compute in float, or tflite-micro lacks an operator.
        ValueError: if the model cannot be exported.

    Example:
        >>> import tempfile, torch
        >>> from lq.ptq.static import prepare_static
        >>> x = torch.tensor([[-1.0, 0.5, 1.0]])
        >>> prepared = prepare_static(torch.nn.Sequential(torch.nn.Linear(3, 4)), [x], "mcu")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     info = export(prepared, ((x,), {}), Path(folder))
        >>> info["largest_batch"], info["operators"], info["arena_bytes"] % 16
        (1, ['FULLY_CONNECTED'], 0)
    """
    ends = Ends.of(inputs, outputs, channels_last)
    made, largest = translated_once(prepared, example, ends)
    if made.floating:
        raise UnsupportedError(
            f"a microcontroller computes on integers alone, but these would be float: "
            f"{floating(made, plan_of(prepared))}. Change them to what LiteRT has on integers (docs/litert.md), let "
            "the layers around them be quantized with qconfig='mcu', or export 'litert'."
        )
    content = made.content(output_names(prepared, example), plan_of(prepared).model, ends)
    write_file(directory / FILE, content)
    described = describe(made)
    return {
        "dynamic_batch": False,
        "largest_batch": largest,
        "channels_last": channels_last,
        "operators": sorted({operator.kind for operator in made.net.file.operators}),
        "arena_bytes": _arena_bytes(directory / FILE, made),
        "int8_layers": described["int8_layers"],
        "transposes": described["transposes"],
    }


def _arena_bytes(path: Path, made: Translated) -> int:
    try:
        return arena_bytes(path)
    except RefusedError as error:
        file = made.net.file
        users = [file.tensors[o.outputs[0]].name for o in file.operators if o.kind == error.operator]
        where = f" ({', '.join(users)})" if users else ""
        raise UnsupportedError(
            f"{error}{where}. Replace it by an operator that tflite-micro has (docs/microcontrollers.md), or export "
            "'litert'."
        ) from error


def load(
    directory: Path, signature: Signature, info: Mapping[str, Any], threads: int | None = None
) -> Callable[..., Any]:
    """``int8.mcu.tflite`` in tflite-micro's interpreter, which has one thread and the arena that was reported.

    Example:
        >>> import tempfile, torch
        >>> from lq.ptq.static import prepare_static
        >>> x = torch.tensor([[-1.0, 0.5, 1.0]])
        >>> prepared = prepare_static(torch.nn.Sequential(torch.nn.Linear(3, 4)), [x], "mcu")
        >>> signature = Signature.of(prepared, ((x,), {}), prepared(x))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model = load(Path(folder), signature, export(prepared, ((x,), {}), Path(folder)))
        >>> bool((model(x) - prepared(x)).abs().max() < 0.05)
        True
    """
    given = Field(info, f"{directory / MANIFEST_NAME}: artifacts.mcu")
    largest = given["largest_batch"]
    return interpreted(
        directory / FILE,
        signature,
        given["arena_bytes"].integer(1),
        channels_last=given["channels_last"].flag(),
        largest_batch=None if largest.value is None else largest.integer(1),
    )

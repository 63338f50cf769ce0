"""How fast and how large: every model of an artifact against the float one, like for like."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lq.checks import check_module, check_path
from lq.core.copies import deep_copy
from lq.export.artifact.directory import AnyPath
from lq.export.artifact.int8_model import Int8Model, at_hand, known_kinds, load
from lq.export.artifact.manifest import read_manifest
from lq.export.artifact.scratch import scratch
from lq.export.artifact.signature import Signature
from lq.export.exporters import EXPORTERS
from lq.export.formats.mcu.vela import check_npu
from lq.export.formats.program import float_program
from lq.export.formats.pt2 import compile_frozen
from lq.messages import one_line, some_of
from lq.timing.chips import on_chips
from lq.timing.latency import Latency, compare_latency, size_mb
from lq.timing.rows import EAGER, FROZEN, FUSED, artifact_mb, float_forms
from lq.tracing.axes import ANY, BATCH
from lq.tracing.structure import Inputs

# The float model in the same runtime, which an int8 model has to beat to be worth its while.
COUNTERPARTS = {
    "torch": (FROZEN, FUSED, EAGER),
    "onnx": ("fp32 onnx",),
    "tensorrt": ("fp32 onnx",),
    "openvino": ("fp32 openvino",),
    "litert": ("fp32 litert",),
    "pt2": ("fp32 compiled",),
}


@dataclass(frozen=True)
class Benchmark:
    """What was measured.

    Args:
        rows: one for each model and batch size: "model", "batch_size", "latency_ms", "min_ms", "iqr_ms", "per_second",
            "speedup" over eager float, "size_mb", "threads".
        notes: what to know of them: int8 that is slower than float, layers that run in float, what is missing and why.
        chips: what models cost on chips that this machine is not, as :func:`lq.timing.chips.on_chips` has it.

    Example:
        >>> import lq, tempfile
        >>> x, prepared = torch.randn(8, 4), lq.prepare(torch.nn.Sequential(torch.nn.Linear(4, 2)))
        >>> _ = lq.calibrate(prepared, [x])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = lq.export_artifact(prepared, [x], f"{folder}/int8")
        ...     found = bench(done.directory, batch_sizes=(16,), min_time=0.01, compile=False)
        >>> row, = found.rows
        >>> row["model"], row["speedup"], round(row["latency_ms"] * row["per_second"])  # 1000 ms times 16 samples
        ('int8 torch', None, 16000)
    """

    rows: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    chips: list[dict[str, Any]] = field(default_factory=list)


def bench(
    directory: AnyPath,
    float_model: nn.Module | None = None,
    batch_sizes: Sequence[int] = (1, 16),
    threads: int = 1,
    min_time: float = 1.0,
    compile: bool = True,
    tell: Callable[[str], None] = lambda line: None,
    npu: str = "ethos-u55-128",
) -> Benchmark:
    """Measure every model of an artifact, and the float model eager, compiled and in the same runtimes.

    All take turns in one process on the same random inputs. Start it in a fresh one: after large batches, or with other
    work in the same process, int8 latencies come out several times too high.

    Args:
        directory: the artifact, or its URL for fsspec.
        float_model: the float model, in any mode, on the CPU; ``None`` leaves its rows out.
        batch_sizes: sizes to measure; a model whose batch is fixed is measured at its own.
        threads: for every runtime.
        min_time: seconds of timed calls for each model and batch size.
        compile: also measure what inductor makes of the float model and of "pt2"; it takes some minutes.
        tell: takes a line before each step that takes long.
        npu: which Ethos-U Arm's compiler estimates ``.tflite`` files for, where it is installed; see
            :data:`lq.export.formats.mcu.vela.NPUS`.

    Returns:
        rows and notes. A model that a simulator or reference kernels run here, in place of its chip, has no row.

    Raises:
        ValueError: for numbers out of range, or as :func:`lq.load`.

    Example:
        >>> import lq, tempfile
        >>> x, prepared = torch.randn(8, 4), lq.prepare(torch.nn.Sequential(torch.nn.Linear(4, 2)))
        >>> _ = lq.calibrate(prepared, [x])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = lq.export_artifact(prepared, [x], f"{folder}/int8")
        ...     found = bench(f"{folder}/int8", batch_sizes=(1, 8), min_time=0.01, compile=False)
        >>> [(row["model"], row["batch_size"]) for row in found.rows]
        [('int8 torch', 1), ('int8 torch', 8)]
    """
    check_path("directory", directory, "runs/int8")
    sizes_fit = all(isinstance(size, int) and size > 0 for size in batch_sizes)
    if not batch_sizes or not sizes_fit:
        raise ValueError(f"batch_sizes={list(batch_sizes)} must be one or more numbers from 1 up, e.g. [1, 16].")
    if float_model is not None:
        check_module("float_model", float_model)
    check_npu(npu)
    notes: list[str] = []
    with at_hand(directory) as artifact:
        manifest = read_manifest(artifact)
        chips, said = on_chips(artifact, manifest, npu)
        notes += said
        int8 = dict(_int8_models(artifact, manifest, threads, compile, notes, tell))
        sizes = {f"int8 {kind}": artifact_mb(kind, artifact) for kind in int8}
    signature = Signature.from_dict(manifest["signature"])
    models: dict[str, Callable[..., Any]] = {}
    with scratch() as place:
        if float_model is not None:
            float_model = deep_copy(float_model).eval()
            models |= _float_models(float_model, signature, int8, place, threads, compile, notes, tell)
            sizes |= dict.fromkeys(models, size_mb(float_model))
        models |= {f"int8 {kind}": model for kind, model in int8.items()}
        if not models:
            raise ValueError(f"{directory} holds nothing that can be timed here: {'; '.join(notes)}")
        rows = []
        for size in dict.fromkeys(signature.fixed_batch or size for size in batch_sizes):
            tell(f"measuring {len(models)} model{'s' * (len(models) != 1)} at batch size {size}")
            rows += _measured(models, _random_inputs(signature, size), size, threads, min_time, sizes, notes)
    return Benchmark(rows, [*_verdicts(rows), *_float_layers(manifest), *notes], chips)


def _int8_models(
    directory: AnyPath,
    manifest: Mapping[str, Any],
    threads: int,
    compile: bool,
    notes: list[str],
    tell: Callable[[str], None],
) -> Iterable[tuple[str, Int8Model]]:
    for kind in known_kinds(manifest):
        if simulator := EXPORTERS[kind].simulator:
            notes.append(f"int8 {kind} is not timed: {simulator} would run it here")
            continue
        tell(f"loading {kind}")
        lowers = kind == "pt2" and compile and importlib.util.find_spec("torchao") is not None
        if kind == "pt2" and not lowers:
            notes.append(
                "int8 pt2 is measured as it is, in float; pip install 'lightning-qat[pt2]' lets inductor lower it"
            )
        try:
            yield kind, load(directory, kind, threads=threads, compile=lowers)
        except (ImportError, ValueError) as error:  # a package that is missing, or an engine of another CPU
            notes.append(f"int8 {kind} is not timed: {one_line(error)}")


def _float_models(
    model: nn.Module,
    signature: Signature,
    int8: Iterable[str],
    place: Path,
    threads: int,
    compile: bool,
    notes: list[str],
    tell: Callable[[str], None],
) -> dict[str, Callable[..., Any]]:
    """The float model in every runtime that one of the int8 models uses."""
    sample = _random_inputs(signature, 1)
    forms = dict(float_forms(model, sample))
    if compile:
        forms["fp32 compiled"] = compile_frozen(model)
    wanted = {name for kind in int8 for name in COUNTERPARTS.get(kind, ())}
    if wanted & {"fp32 onnx", "fp32 openvino"}:
        tell("exporting the float model to ONNX")
        with _noting("the float model in ONNX", notes):  # what torch.export cannot take has no such rows
            forms |= _float_runtimes(model, sample, signature, place / "float.onnx", threads, wanted)
    if "fp32 litert" in wanted:
        tell("exporting the float model to LiteRT")
        with _noting("the float model in LiteRT", notes):
            forms["fp32 litert"] = _float_litert(model, sample, signature, place / "float.tflite", threads)
    return forms


@contextmanager
def _noting(what: str, notes: list[str]) -> Iterator[None]:
    """Let a failure cost a row of the table alone."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        notes.append(f"{what} is not timed: {one_line(error, 200)}")


def _float_litert(
    model: nn.Module, sample: Inputs, signature: Signature, path: Path, threads: int
) -> Callable[..., Any]:
    from lq.export.formats.litert import write_float
    from lq.export.formats.litert.runtime import interpreted

    largest = write_float(model, sample, path)
    return interpreted(path, signature, threads, largest_batch=largest)


def _float_runtimes(
    model: nn.Module, sample: Inputs, signature: Signature, path: Path, threads: int, wanted: set[str]
) -> dict[str, Callable[..., Any]]:
    from lq.export.formats.onnx import session_model, write_program
    from lq.export.formats.openvino import compiled_model

    program, _ = float_program(model, sample)
    write_program(program, path)
    forms: dict[str, Callable[..., Any]] = {}
    if "fp32 onnx" in wanted:
        forms["fp32 onnx"] = session_model(path, signature, threads)
    if "fp32 openvino" in wanted:
        forms["fp32 openvino"] = compiled_model(path, signature, threads)
    return forms


def _measured(
    models: Mapping[str, Callable[..., Any]],
    inputs: Inputs,
    size: int,
    threads: int,
    min_time: float,
    sizes: Mapping[str, float],
    notes: list[str],
) -> list[dict[str, Any]]:
    running = {}
    for name, model in models.items():
        try:
            with torch.no_grad():
                model(*inputs[0], **inputs[1])
            running[name] = model
        except Exception as error:  # a fixed batch size, mostly
            notes.append(f"{name} cannot run at batch size {size}: {one_line(error, 200)}")
    with torch.inference_mode():
        times = compare_latency(running, *inputs, threads=threads, min_time=min_time) if running else {}
    base = times.get(EAGER)
    return [_row(name, size, latency, base, sizes.get(name)) for name, latency in times.items()]


def _row(name: str, size: int, latency: Latency, base: Latency | None, size_mb: float | None) -> dict[str, Any]:
    return {
        "model": name,
        "batch_size": size,
        "latency_ms": latency.median_ms,
        "min_ms": latency.min_ms,
        "iqr_ms": latency.iqr_ms,
        "per_second": 1000 * size / latency.median_ms,
        "speedup": None if base is None else base.median_ms / latency.median_ms,
        "size_mb": size_mb,
        "threads": latency.threads,
    }


def _random_inputs(signature: Signature, size: int) -> Inputs:
    """Inputs as the model was exported for: normal floats, zeros of other types."""
    generator = torch.Generator().manual_seed(0)
    values: dict[str, Any] = {}
    for spec in signature.inputs:
        shape = [size if name in (BATCH, ANY) else spec.sizes[dim] for dim, name in enumerate(spec.shape)]
        dtype = getattr(torch, spec.dtype)
        random = torch.randn(shape, generator=generator) if dtype.is_floating_point else torch.zeros(shape)
        values[spec.name] = random.to(dtype)
    return (), {signature.parameters[0]: list(values.values())} if signature.images else values


def _verdicts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where int8 is slower than float in the same runtime."""
    times = {(row["model"], row["batch_size"]): row["latency_ms"] for row in rows}
    found = []
    for (model, size), latency in times.items():
        kind = model.removeprefix("int8 ")
        others = [(times[name, size], name) for name in COUNTERPARTS.get(kind, ()) if (name, size) in times]
        if model.startswith("int8 ") and others and latency > min(others)[0]:
            fastest, name = min(others)
            found.append(f"{model} is {latency / fastest:.2f}x slower than {name} at batch size {size}")
    return found


def _float_layers(manifest: Mapping[str, Any]) -> list[str]:
    notes = []
    for kind, info in manifest["artifacts"].items():
        layers = info.get("float_layers", [])
        if layers:
            notes.append(f"int8 {kind} runs in float: {some_of(layers)}")
    return notes

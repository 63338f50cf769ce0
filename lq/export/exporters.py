"""The table of exporters: one file each, loaded when it is used."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import fx, nn

from lq.checks import shown
from lq.conversion.wide import check_eight_bits
from lq.export.artifact.calls import in_float32
from lq.export.artifact.signature import Signature
from lq.tracing.choice import chooses_boxes
from lq.tracing.structure import Inputs, in_plain_containers

ExporterChoice = str | Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Exporter:
    """A kind of artifact.

    Args:
        name: its name in the table.
        files: what it writes.
        module: where its functions are.
        needs: packages that it imports.
        extra: of lq that installs them.
        rounds_bias: whether the runtime adds biases as int32, which rounds them.
        simulator: what runs the files here in place of the chip, if anything does; its times mean nothing.
        widths: bits that a stored weight can take.
        wide: whether it has activations of 16 bits.
        boxes: whether it can choose boxes (non-maximum suppression).
        static: whether its files hold all sizes of the example but the batch.
        besides: files that it writes where a model is too large for the others.
        handed_on: files for other tools, which it writes where an option says so and never reads.

    Example:
        >>> import tempfile
        >>> onnx = EXPORTERS["onnx"]
        >>> onnx.files, onnx.extra, onnx.options()
        (('int8.onnx',), 'onnx', ('opset',))
        >>> with tempfile.TemporaryDirectory() as place:
        ...     _ = (Path(place) / "int8.onnx.data").write_bytes(b"")
        ...     onnx.files_in(Path(place))  # the model was too large for one file
        ['int8.onnx', 'int8.onnx.data']
    """

    name: str
    files: tuple[str, ...]
    module: str
    needs: tuple[str, ...] = ()
    extra: str = ""
    rounds_bias: bool = False
    simulator: str = ""
    widths: tuple[int, ...] = (8,)
    wide: bool = False
    boxes: bool = True
    static: bool = False
    besides: tuple[str, ...] = ()
    handed_on: tuple[str, ...] = ()

    def files_in(self, directory: Path) -> list[str]:
        """The names of the files in a directory that are its model."""
        return [*self.files, *_present(self.besides, directory)]

    def written_in(self, directory: Path) -> list[str]:
        """The names of all that it has written into a directory."""
        return [*self.files_in(directory), *_present(self.handed_on, directory)]

    def check_installed(self) -> None:
        """Look whether its packages are here.

        Raises:
            ImportError: with the line that installs them.
        """
        missing = [package for package in self.needs if importlib.util.find_spec(package) is None]
        if missing:
            raise ImportError(
                f"exporter {self.name!r} needs {', '.join(missing)}, not installed here: "
                f"pip install 'lightning-qat[{self.extra}]'"
            )

    def export(self, prepared: fx.GraphModule, example: Inputs, directory: Path, **options: Any) -> dict[str, Any]:
        """Write the files into a directory; returns what ``lq.json`` shall say of them.

        Raises:
            ValueError: if the model cannot be exported so.
        """
        if not self.wide:
            check_eight_bits(prepared, f"exporter {self.name!r}")
        if not self.boxes:
            _check_no_boxes(prepared, self.name)
        given = in_plain_containers(in_float32(prepared, example))
        written: dict[str, Any] = self._function("export")(prepared, given, directory, **options)
        return written

    def write_float(self, model: nn.Module, example: Inputs, directory: Path) -> dict[str, Any]:
        """Write a float model in the place of the int8 one, for the same runtime; returns what loading has to know.

        Only "onnx" and "openvino" have that.
        """
        written: dict[str, Any] = self._function("write_float")(model, example, directory)
        return written

    def load(
        self, directory: Path, signature: Signature, info: Mapping[str, Any], threads: int | None = None
    ) -> Callable[..., Any]:
        """The model in the files, callable as the original one is."""
        self.check_installed()
        loaded: Callable[..., Any] = self._function("load")(directory, signature, info, threads)
        return loaded

    def check(self, directory: Path) -> bool:
        """Refuse files that do more than compute.

        Returns:
            whether there is such a check: some runtimes can only compute.

        Raises:
            ValueError: naming the file and what it would do.
        """
        check = getattr(self.functions, "check_file", None)
        if check is not None:
            self.check_installed()
            check(directory)
        return check is not None

    def widths_with(self, options: Mapping[str, Any]) -> tuple[int, ...]:
        """Bits that a stored weight can take in files that are written with these options."""
        packs = getattr(self.functions, "packs", None) if len(self.widths) > 1 else None
        return self.widths if packs is None or packs(**options) else (8,)

    def options(self) -> tuple[str, ...]:
        """Names of the options of ``export``."""
        return tuple(inspect.signature(self._function("export")).parameters)[3:]

    @property
    def functions(self) -> ModuleType:
        """The module, imported when it is first asked for."""
        return importlib.import_module(self.module)

    def _function(self, name: str) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(self.functions, name)
        return function


def _present(names: Sequence[str], directory: Path) -> list[str]:
    return [name for name in names if (directory / name).is_file()]


_ONNX = ("onnx", "onnxscript", "onnxruntime")
_COMPRESSED = (2, 3, 4, 5, 6, 8)  # more than six bits are not
_NIBBLES = (4, 8)

EXPORTERS: dict[str, Exporter] = {
    exporter.name: exporter
    for exporter in (
        Exporter("torch", ("int8.pt",), "lq.export.formats.torchscript", widths=_COMPRESSED),
        Exporter(
            "onnx",
            ("int8.onnx",),
            "lq.export.formats.onnx",
            _ONNX,
            "onnx",
            rounds_bias=True,
            widths=_NIBBLES,
            besides=("int8.onnx.data",),
        ),
        Exporter(
            "tensorrt",
            ("int8.tensorrt.onnx",),
            "lq.export.formats.tensorrt",
            _ONNX,
            "onnx",
            besides=("int8.tensorrt.onnx.data",),
        ),
        Exporter(
            "qnn",
            ("int8.qnn.onnx",),
            "lq.export.formats.qnn",
            (*_ONNX, "onnxruntime_qnn"),
            "qnn",
            rounds_bias=True,
            simulator="a simulator" if platform.machine() in ("x86_64", "AMD64") else "",
            wide=True,
            static=True,
            handed_on=("int8.qnn.float.onnx", "int8.qnn.float.onnx.data", "int8.qnn.encodings"),
        ),
        Exporter("pt2", ("int8.pt2",), "lq.export.formats.pt2", widths=_COMPRESSED),
        Exporter(
            "openvino",
            ("int8.xml", "int8.bin"),
            "lq.export.formats.openvino",
            ("openvino", "onnx", "onnxscript"),
            "openvino",
            widths=_NIBBLES,
        ),
        Exporter(
            "executorch",
            ("int8.pte",),
            "lq.export.formats.executorch",
            ("executorch",),
            "executorch",
            rounds_bias=True,
            boxes=False,
            static=True,
        ),
        Exporter(
            "litert",
            ("int8.tflite",),
            "lq.export.formats.litert",
            ("ai_edge_litert",),
            "litert",
            rounds_bias=True,
            widths=_NIBBLES,
            boxes=False,
            static=True,
        ),
        Exporter(
            "mcu",
            ("int8.mcu.tflite",),
            "lq.export.formats.mcu",
            ("ai_edge_litert", "tflite_micro"),
            "mcu",
            rounds_bias=True,
            boxes=False,
            static=True,
            simulator="the reference kernels of tflite-micro",
        ),
    )
}


def _check_no_boxes(prepared: fx.GraphModule, name: str) -> None:
    """Check that a model is no whole detector.

    Raises:
        ValueError: naming the exporters that take one.
    """
    if any(map(chooses_boxes, prepared.graph.nodes)):
        able = ", ".join(exporter.name for exporter in EXPORTERS.values() if exporter.boxes)
        raise ValueError(
            f"exporter {name!r} has no non-maximum suppression, by which a detector chooses its boxes. Exporters that "
            f"have one: {able}. Or train and export the part before it, e.g. QATCallback(target='model.backbone')"
        )


def stored_bits(bits: int, exporters: Sequence[ExporterChoice]) -> int:
    """Bits that a weight takes in the files of exporters, where it takes the most.

    Args:
        bits: of its grid.
        exporters: names, or ``{name: options}``; none is a file that stores any number of bits.

    Raises:
        ValueError: for unknown names.

    Example:
        >>> stored_bits(3, ["torch"]), stored_bits(3, ["torch", "onnx"]), stored_bits(3, ["litert"])
        (3, 4, 8)
        >>> stored_bits(3, [{"onnx": {"opset": 20}}])
        8
    """
    pairs = [pair for choice in exporters for pair in _pairs(choice)]
    return max(
        (min(w for w in _known(name).widths_with(options) if w >= bits) for name, options in pairs), default=bits
    )


@dataclass(frozen=True)
class Chosen:
    """An exporter and its options.

    Example:
        >>> choice = Chosen(EXPORTERS["onnx"], {"opset": 20})
        >>> choice.name, choice.choice
        ('onnx', {'onnx': {'opset': 20}})
    """

    exporter: Exporter
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The exporter's name."""
        return self.exporter.name

    @property
    def choice(self) -> dict[str, Mapping[str, Any]]:
        """As a configuration names them."""
        return {self.name: self.options}

    def export(self, prepared: fx.GraphModule, example: Inputs, directory: Path) -> dict[str, Any]:
        """Write the files; returns what ``lq.json`` shall say of them."""
        return self.exporter.export(prepared, example, directory, **self.options)


def _as_list(choices: Any) -> str:
    return f"[{shown(choices)}]" if choices and isinstance(choices, Mapping) else "['torch']"


def chosen(choices: Sequence[ExporterChoice]) -> list[Chosen]:
    """The exporters of a configuration, checked.

    Args:
        choices: names, or ``{name: options}``.

    Returns:
        one for each, in order.

    Raises:
        ValueError: for unknown or repeated names and unknown options.
        TypeError: if a choice is neither.
        ImportError: if one needs a package that is not installed.

    Example:
        >>> [c.name for c in chosen(["torch", {"pt2": {}}])]
        ['torch', 'pt2']
        >>> chosen(["onx"])
        Traceback (most recent call last):
        ...
        ValueError: unknown exporter 'onx'; choose from torch, onnx, tensorrt, qnn, pt2, openvino, ...
    """
    if isinstance(choices, str):
        raise TypeError(f"exporters={choices!r} must be a list; write [{choices!r}].")
    if not isinstance(choices, Sequence):
        raise TypeError(f"exporters={shown(choices)} must be a list of names; write {_as_list(choices)}.")
    pairs = [pair for choice in choices for pair in _pairs(choice)]
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"exporters name {', '.join(twice)} more than once; keep one each.")
    return [_checked(name, options) for name, options in pairs]


def _pairs(choice: ExporterChoice) -> list[tuple[str, Mapping[str, Any]]]:
    if isinstance(choice, str):
        return [(choice, {})]
    if isinstance(choice, Mapping) and choice:
        for name, options in choice.items():
            if options is not None and not isinstance(options, Mapping):
                raise TypeError(
                    f"options of exporter {name!r} must be a mapping, got {shown(options)}; write {{'opset': 20}}."
                )
        return [(name, options or {}) for name, options in choice.items()]
    raise TypeError(f"exporter {shown(choice)} must be a name, or a mapping such as {{'onnx': {{'opset': 20}}}}.")


def _checked(name: str, options: Mapping[str, Any]) -> Chosen:
    exporter = _known(name)
    exporter.check_installed()
    known = exporter.options() if options else ()
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"exporter {name!r} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}.")
    check = getattr(exporter.functions, "check_options", None)
    if check is not None:
        check(**options)
    return Chosen(exporter, dict(options))


def _known(name: str) -> Exporter:
    if name not in EXPORTERS:
        raise ValueError(f"unknown exporter {name!r}; choose from {', '.join(EXPORTERS)}.")
    return EXPORTERS[name]

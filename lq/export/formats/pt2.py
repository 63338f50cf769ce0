"""``pt2``: a ``torch.export`` program with quantize and dequantize operations.

It needs no lq, only the operations' registration: ``import torch.ao.quantization.fx._decomposed`` before
``torch.export.load``. As it is it computes in float, which is slow but runs wherever PyTorch runs; on x86 inductor
turns it into int8 kernels, with the passes of torchao.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from lq.compat.torch_private import (
    inductor_settings,
    quiet_export,
    register_decomposed,
    tree_leaves,
)
from lq.export.artifact.calls import in_order
from lq.export.artifact.files import write_file
from lq.export.artifact.manifest import MANIFEST_NAME
from lq.export.artifact.program_check import check_program
from lq.export.artifact.signature import Signature
from lq.export.formats.libraries import import_libraries, libraries_of
from lq.export.formats.low_bits import stored_archive
from lq.export.formats.program import export_program
from lq.fields import Field
from lq.tracing.structure import Inputs

FILE = "int8.pt2"


def export(prepared: fx.GraphModule, example: Inputs, directory: Path) -> dict[str, Any]:
    """Write ``int8.pt2``.

    Returns:
        whether the batch is dynamic, and how many arguments the program takes by position and which by name.

    Example:
        >>> import tempfile
        >>> from lq.ptq.static import prepare_static
        >>> x = torch.rand(8, 4)
        >>> prepared = prepare_static(torch.nn.Sequential(torch.nn.Linear(4, 2)), [x])
        >>> with tempfile.TemporaryDirectory() as place:
        ...     export(prepared, ((x,), {}), Path(place))
        {'dynamic_batch': True, 'positional': 1, 'named': [], 'libraries': []}
    """
    program, dynamic = export_program(prepared, example)
    program.example_inputs = None  # a batch of images would be most of the file
    content = io.BytesIO()
    torch.export.save(program, content)
    write_file(directory / FILE, stored_archive(content, prepared))
    args, kwargs = in_order(prepared, example)
    libraries = libraries_of(program)
    return {"dynamic_batch": dynamic, "positional": len(args), "named": list(kwargs), "libraries": libraries}


class ProgramModel:
    """A loaded program, which can be called as the original model is; a program only takes what it was exported with.

    Args:
        module: of the program.
        signature: of the original model.
        info: what :func:`export` has returned.

    Example:
        >>> class Scale(torch.nn.Module):
        ...     def forward(self, x, double=False):
        ...         return 2 * x if double else x
        >>> x = torch.ones(2)
        >>> signature = Signature.of(Scale(), ((x,), {"double": True}), x)
        >>> program = torch.export.export(Scale(), (x,), {"double": True})
        >>> model = ProgramModel(program.module(), signature, {"positional": 1, "named": ["double"]})
        >>> model(x=x)  # however it is called
        tensor([2., 2.])
    """

    def __init__(self, module: Callable[..., Any], signature: Signature, info: Mapping[str, Any]) -> None:
        self.module, self.signature, self.info = module, signature, info

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Tensors on the CPU."""
        self.signature.tensors(args, kwargs)  # refuses those that the program would leave unread
        values = {**self.signature.constants, **self.signature.arguments(args, kwargs)}
        positional = [values[name] for name in self.signature.parameters[: self.info["positional"]]]
        output = self.module(*positional, **{name: values[name] for name in self.info["named"]})
        return self.signature.restore([leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)])


def load(
    directory: Path, signature: Signature, info: Mapping[str, Any], threads: int | None = None
) -> Callable[..., Any]:
    """The program as a module; ``threads`` is torch's own setting.

    Example:
        >>> import tempfile
        >>> from lq.ptq.static import prepare_static
        >>> x = torch.rand(8, 4)
        >>> prepared = prepare_static(torch.nn.Sequential(torch.nn.Linear(4, 2)), [x])
        >>> with tempfile.TemporaryDirectory() as place:
        ...     info = export(prepared, ((x,), {}), Path(place))
        ...     model = load(Path(place), Signature.of(prepared, ((x,), {}), prepared(x)), info)
        >>> torch.allclose(model(x), prepared(x), atol=1e-5)
        True
    """
    register_decomposed()
    import_libraries(info)
    program = torch.export.load(io.BytesIO((directory / FILE).read_bytes()))
    given = Field(info, f"{directory / MANIFEST_NAME}: artifacts.pt2")
    checked = {
        "positional": given["positional"].integer(0, len(signature.parameters)),
        "named": [name.text() for name in given["named"].each()],
    }
    return ProgramModel(program.module(), signature, checked)


def check_file(directory: Path) -> None:
    """Refuse a program that would run code when it is loaded; see :mod:`lq.export.artifact.program_check`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     _ = Path(place, FILE).write_text("no archive")
        ...     check_file(Path(place))
        Traceback (most recent call last):
        ValueError: ...int8.pt2 is not an archive of PyTorch: ...
    """
    check_program(directory / FILE)


def lower(model: ProgramModel) -> ProgramModel:
    """Compile a loaded program to int8 kernels for this machine, once for each input shape.

    Not AOTInductor: with a dynamic batch its frozen int8 code (torch 2.15, torchao 0.18) returns wrong numbers.

    Raises:
        ImportError: if torchao is missing.

    Example:
        >>> net, x = torch.nn.ReLU(), torch.tensor([-1.0, 2.0])
        >>> loaded = ProgramModel(net, Signature.of(net, ((x,), {}), x), {"positional": 1, "named": []})
        >>> with torch.compiler.set_stance("force_eager"):  # spares the seconds that the first call takes to compile
        ...     lower(loaded)(x)
        tensor([0., 2.])
    """
    try:
        with quiet_export():
            # It registers the passes that put int8 weights into the layout of the kernels.
            import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # type: ignore[import-not-found, unused-ignore]  # noqa: F401
    except ImportError as error:
        raise ImportError("inductor's int8 kernels need torchao: pip install 'lightning-qat[pt2]'") from error
    return ProgramModel(compile_frozen(model.module), model.signature, model.info)


def compile_frozen(module: Callable[..., Any]) -> Callable[..., Any]:
    """``module`` compiled by inductor with its weights as constants, once for each input shape.

    Example:
        >>> with torch.compiler.set_stance("force_eager"):  # spares the seconds that the first call takes to compile
        ...     compile_frozen(torch.nn.ReLU())(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """
    compiled: dict[tuple[torch.Size, ...], Callable[..., Any]] = {}

    def call(*args: Any, **kwargs: Any) -> Any:
        shapes = tuple(leaf.shape for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        with torch.no_grad(), inductor_settings().patch(freezing=True):
            if shapes not in compiled:
                compiled[shapes] = torch.compile(module, dynamic=False)
            return compiled[shapes](*args, **kwargs)

    return call

"""What an export says of its file: what computes on integers, what in float, and what is moved."""

from __future__ import annotations

from collections import Counter
from typing import Any

from lq.export.formats.litert.translation import Translated
from lq.tracing.plan import Plan

_LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL")
_OF_LAYERS = ("conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d", "linear", "matmul", "bmm", "mm")


def describe(made: Translated) -> dict[str, Any]:
    """Layers that compute on integers by kind, what computes in float by name, and the number of transposes.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.translation import translate
        >>> from lq.export.formats.program import export_program
        >>> from lq.ptq.static import prepare_static
        >>> x = torch.tensor([[-1.0, 0.5, 1.0]])
        >>> prepared = prepare_static(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Softplus()), [x], "litert")
        >>> program, _ = export_program(prepared, ((x,), {}), signed=True)
        >>> describe(translate(program))
        {'int8_layers': {'FULLY_CONNECTED': 1}, 'float_layers': [], 'float_operators': ['softplus (softplus)'],
        'transposes': 0}
    """
    file = made.net.file
    int8 = Counter(
        operator.kind
        for operator in file.operators
        if operator.kind in _LAYERS and file.tensors[operator.outputs[0]].dtype == "int8"
    )
    return {
        "int8_layers": dict(int8),
        "float_layers": [name for name, kind in made.floating.items() if kind in _OF_LAYERS],
        "float_operators": [f"{name} ({kind})" for name, kind in made.floating.items() if kind not in _OF_LAYERS],
        "transposes": sum(operator.kind == "TRANSPOSE" for operator in file.operators),
    }


def floating(made: Translated, plan: Plan) -> str:
    """Names of all that computes in float, each with the user's line, where the plan knows it, or with its kind.

    Example:
        >>> import torch
        >>> from lq.backends.prepare import plan_of
        >>> from lq.export.formats.litert.translation import translate
        >>> from lq.export.formats.program import export_program
        >>> from lq.ptq.static import prepare_static
        >>> x = torch.tensor([[-1.0, 0.5, 1.0]])
        >>> prepared = prepare_static(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Softplus()), [x], "litert")
        >>> program, _ = export_program(prepared, ((x,), {}), signed=True)
        >>> floating(translate(program), plan_of(prepared))
        'softplus (softplus)'
    """
    rows = [(row.name, row.line) for row in plan.layers] + [(row.name, row.line) for row in plan.products]
    lines = {name: line for name, line in rows if line}
    return ", ".join(f"{name} ({lines.get(name, kind)})" for name, kind in made.floating.items())

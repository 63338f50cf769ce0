"""What is left to do to the graph that torch.onnx writes: names, zero points of their own, channels in fours."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from math import prod
from typing import Any, TypeGuard

from lq.export.formats.low_bits import fits_in_four_bits, two_in_a_byte
from lq.tracing.axes import ANY, BATCH
from lq.tracing.names import free_name

# Where more channels pay in ONNX Runtime (1.31, AVX-512): layers of one to six channels are 1.4 to 1.9 times as fast
# up to 3x3 and 1.1 to 1.3 times with 5x5; slower are those with 7x7 or fewer outputs, and those of 58 channels.
_MOST_CHANNELS, _FEWEST_OUTPUTS, _LARGEST_KERNEL = 7, 16, 5 * 5


def tidy(model: Any, outputs: Sequence[str] = (), axes: Sequence[Mapping[int, str]] = ()) -> None:
    """Make a QDQ graph, in place, one that people and runtimes can read.

    Nodes of layers get the names of their modules, outputs the keys of the original output, and first dimensions of any
    size "batch", or the names of their inputs where these share none, and other dynamic dimensions theirs; what the
    exporter notes of each node's origin goes, a quarter of the file of a small network. Every weight gets a zero point
    of its own: layers that share one are computed in float by OpenVINO 2026.4. The mean of an image becomes
    GlobalAveragePool, which ONNX Runtime computes on integers, unlike ReduceMean.

    Args:
        model: an ``onnx.ModelProto`` whose weights are initializers with names ending in ".weight".
        outputs: names of its outputs, where they are known.
        axes: for each input, names of dimensions that are dynamic.

    Example:
        >>> import onnx
        >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["" : 20]>
        ... g (float[s0,2,4,4] x) => (float[s0,2,1,1] y) <int64[2] axes = {2, 3}, float[s0,2,4,4] m> {
        ...     m = Relu(x)
        ...     y = ReduceMean(m, axes)
        ... }''')
        >>> tidy(model, ["features"])
        >>> [(node.op_type, *node.output) for node in model.graph.node]
        [('Relu', 'm'), ('GlobalAveragePool', 'features')]
        >>> model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
        'batch'
    """
    _name_layers(model)
    _name_outputs(model.graph, outputs)
    _own_zero_points(model)
    _pool_globally(model)
    _name_sizes(model.graph, axes)
    for node in model.graph.node:
        del node.metadata_props[:]


def _name_layers(model: Any) -> None:
    holders: dict[str, str] = {}
    taken = {name for node in model.graph.node if (name := node.name)}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0].endswith(".weight"):
            holders[node.output[0]] = node.input[0].removesuffix(".weight")
        elif node.op_type == "Transpose" and node.input[0] in holders:
            holders[node.output[0]] = holders[node.input[0]]
        elif len(node.input) > 1 and node.input[1] in holders:
            # ONNX Runtime refuses two nodes of one name; a layer may be called more than once.
            node.name = free_name(holders[node.input[1]], taken.__contains__)
            taken.add(node.name)


def _name_outputs(graph: Any, names: Sequence[str]) -> None:
    made = {name for node in graph.node for name in node.output}
    taken = made | {value.name for value in (*graph.input, *graph.initializer)}
    if len(names) != len(graph.output):
        return
    new: dict[str, str] = {}
    for value, wanted in zip(graph.output, names, strict=True):
        if value.name not in made or value.name in new:  # an input that is returned, or one tensor returned twice
            continue
        new[value.name] = free_name(wanted, taken.__contains__)
        taken.add(new[value.name])
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
    for value in (*graph.output, *graph.value_info):
        value.name = new.get(value.name, value.name)


def _own_zero_points(model: Any) -> None:
    import onnx

    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    shared = set()
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0].endswith(".weight") and node.input[2] in initializers:
            name = f"{node.input[0]}_zero_point"
            if name not in initializers:  # a weight may be read more than once
                initializers[name] = onnx.TensorProto()
                initializers[name].CopyFrom(initializers[node.input[2]])
                initializers[name].name = name
                model.graph.initializer.append(initializers[name])
            shared.add(node.input[2])
            node.input[2] = name
    _drop_unused(model.graph, shared)


def _pool_globally(model: Any) -> None:
    import onnx

    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.value_info}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    replaced = set()
    for node in model.graph.node:
        if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in constants:
            continue
        rank = ranks.get(node.input[0], 0)
        axes = {int(axis) % rank for axis in onnx.numpy_helper.to_array(constants[node.input[1]])} if rank > 2 else ()
        keeps = next((attribute.i for attribute in node.attribute if attribute.name == "keepdims"), 1)
        if keeps and axes == set(range(2, rank)):
            replaced.add(node.input[1])
            node.CopyFrom(onnx.helper.make_node("GlobalAveragePool", node.input[:1], node.output, node.name))
    _drop_unused(model.graph, replaced)


def _drop_unused(graph: Any, names: set[str]) -> None:
    unused = names - {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name in unused]:
        graph.initializer.remove(tensor)


def _name_sizes(graph: Any, axes: Sequence[Mapping[int, str]]) -> None:
    # torch.onnx takes the symbols that a finished program has for its dimensions.
    firsts = [(value.name, dims[0]) for value in graph.input if (dims := value.type.tensor_type.shape.dim)]
    is_batch = len({first.dim_param for _, first in firsts}) == 1
    names: dict[str, str] = {}
    for name, first in firsts:
        names.setdefault(first.dim_param, BATCH if is_batch else f"{name}_size")
    for value, dynamic in zip(graph.input, axes, strict=False):
        for dim, name in dynamic.items():
            if name not in (BATCH, ANY):
                names[value.type.tensor_type.shape.dim[dim].dim_param] = name
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = re.sub(r"\w+", lambda found: names.get(found[0], found[0]), dimension.dim_param)


def align_channels(model: Any) -> None:
    r"""Fill up the input channels of a first layer, three for a colour image, to a multiple of four, in place.

    ONNX Runtime has direct int8 convolutions for channels in fours, and first copies the patches of others (function
    ``MlasConvSymPackWSize`` in its onnxruntime/core/mlas/lib/convsym.cpp). The weights of the new channels are zeros:
    outputs stay the same to the bit.

    Args:
        model: an ``onnx.ModelProto``: a QDQ graph as :func:`tidy` leaves it.

    Example:
        >>> import numpy as np
        >>> import onnx
        >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["" : 20]>
        ... g (uint8[1,3,4,4] q) => (float[1,16,4,4] y) <float s = {0.5}, uint8 z = {3}, int8 no_z = {0}> {
        ...     x = DequantizeLinear(q, s, z)
        ...     weight = DequantizeLinear(w, s, no_z)
        ...     y = Conv(x, weight)
        ... }''')
        >>> model.graph.initializer.extend([onnx.numpy_helper.from_array(np.ones((16, 3, 1, 1), "int8"), "w")])
        >>> align_channels(model)
        >>> [tuple(tensor.dims) for tensor in model.graph.initializer if tensor.name == "w"]
        [(16, 4, 1, 1)]
        >>> [node.op_type for node in model.graph.node]
        ['DequantizeLinear', 'Pad', 'DequantizeLinear', 'Conv']
    """
    graph = model.graph
    makers = {output: node for node in graph.node for output in node.output}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    uses = Counter(chain.from_iterable(node.input for node in graph.node))
    for conv in [node for node in graph.node if node.op_type == "Conv"]:
        activation, weight = (makers.get(name) for name in conv.input[:2])
        if not _dequantizes(activation) or not _dequantizes(weight) or weight.input[0] not in weights:
            continue
        stored = weights[weight.input[0]]
        if uses[conv.input[1]] == uses[stored.name] == 1 and _pays(conv, stored.dims):
            _add_channels(graph, conv, activation, stored)


def _dequantizes(node: Any | None) -> TypeGuard[Any]:
    return node is not None and node.op_type == "DequantizeLinear"


def _pays(conv: Any, dims: Sequence[int]) -> bool:
    outputs, channels, *kernel = dims
    groups = next((attribute.i for attribute in conv.attribute if attribute.name == "group"), 1)
    return (
        groups == 1
        and channels % 4 != 0
        and channels <= _MOST_CHANNELS
        and outputs >= _FEWEST_OUTPUTS
        and prod(kernel) <= _LARGEST_KERNEL
    )


def _add_channels(graph: Any, conv: Any, activation: Any, weight: Any) -> None:
    """Pad the integers of activation and weight; what else takes the activation keeps it as it is."""
    import numpy as np
    from onnx import helper, numpy_helper

    values = numpy_helper.to_array(weight)
    added = [0, -values.shape[1] % 4, *[0] * (values.ndim - 2)]
    weight.CopyFrom(numpy_helper.from_array(np.pad(values, [(0, n) for n in added]), weight.name))
    for info in [info for info in graph.value_info if info.name in (weight.name, conv.input[1])]:
        graph.value_info.remove(info)  # the shape that it had

    name = f"{conv.name}.added_channels"
    graph.initializer.append(numpy_helper.from_array(np.array([0] * values.ndim + added), name))
    integers, *grid = activation.input  # scale and zero point, which may be left out where it is 0
    padded, dequantized = f"{name}_padded", f"{name}_dequantized"
    place = list(graph.node).index(conv)
    graph.node.insert(place, helper.make_node("Pad", [integers, name, *grid[1:]], [padded], padded))
    again = helper.make_node("DequantizeLinear", [padded, *grid], [dequantized], dequantized)
    graph.node.insert(place + 1, again)
    conv.input[0] = dequantized
    taken = chain.from_iterable(node.input for node in graph.node)
    if activation.output[0] not in {*taken, *(value.name for value in graph.output)}:
        graph.node.remove(activation)


def clip_integers(model: Any) -> None:
    """Move a Clip in front of a QuantizeLinear behind it, onto the integers, in place.

    Activations of few bits are clipped to less than their integer type holds. ONNX Runtime 1.32 merges a Clip of floats
    into the layer before it, which then runs in float; with the integers clipped it finds its int8 kernels. Rounding
    keeps the order of numbers, so the integers are the same.

    Args:
        model: an ``onnx.ModelProto``: a QDQ graph as :func:`tidy` leaves it.

    Example:
        >>> import onnx
        >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["" : 20]>
        ... g (float[2] x) => (uint8[2] q) <float s = {0.5}, uint8 z = {0}, float low = {0}, float high = {7.5}> {
        ...     clipped = Clip(x, low, high)
        ...     q = QuantizeLinear(clipped, s, z)
        ... }''')
        >>> clip_integers(model)
        >>> [(node.op_type, *node.input) for node in model.graph.node]
        [('QuantizeLinear', 'x', 's', 'z'), ('Clip', 'q_clip_input', 'q_clip_min', 'q_clip_max')]
        >>> [int(onnx.numpy_helper.to_array(tensor)) for tensor in model.graph.initializer if "clip" in tensor.name]
        [0, 15]
    """
    import numpy as np
    from onnx import helper, numpy_helper

    graph = model.graph
    makers = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for quantize in [node for node in graph.node if node.op_type == "QuantizeLinear"]:
        clip = makers.get(quantize.input[0])
        if clip is None or clip.op_type != "Clip":
            continue
        bounds = [*clip.input[1:], "", ""][:2]  # either may be left out
        if not {*filter(None, bounds), *quantize.input[1:]} <= constants.keys():
            continue
        scale, zero = (numpy_helper.to_array(constants[name]) for name in quantize.input[1:])
        low, high = (
            numpy_helper.to_array(constants[name]) if name else open_end
            for name, open_end in zip(bounds, (-np.inf, np.inf), strict=True)
        )
        ends = np.rint(np.stack((low, high)) / scale) + zero
        info = np.iinfo(zero.dtype)
        if ends[0] <= info.min and ends[1] >= info.max:
            continue  # the type itself saturates there
        integers, name = quantize.output[0], f"{quantize.output[0]}_clip"
        for end, value in zip(("min", "max"), ends.clip(info.min, info.max).astype(zero.dtype), strict=True):
            graph.initializer.append(numpy_helper.from_array(value, f"{name}_{end}"))
        quantize.input[0], quantize.output[0] = clip.input[0], f"{name}_input"
        clipped = helper.make_node("Clip", [f"{name}_input", f"{name}_min", f"{name}_max"], [integers], name)
        graph.node.insert(list(graph.node).index(quantize) + 1, clipped)
        if clip.output[0] not in {*chain.from_iterable(n.input for n in graph.node), *(v.name for v in graph.output)}:
            graph.node.remove(clip)
            _drop_unused(graph, set(clip.input[1:]))


def pack_weights(model: Any) -> None:
    """Store weights whose integers fit in four bits as INT4, in place.

    ONNX Runtime 1.32 computes a layer whose weight is dequantized from INT4 in float. A Cast to INT8 in between, which
    it folds when it loads the file, leaves it the int8 kernel.

    Args:
        model: an ``onnx.ModelProto`` of opset 21 or later, as :func:`tidy` leaves it.

    Example:
        >>> import onnx
        >>> model = onnx.parser.parse_model('''<ir_version: 10, opset_import: ["" : 21]>
        ... g () => (float[4] y) <int8[4] w = {-7, 0, 1, 7}, float s = {0.5}, int8 z = {0}> {
        ...     y = DequantizeLinear(w, s, z)
        ... }''')
        >>> pack_weights(model)
        >>> [(node.op_type, *node.input) for node in model.graph.node]
        [('Cast', 'w'), ('DequantizeLinear', 'w_int8', 's', 'z')]
        >>> len(model.graph.initializer[0].raw_data)  # bytes of four weights
        2
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.INT8}
    weights = [node.input[0] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in stored]
    for name in dict.fromkeys(weights):
        values = numpy_helper.to_array(stored[name])
        if not fits_in_four_bits(values):
            continue
        packed = TensorProto(name=name, data_type=TensorProto.INT4, dims=values.shape)
        packed.raw_data = two_in_a_byte(values).tobytes()
        stored[name].CopyFrom(packed)
        for info in [info for info in graph.value_info if info.name == name]:
            graph.value_info.remove(info)  # the type that it had
        integers = f"{name}_int8"
        for node in graph.node:
            node.input[:] = [integers if taken == name else taken for taken in node.input]
        graph.node.insert(0, helper.make_node("Cast", [name], [integers], integers, to=TensorProto.INT8))

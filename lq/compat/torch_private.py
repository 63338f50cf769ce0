"""What lq relies on in PyTorch that PyTorch does not document, under names of lq's own.

``tests/compat/test_torch_private.py`` tries each of them, and finds uses elsewhere: what a new version of PyTorch
changes is a failing test with a name, not a wrong result.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import HigherOrderOperator as HigherOrderOperator
from torch._ops import OpOverload as OpOverload
from torch.jit._trace import TracerWarning as TracerWarning
from torch.utils._pytree import SERIALIZED_TYPE_TO_PYTHON_TYPE as SERIALIZED_TYPE_TO_PYTHON_TYPE
from torch.utils._pytree import TreeSpec as TreeSpec
from torch.utils._pytree import keystr as keystr
from torch.utils._pytree import tree_flatten as tree_flatten
from torch.utils._pytree import tree_flatten_with_path as tree_flatten_with_path
from torch.utils._pytree import tree_leaves as tree_leaves
from torch.utils._pytree import tree_map as tree_map
from torch.utils._pytree import tree_map_only as tree_map_only
from torch.utils._pytree import tree_unflatten as tree_unflatten
from torch.utils._pytree import treespec_dumps as treespec_dumps
from torch.utils._pytree import treespec_loads as treespec_loads

BatchNorm = torch.nn.modules.batchnorm._BatchNorm
InstanceNorm = torch.nn.modules.instancenorm._InstanceNorm

GLOBAL_FORWARD_HOOKS = torch.nn.modules.module._global_forward_hooks  # of register_module_forward_hook
GLOBAL_PRE_HOOKS = torch.nn.modules.module._global_forward_pre_hooks  # of register_module_forward_pre_hook
_GLOBAL_BACKWARD_HOOKS = (  # of register_module_full_backward_hook, and of the one that runs before
    torch.nn.modules.module._global_backward_hooks,
    torch.nn.modules.module._global_backward_pre_hooks,
)
NAMESPACE_NN: Any = torch._C._nn
ANTIALIASED: tuple[Any, ...] = (
    torch.ops.aten._upsample_bilinear2d_aa.vec,
    torch.ops.aten._upsample_bicubic2d_aa.vec,
)
without_torch_functions: Any = torch._C.DisableTorchFunction
without_dispatch_modes: Any = torch.utils._python_dispatch._disable_current_modes

# The innermost pair of hooks on saved tensors, and whether there may be any, as there may not within torch.func.
innermost_saved_tensors_hooks: Callable[[bool], Any] = torch._C._autograd._top_saved_tensors_default_hooks
may_hook_saved_tensors: Callable[[], bool] = torch._C._autograd._saved_tensors_hooks_is_enabled  # type: ignore[attr-defined]

# What PyTorch dispatches on: all that an ordinary tensor on the CPU has.
_key: Any = torch._C.DispatchKey
_KEYS_OF_PLAIN = 0
for _kind in (_key.CPU, _key.AutogradCPU, _key.ADInplaceOrView, _key.AutocastCPU):
    _KEYS_OF_PLAIN |= torch._C.DispatchKeySet(_kind).raw_repr()


def is_backward() -> bool:
    """Whether this thread is in a backward pass, so that a forward in it is a recomputation.

    Example:
        >>> is_backward()
        False
    """
    return bool(torch._C._current_graph_task_id() != -1)


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` is running, such as ``vmap``, whose tensors are no ordinary ones.

    Example:
        >>> is_transformed()
        False
    """
    return torch._C._functorch.peek_interpreter_stack() is not None


def is_followed() -> bool:
    """Whether something follows every operation of this thread: a dispatch mode, a transform, or a trace.

    What does not go through PyTorch's operations would be missing in it.

    Example:
        >>> from torch.utils.flop_counter import FlopCounterMode
        >>> with FlopCounterMode(display=False):
        ...     inside = is_followed()
        >>> inside, is_followed()
        (True, False)
    """
    before = torch._C._dispatch_tls_is_dispatch_key_included(_key.PreDispatch)
    return before or torch._C._len_torch_dispatch_stack() > 0 or is_transformed() or is_traced()


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is strided memory of the CPU, and nothing else stands behind it.

    Something does behind those that are nested, batched in a backward pass, functional, negated when they are read, or
    zeros without memory.

    Example:
        >>> is_plain(torch.zeros(2)), is_plain(torch.zeros(2).to_sparse()), is_plain(torch._efficientzerotensor(2))
        (True, False, False)
    """
    return not torch._C._dispatch_keys(tensor).raw_repr() & ~_KEYS_OF_PLAIN


def times_computed(tensor: Tensor) -> int:
    """How many examples a tensor inside of ``vmap`` stands for; 1 for any other.

    Example:
        >>> found = []
        >>> _ = torch.vmap(lambda row: found.append(times_computed(row)) or row)(torch.ones(3, 2))
        >>> found, times_computed(torch.ones(3, 2))
        ([3], 1)
    """
    inner = tensor
    while torch._C._functorch.is_functorch_wrapped_tensor(inner):
        inner = torch._C._functorch.get_unwrapped(inner)
    return inner.numel() // tensor.numel() if tensor.numel() else 1


def is_traced() -> bool:
    """Whether ``torch.jit.trace`` follows what is computed, for which sizes are tensors.

    Example:
        >>> is_traced()
        False
    """
    return torch._C._get_tracing_state() is not None


def storage_key(tensor: Tensor) -> int:
    """The identity of a tensor's storage while it lives.

    Example:
        >>> x = torch.zeros(2, 2)
        >>> storage_key(x) == storage_key(x[0]), storage_key(x) == storage_key(x.clone())
        (True, False)
    """
    return int(tensor.untyped_storage()._cdata)


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written into.

    Example:
        >>> version_of(torch.zeros(1).add_(1))
        1
    """
    return tensor._version


def full_name(operation: OpOverload) -> str:
    """Name of an operation with its overload, as the dispatcher has it.

    Example:
        >>> full_name(torch.ops.aten.add.Tensor), full_name(torch.ops.aten.relu.default)
        ('aten::add.Tensor', 'aten::relu')
    """
    name: str = operation._schema.name
    return name if operation._overloadname == "default" else f"{name}.{operation._overloadname}"


def is_composite(operation: OpOverload) -> bool:
    """Whether an operation is made of others, which say what memory its result shares.

    Example:
        >>> is_composite(torch.ops.aten.reshape.default), is_composite(torch.ops.aten.relu.default)
        (True, False)
    """
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(full_name(operation), "CompositeImplicitAutograd"))


def has_operations_of(namespace: str) -> bool:
    """Whether any operation of a library, such as "torchvision", is registered.

    Example:
        >>> has_operations_of("aten"), has_operations_of("nobody")
        (True, False)
    """
    return any(name.startswith(f"{namespace}::") for name in torch._C._dispatch_get_all_op_names())


def is_watched_in_backward(module: nn.Module) -> bool:
    """Whether a hook of the backward pass makes views of a module's inputs and outputs.

    Example:
        >>> layer = nn.ReLU()
        >>> handle = layer.register_full_backward_hook(print)
        >>> is_watched_in_backward(layer), is_watched_in_backward(nn.ReLU())
        (True, False)
    """
    return bool(module._backward_hooks or module._backward_pre_hooks) or any(_GLOBAL_BACKWARD_HOOKS)


def was_compiled(module: nn.Module) -> bool:
    """Whether ``torch.compile(module)`` made it, or ``module.compile()`` changed it.

    Example:
        >>> was_compiled(nn.ReLU())
        False
    """
    return isinstance(module, torch._dynamo.OptimizedModule) or getattr(module, "_compiled_call_impl", None) is not None


def quantized_per_tensor(integers: Tensor, scale: float) -> Tensor:
    """The quantized tensor of these integers with zero point 0.

    Example:
        >>> quantized_per_tensor(torch.tensor([3], dtype=torch.int8), 0.5).dequantize()
        tensor([1.5000])
    """
    return torch._make_per_tensor_quantized_tensor(integers, scale, 0)


def quantized_per_channel(integers: Tensor, scale: Tensor, axis: int) -> Tensor:
    """The quantized tensor of these integers, with a scale for each slice along ``axis`` and zero points 0.

    Example:
        >>> quantized_per_channel(torch.ones(2, 1, dtype=torch.int8), torch.tensor([1.0, 2.0]), 0).dequantize().ravel()
        tensor([1., 2.])
    """
    zeros = torch.zeros_like(scale, dtype=torch.int64)
    return torch._make_per_channel_quantized_tensor(integers, scale.double(), zeros, axis)


def archive_reader(path: str) -> Any:
    """PyTorch's own reader of the archives that ``torch.save`` and ``torch.export.save`` write.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(torch.zeros(2), f"{folder}/x.pt")
        ...     print("data.pkl" in archive_reader(f"{folder}/x.pt").get_all_records())
        True
    """
    return torch._C.PyTorchFileReader(path)


def inductor_settings() -> Any:
    """The settings of inductor, imported when they are asked for.

    Example:
        >>> with inductor_settings().patch(freezing=True):
        ...     print(inductor_settings().freezing)
        True
    """
    from torch._inductor import config

    return config


def let_go_of_export(graph: fx.Graph) -> None:
    """Let Python free what ``torch.export`` knew of a graph when nobody has the graph any more.

    Its symbolic sizes hold tensors and calls whose shapes hold the sizes from C++, where no garbage collector looks
    (torch 2.14). Besides, caches hold the sizes of many exports. Each would stay for the rest of the process.

    Args:
        graph: whose nodes have values; it stays as it is.

    Example:
        >>> sizes, x = ({0: torch.export.Dim.AUTO},), torch.ones(3, 2)
        >>> program = torch.export.export(nn.ReLU(), (x,), dynamic_shapes=sizes, strict=False)
        >>> (first, *_) = program.graph.nodes
        >>> known = first.meta["val"].fake_mode.shape_env.tracked_fakes
        >>> before = len(known)
        >>> let_go_of_export(program.graph)
        >>> before, len(known), program.module()(torch.ones(5, 2)).shape
        (1, 0, torch.Size([5, 2]))
    """
    from torch._guards import detect_fake_mode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv  # brings sympy

    mode = detect_fake_mode([node.meta.get("val") for node in graph.nodes])
    sizes = None if mode is None else mode.shape_env
    for name in ("tracked_fakes", "fake_tensor_cache"):
        (getattr(sizes, name, None) or []).clear()
    for method in vars(ShapeEnv).values():
        if hasattr(method, "cache_clear"):
            method.cache_clear()


@contextmanager
def noting_constant_sizes(note: Callable[[], None]) -> Iterator[None]:
    """Call ``note`` whenever an export turns a dynamic size into a number.

    Example:
        >>> class Scaled(nn.Module):
        ...     def forward(self, x: Tensor) -> Tensor:
        ...         return x * len(x)  # a Python number
        >>> sizes, found = ({0: torch.export.Dim.AUTO},), set()
        >>> with noting_constant_sizes(lambda: found.add("a size became a number")):
        ...     _ = torch.export.export(Scaled(), (torch.ones(3, 2),), dynamic_shapes=sizes, strict=False)
        >>> found
        {'a size became a number'}
    """
    from torch.fx.experimental.symbolic_shapes import ShapeEnv  # brings sympy

    original = ShapeEnv._set_replacement

    def noting(self: ShapeEnv, symbol: Any, value: Any, *args: Any, **kwargs: Any) -> None:
        if getattr(value, "is_Integer", False):
            note()
        original(self, symbol, value, *args, **kwargs)

    ShapeEnv._set_replacement = noting  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        ShapeEnv._set_replacement = original  # type: ignore[method-assign]


@contextmanager
def layers_of_any_length() -> Iterator[None]:
    """Let exports leave open how long the input of a recurrent layer or ``max_pool1d`` is; PyTorch makes it a number.

    It composes a recurrent layer of its steps to find the shapes of its results, though the graph keeps the layer.

    Example:
        >>> net, sizes = nn.MaxPool1d(2), ({2: torch.export.Dim.AUTO},)
        >>> with layers_of_any_length():
        ...     program = torch.export.export(net, (torch.rand(1, 1, 6),), dynamic_shapes=sizes, strict=False)
        >>> program.module()(torch.rand(1, 1, 10)).shape
        torch.Size([1, 1, 5])
    """
    aten, key = torch.ops.aten, torch._C.DispatchKey.CompositeImplicitAutograd
    operations = (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)
    originals = {operation: operation.py_kernels[key] for operation in operations}
    kernels: dict[Any, Callable[..., Any]] = {aten.max_pool1d.default: _pooled_in_a_row}
    kernels |= {operation: partial(_recurrent_shapes, original) for operation, original in originals.items()}
    try:
        for operation, kernel in kernels.items():
            operation.py_kernels[key] = kernel
            operation._dispatch_cache.clear()
        yield
    finally:
        for operation in kernels:
            operation.py_kernels.pop(key, None)
            operation.py_kernels.update({key: originals[operation]} if operation in originals else {})
            operation._dispatch_cache.clear()


def _pooled_in_a_row(
    x: Tensor,
    kernel_size: list[int],
    stride: list[int] = [],  # noqa: B006
    padding: int | list[int] = 0,
    dilation: int | list[int] = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """``max_pool1d`` of an image of one row, whose shape C++ code does not make a constant."""
    along = [[first, *(each if isinstance(each, list) else [each])] for first, each in ((0, padding), (1, dilation))]
    sizes = [1, *kernel_size], [1, *(stride or kernel_size)]
    pooled: Tensor = torch.ops.aten.max_pool2d.default(x.unsqueeze(-2), *sizes, *along, ceil_mode)
    return pooled.squeeze(-2)


def _recurrent_shapes(decompose: Callable[..., Any], x: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    _, _, layers, _, _, bidirectional, batch_first = args if len(args) == 7 else [None] * 7
    is_open = layers is not None and x.dim() == 3 and isinstance(x.shape[1 if batch_first else 0], torch.SymInt)
    if not is_open or get_proxy_mode() is not None:
        return decompose(x, state, *args, **kwargs)
    states = state if isinstance(state, (list, tuple)) else [state]
    steps, samples = reversed(x.shape[:2]) if batch_first else x.shape[:2]
    out = x.new_empty((steps, samples, states[0].shape[-1] * (2 if bidirectional else 1)))
    return (out.transpose(0, 1) if batch_first else out, *map(torch.empty_like, states))


def register_decomposed() -> None:
    """Make ``torch.ops.quantized_decomposed`` known, which torch 2.15 does only where ``torch.ao`` is imported.

    Raises:
        ImportError: if neither torch nor torchao has them.

    Example:
        >>> register_decomposed()
        >>> has_operations_of("quantized_decomposed")
        True
    """
    try:
        import torch.ao.quantization.fx._decomposed  # noqa: F401
    except ImportError:
        try:
            import torchao.quantization.pt2e._decomposed  # type: ignore[import-not-found, unused-ignore]  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "This torch has no torch.ops.quantized_decomposed any more; pip install torchao, which has."
            ) from error


@contextmanager
def as_before_sharding(module: nn.Module) -> Iterator[None]:
    """Without what ``fully_shard`` has added, classes and hooks that gather parameters; the parameters stay shards.

    So a copy can be made, which :class:`torch.distributed.fsdp.FSDPModule` refuses.

    Args:
        module: that or one that holds such; it must not be called meanwhile.

    Example:
        >>> from torch.distributed.fsdp import fully_shard
        >>> torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        >>> net = fully_shard(nn.Linear(2, 2), mesh=torch.distributed.init_device_mesh("cpu", (1,)))
        >>> with as_before_sharding(net):
        ...     print(type(net).__name__)
        Linear
        >>> type(net).__name__
        'FSDPLinear'
        >>> torch.distributed.destroy_process_group()
    """
    from torch.distributed.fsdp import FSDPModule

    parts: list[Any] = list(module.modules())
    classes = [(part, type(part)) for part in parts if isinstance(part, FSDPModule)]
    # A module has a dictionary for each kind of hook, of which there are some ten.
    hooks = [(part, name, known) for part in parts for name, known in vars(part).items() if name.endswith("_hooks")]
    try:
        for part, kind in classes:
            part.__class__ = kind.__bases__[1]
        for part, name, known in hooks:
            part.__dict__[name] = type(known)((key, hook) for key, hook in known.items() if not _of_sharding(hook))
        yield
    finally:
        for part, kind in classes:
            part.__class__ = kind
        for part, name, known in hooks:
            part.__dict__[name] = known


def _of_sharding(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith(f"{torch.distributed.__name__}.fsdp.")


def stands_for_extra_state(value: Any) -> bool:
    """Whether it has no content: ``torch.distributed.checkpoint`` puts such in the place of what it was not given.

    Example:
        >>> stands_for_extra_state({"fake_quant": True})
        False
    """
    return type(value).__name__ == "_EXTRA_STATE" or getattr(value, "is_meta", False)


def unflatten_state_dict(flat: dict[str, Any], paths: dict[str, Any]) -> Any:
    """Nested dictionaries and lists of what ``torch.distributed.checkpoint`` has stored flat.

    Example:
        >>> unflatten_state_dict({"a.b": 1}, {"a.b": ("a", "b")})
        {'a': {'b': 1}}
    """
    from torch.distributed.checkpoint._nested_dict import unflatten_state_dict as unflatten

    return unflatten(flat, paths)


@contextmanager
def quiet_export() -> Iterator[None]:
    """Without what torch.export logs, and prints on stderr, of attempts that are repeated in another way.

    Example:
        >>> with quiet_export():
        ...     print(logging.getLogger("torch.export").isEnabledFor(logging.ERROR))
        False
    """
    names = ("torch.export", "torch._export", "torch.fx.experimental", "torch.utils._pytree", "torch._subclasses")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def computed_as_exported(operation: OpOverload, *args: Any, **kwargs: Any) -> Any:
    """What an operation returns of the values in a ``torch.export`` program; C++ code alone makes open sizes constants.

    Example:
        >>> computed_as_exported(torch.ops.aten.neg.default, torch.ones(1))
        tensor([-1.])
    """
    from torch._dispatch.python import enable_python_dispatcher
    from torch._guards import detect_fake_mode

    with detect_fake_mode((args, kwargs)) or nullcontext(), enable_python_dispatcher():
        return operation(*args, **kwargs)

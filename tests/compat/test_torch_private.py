"""A probe for each private name of PyTorch: which one a new version has changed is the name of the test that fails."""

import gc
import logging
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks, saved_tensors_hooks
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.nn import functional as F
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_full_backward_hook,
    register_module_full_backward_pre_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lq.compat import torch_private as private


def test_batch_norms_and_instance_norms_have_a_base_class() -> None:
    for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
        assert issubclass(kind, private.BatchNorm)
    assert issubclass(nn.InstanceNorm2d, private.InstanceNorm)
    assert not issubclass(nn.LayerNorm, private.BatchNorm)


def test_modules_keep_what_they_hold_in_dictionaries() -> None:
    norm = nn.BatchNorm2d(2)
    assert set(norm._parameters) == {"weight", "bias"}
    assert set(norm._buffers) == {"running_mean", "running_var", "num_batches_tracked"}
    assert list(nn.Sequential(norm)._modules) == ["0"]
    assert not norm._forward_hooks
    assert not norm._forward_pre_hooks
    handle = norm.register_forward_hook(lambda *_: None)
    assert len(norm._forward_hooks) == 1
    handle.remove()


def test_antialiased_resizing_is_two_operations() -> None:
    class Shrinks(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [F.interpolate(x, 4, mode=mode, antialias=True) for mode in ("bilinear", "bicubic")]

    graph = torch.export.export(Shrinks(), (torch.rand(1, 1, 8, 8),)).graph
    assert [node.target for node in graph.nodes if node.op == "call_function"] == list(private.ANTIALIASED)


def test_convolutions_compute_with_another_weight() -> None:
    conv, x = nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), torch.randn(1, 1, 5, 5)
    assert torch.equal(conv._conv_forward(x, conv.weight, conv.bias), conv(x))


def test_operations_say_what_they_are() -> None:
    operation = torch.ops.aten.add_.Tensor
    assert isinstance(operation, private.OpOverload)
    assert (operation._schema.name, operation._overloadname, operation._opname) == ("aten::add_", "Tensor", "add_")
    assert operation._schema.is_mutable
    assert [a.name for a in operation._schema.arguments if a.alias_info is not None and a.alias_info.is_write] == [
        "self"
    ]
    assert isinstance(torch.ops.higher_order.cond, private.HigherOrderOperator)


def test_functions_of_the_namespace_nn_are_those_of_functional() -> None:
    assert F.gelu is private.NAMESPACE_NN.gelu


def test_torch_functions_can_be_passed_by() -> None:
    seen = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            with private.without_torch_functions():
                return torch.relu(func(*args, **(kwargs or {})))

    x = torch.ones(1)
    with Mode():
        torch.neg(x)
    assert seen == [torch.neg]


def test_dispatch_modes_can_be_passed_by() -> None:
    seen = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    x = torch.ones(1)
    with Mode():
        with private.without_dispatch_modes():
            torch.neg(x)
        torch.exp(x)
    assert seen == [torch.ops.aten.exp.default]


def test_what_follows_operations_is_known_ahead_of_dispatch_too() -> None:
    seen = []
    make_fx(lambda x: seen.append(private.is_followed()) or x + 1, pre_dispatch=True)(torch.ones(1))
    assert (private.is_followed(), seen) == (False, [True])


def test_plain_tensors_have_nothing_behind_them() -> None:
    x = torch.ones(2, 2, requires_grad=True)
    assert private.is_plain(x)
    assert private.is_plain((x * 1)[:1])
    with torch.inference_mode():
        assert private.is_plain(torch.ones(2))
    others = x.to_sparse(), x.to("meta"), torch._efficientzerotensor(2), torch._to_functional_tensor(x.detach())
    assert not any(map(private.is_plain, others))


def test_the_innermost_hooks_on_saved_tensors_are_told() -> None:
    assert private.innermost_saved_tensors_hooks(False) is None
    pack, unpack = (lambda x: x), (lambda x: x)
    with saved_tensors_hooks(pack, unpack):
        assert private.innermost_saved_tensors_hooks(False) == (pack, unpack)
        assert private.may_hook_saved_tensors()
    with disable_saved_tensors_hooks("none here"):
        assert not private.may_hook_saved_tensors()


def test_a_backward_pass_is_known() -> None:
    seen = []
    x = torch.ones(1, requires_grad=True)
    x.register_hook(lambda grad: seen.append(private.is_backward()))
    (x * 2).backward()
    assert (private.is_backward(), seen) == (False, [True])


def test_versions_and_storages_tell_tensors_apart() -> None:
    x = torch.zeros(4)
    assert private.storage_key(x.view(2, 2)) == private.storage_key(x)
    before = private.version_of(x)
    x.view(2, 2)[0].add_(1)
    assert private.version_of(x) == before + 1


def test_quantized_tensors_are_made_of_integers() -> None:
    integers, scale = torch.tensor([[1, -2], [3, 4]], dtype=torch.int8), torch.tensor([0.5, 2.0])
    made = private.quantized_per_channel(integers, scale, 1)
    assert torch.equal(made.int_repr(), integers)
    assert torch.equal(made.dequantize(), integers * scale)
    assert torch.equal(private.quantized_per_tensor(integers, 0.5).dequantize(), integers * 0.5)


def test_libraries_of_operations_are_listed() -> None:
    assert private.has_operations_of("quantized")
    assert private.is_composite(torch.ops.aten.flatten.using_ints)
    assert not private.is_composite(torch.ops.aten.convolution.default)
    assert not private.has_operations_of("quantize")  # the name, not its beginning


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_compiled_modules_are_known(how: str) -> None:
    module = nn.Linear(2, 2)
    if how == "wrapped":
        assert private.was_compiled(torch.compile(module))  # type: ignore[arg-type]
    else:
        module.compile()
        assert private.was_compiled(module)


def test_archives_are_read_record_by_record(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(3)}, tmp_path / "x.pt")
    reader = private.archive_reader(str(tmp_path / "x.pt"))
    records = {name.rpartition("/")[2]: reader.get_record(name) for name in reader.get_all_records()}
    assert records["0"] == bytes(torch.ones(3).numpy().data)


def test_sizes_that_become_constants_are_noted() -> None:
    class Counts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / len(list(x))

    seen = []
    batch = torch.export.Dim.AUTO  # type: ignore[attr-defined]
    with private.quiet_export(), private.noting_constant_sizes(lambda: seen.append(sys._getframe())):
        torch.export.export(Counts(), (torch.ones(3, 2),), dynamic_shapes=({0: batch},), strict=False)
        assert seen
        seen.clear()
        torch.export.export(nn.Linear(2, 1), (torch.ones(3, 2),), dynamic_shapes=({0: batch},), strict=False)
    assert not seen


def test_exports_that_were_let_go_of_are_freed() -> None:
    def sizes() -> int:
        gc.collect()
        return sum(type(thing).__name__ == "ShapeEnv" for thing in gc.get_objects())

    def export(let_go: bool) -> None:
        batch = torch.export.Dim.AUTO  # type: ignore[attr-defined]
        program = torch.export.export(nn.Linear(2, 1), (torch.ones(3, 2),), dynamic_shapes=({0: batch},), strict=False)
        if let_go:
            private.let_go_of_export(program.graph)

    export(let_go=True)
    before = sizes()
    for _ in range(3):
        export(let_go=True)
    assert sizes() == before
    export(let_go=False)
    export(let_go=True)
    assert sizes() > before, "torch does it itself: let_go_of_export is not needed any more"


@pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights")
@pytest.mark.parametrize("kind", [torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN])
def test_recurrent_layers_are_exported_for_any_length(kind: Any) -> None:
    net, given = kind(3, 4, batch_first=True), (torch.rand(2, 6, 3),)
    shapes = {"input": {1: torch.export.Dim.AUTO}}
    for open_ in (True, False):
        with private.layers_of_any_length() if open_ else nullcontext():
            program = torch.export.export(net, given, dynamic_shapes=shapes, strict=False)
        (x,) = (node for node in program.graph.nodes if node.name == "input")
        assert is_concrete_int(x.meta["val"].shape[1]) is not open_
        assert program.module()(*given)[0].shape == (2, 6, 4)


def test_exports_are_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    with private.quiet_export():
        print("an attempt", file=sys.stderr)
        logging.getLogger("torch.export").warning("failed")
    assert capfd.readouterr().err == ""
    assert logging.getLogger("torch.export").level != logging.CRITICAL


def test_the_operations_of_quantization_are_registered() -> None:
    private.register_decomposed()
    operation = torch.ops.quantized_decomposed.quantize_per_tensor.default
    assert operation(torch.tensor([0.6]), 0.5, 0, -128, 127, torch.int8).tolist() == [1]


def test_inductor_freezes_weights_if_it_is_asked_to() -> None:
    assert private.inductor_settings().freezing is False


def test_structures_are_flattened_restored_and_written_down() -> None:
    tree = {"a": [1, (2, None)], "b": 3}
    leaves, spec = private.tree_flatten(tree)
    assert private.tree_unflatten(leaves, private.treespec_loads(private.treespec_dumps(spec))) == tree
    assert isinstance(spec, private.TreeSpec)
    assert private.tree_map(str, tree) == {"a": ["1", ("2", "None")], "b": "3"}
    assert private.tree_map_only(int, lambda x: -x, tree) == {"a": [-1, (-2, None)], "b": -3}
    paths, _ = private.tree_flatten_with_path(tree)
    assert next(private.keystr(path) for path, _ in paths) == "['a'][0]"
    assert all(isinstance(name, str) for name in private.SERIALIZED_TYPE_TO_PYTHON_TYPE)


def test_warnings_of_the_tracer_have_a_class() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.jit.trace(lambda x: x * int(x.sum()), torch.ones(1))
    assert any(issubclass(warning.category, private.TracerWarning) for warning in seen)


def test_what_splits_weights_can_be_taken_off_for_a_while(tmp_path: Path) -> None:
    from torch.distributed.fsdp import FSDPModule, fully_shard

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        own = net.register_forward_hook(lambda *_: None)
        fully_shard(net[0])
        fully_shard(net)
        with private.as_before_sharding(net):
            assert [type(part) for part in net.modules()] == [nn.Sequential, nn.Linear, nn.Linear]
            hooks = {
                name
                for part in net.modules()
                for name, known in vars(part).items()
                if name.endswith("_hooks") and known
            }
            assert hooks == {"_forward_hooks"}
            assert list(net._forward_hooks) == [own.id]
        assert isinstance(net, FSDPModule)
        assert len(net._forward_pre_hooks) == 1
        assert net(torch.ones(1, 4)).shape == (1, 2)
    finally:
        torch.distributed.destroy_process_group()


def test_distributed_checkpoints_have_a_placeholder_and_paths() -> None:
    from torch.distributed.checkpoint.state_dict import _EXTRA_STATE

    assert private.stands_for_extra_state(_EXTRA_STATE())
    paths = {"a.b": ("a", "b"), "a.c.0": ("a", "c", 0)}
    assert private.unflatten_state_dict({"a.b": 1, "a.c.0": 2}, paths) == {"a": {"b": 1, "c": [2]}}


def test_hooks_of_all_modules_are_known() -> None:
    assert not private.GLOBAL_FORWARD_HOOKS
    handle = register_module_forward_hook(lambda *_: None)
    assert len(private.GLOBAL_FORWARD_HOOKS) == 1
    handle.remove()
    assert not private.GLOBAL_FORWARD_HOOKS


def test_hooks_of_the_backward_pass_are_known() -> None:
    module = nn.ReLU()
    for register in (
        module.register_full_backward_hook,
        module.register_full_backward_pre_hook,
        register_module_full_backward_hook,
        register_module_full_backward_pre_hook,
    ):
        assert not private.is_watched_in_backward(module)
        handle = register(lambda *_: None)
        assert private.is_watched_in_backward(module)
        handle.remove()
    assert not private.is_watched_in_backward(module)

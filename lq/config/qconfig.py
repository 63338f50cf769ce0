"""What is quantized, and how: plain frozen data that survives YAML, pickling and ``weights_only`` loading."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lq.checks import as_dataclass, check_flag, shown
from lq.config.patterns import Named, matches
from lq.config.presets import PRESETS
from lq.config.specs import ActivationSpec, AnyGrid, WeightSpec
from lq.messages import some_of

BACKENDS = ("fx", "eager", "pt2e")
KEPT = ("ends", "nothing")
FLOAT_OR_INT8 = ("float", "int8")

# Of the mappings in YAML jsonargparse would make dataclasses with all settings, whether YAML names them or not, and
# nobody could tell what was given. So it sees mappings, for __post_init__ ("not": it reads what stands below one).
if not TYPE_CHECKING:
    _Weight = _Activation = dict[str, Any] | None
    _Overrides = dict[str, Any]
else:
    _Weight = WeightSpec | None
    _Activation = ActivationSpec | None
    _Overrides = dict[str, "LayerQConfig"]


@dataclass(frozen=True)
class LayerQConfig:
    """Grids of a layer's weight and of its output; an override changes only the settings that are given.

    Args:
        weight: grid of the weight, or a mapping of its settings; ``None`` changes nothing.
        activation: grid of the output, likewise.

    Example:
        >>> four_bits = LayerQConfig(weight={"quant_min": -7, "quant_max": 7})
        >>> QConfig(overrides={"fc": four_bits}).weight_spec("fc", nn.Linear(2, 2)).bits
        4
    """

    weight: _Weight = None
    activation: _Activation = None

    def __post_init__(self) -> None:
        _take_grids(self)


@dataclass(frozen=True)
class QConfig:
    """Which layers are quantized, and with which integers.

    Patterns in ``include``, ``exclude`` and ``overrides`` are globs over dotted module names
    (``"features.1*"``) or ``"type:ClassName"``. A pattern that matches nothing is an error at ``prepare``.

    Args:
        preset: name in :data:`PRESETS`; gives engine, weight and activation unless they are given here.
        weight: grid of all weights. It changes the settings of the preset that it gives, and keeps the others.
        activation: grid of all activations, likewise.
        engine: ``torch.backends.quantized`` engine that runs the converted model.
        include: quantize only layers that match one of these; empty means all.
        exclude: leave layers that match one of these in float.
        overrides: pattern -> :class:`LayerQConfig`. Every pattern that matches changes the settings that it gives, a
            later one on top of an earlier one; the two ends of a range are one setting.
        backend: who decides what is quantized. ``"fx"``: lq itself. ``"eager"``: the QuantStubs, FloatFunctionals and
            ``qconfig = None`` in a model that was written for torch.ao's eager mode. ``"pt2e"``: a quantizer of
            torchao's PT2E flow, whose integers and schemes replace those of ``weight`` and ``activation``.
        quantizer: for the backend "pt2e": ``"x86_inductor"``, ``"arm_inductor"``, ``"xnnpack"``; of ExecuTorch also
            ``"ethos_u"``, ``"vgf"``, ``"tosa"``, ``"cortex_m"``, ``"qnn"``, ``"coreml"``, ``"openvino"``,
            ``"samsung"``, ``"cadence"``; or the dotted path of a class or function (docs/backends.md).
        quantizer_options: arguments of the vendor's configuration, or of what the path names.
        fuse_add: whether a convolution whose result is only added to another tensor is left unrounded before the
            addition. OpenVINO and inductor compute in this way (exporters "openvino" and "pt2"). Other runtimes round
            the convolution and the sum; they compute such a convolution in float. ``None`` takes the preset's.
        keep: ``"ends"`` gives the first and the last layers, and the tensors that they read or return, the bits of the
            preset where ``weight`` and ``activation`` have fewer (LSQ, arXiv:1902.08153, section 3). Overrides come
            last. A network without any other layer has no ends. ``"nothing"`` makes no exception.
        attention: ``"int8"`` quantizes what attention's two products read: query, key, value and the probabilities
            of the softmax. ``"float"`` leaves both products to float.
        recurrence: ``"int8"`` quantizes the weights, inputs, hidden states and sums of gates of ``nn.LSTM``,
            ``nn.GRU``, ``nn.RNN`` and their cells, step by step. ``"float"`` leaves them to float.

    Raises:
        ValueError: on an unknown preset, backend or attention, or an engine that this build of PyTorch does not
            support.

    Example:
        >>> qconfig = QConfig("x86_vnni", exclude=("classifier.*",))
        >>> qconfig.weight_spec("features.0.0", nn.Conv2d(3, 8, 3)).quant_max
        127
        >>> few = QConfig(weight=WeightSpec(-7, 7, observer="mse"), overrides={"fc": {"weight": WeightSpec(-31, 31)}})
        >>> str(few.weight_spec("fc", nn.Linear(2, 2)))
        'int6 [-31, 31] per channel, mse'
    """

    preset: str = "portable"
    weight: _Weight = None
    activation: _Activation = None
    engine: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    overrides: _Overrides = field(default_factory=dict)
    backend: str = "fx"
    quantizer: str = ""
    quantizer_options: dict[str, Any] = field(default_factory=dict)
    fuse_add: bool | None = None
    keep: str = "ends"
    attention: str = "float"
    recurrence: str = "float"

    def __post_init__(self) -> None:
        self._take_mappings()
        if not isinstance(self.preset, str) or self.preset not in PRESETS:
            known = "; ".join(f"{name!r}: {preset.about}" for name, preset in PRESETS.items())
            meant = "".join(f" Did you mean {name!r}?" for name in get_close_matches(str(self.preset), PRESETS, n=1))
            raise ValueError(f"Unknown qconfig preset {self.preset!r}.{meant} Choose one of {known}.")
        if self.keep not in KEPT:
            raise ValueError(
                f"Unknown keep={self.keep!r}. Write keep='ends' to leave the first and last layers the bits of the "
                "preset, or keep='nothing'."
            )
        self._check_steps()
        if self.backend not in BACKENDS:
            raise ValueError(f"Unknown backend {self.backend!r}. Choose one of {list(BACKENDS)}.")
        if (self.backend == "pt2e") != bool(self.quantizer):
            raise ValueError(
                f"backend={self.backend!r} with quantizer={self.quantizer!r}: the backend 'pt2e' needs a quantizer, "
                "e.g. quantizer='x86_inductor', and the others have none."
            )
        for name in ("include", "exclude"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise ValueError(f"{name}={value!r} must be a list of patterns: write {name}=[{value!r}].")
            if not isinstance(value, Sequence) or not all(isinstance(pattern, str) for pattern in value):
                written = [str(item) for item in value] if isinstance(value, (list, tuple)) else ["layer1.*"]
                raise TypeError(f"{name}={shown(value)} must be a list of patterns, which are text: {name}={written}.")
            object.__setattr__(self, name, tuple(value))
        supported = torch.backends.quantized.supported_engines
        if self.resolved_engine not in supported:
            raise ValueError(
                f"Quantized engine {self.resolved_engine!r} is not supported by this CPU's torch; "
                f"supported: {[e for e in supported if e != 'none']}. Set qconfig.engine to one of these."
            )

    def _check_steps(self) -> None:
        for name in ("attention", "recurrence"):
            value = getattr(self, name)
            if value not in FLOAT_OR_INT8:
                raise ValueError(f"Unknown {name}={value!r}. Choose one of {list(FLOAT_OR_INT8)}.")
            if value == "int8" and self.backend != "fx":
                raise ValueError(
                    f"{name}='int8' with backend={self.backend!r}, which decides itself what is quantized. Write "
                    f"backend='fx', or leave {name} out."
                )

    def _take_mappings(self) -> None:
        """Grids and overrides as YAML gives them."""
        _take_grids(self)
        if not isinstance(self.overrides, Mapping):
            raise TypeError(f"overrides={shown(self.overrides)} must be a mapping of patterns to grids.")
        layers = {p: as_dataclass(LayerQConfig, layer, f"overrides[{p!r}]") for p, layer in self.overrides.items()}
        object.__setattr__(self, "overrides", layers)
        if self.fuse_add is not None:
            check_flag("fuse_add", self.fuse_add)

    @property
    def title(self) -> str:
        """Name of the preset, with backend, ``keep``, ``attention`` and ``recurrence`` if they are not the default."""
        if self.backend == "pt2e":
            name = f"pt2e {self.quantizer}"
        else:
            name = self.preset if self.backend == "fx" else f"{self.preset}, backend {self.backend}"
        name = name if self.keep == "ends" else f"{name}, keep {self.keep}"
        name = name if self.attention == "float" else f"{name}, attention {self.attention}"
        return name if self.recurrence == "float" else f"{name}, recurrence {self.recurrence}"

    @property
    def opens(self) -> bool:
        """Whether anything is computed step by step that PyTorch computes at once."""
        return "int8" in (self.attention, self.recurrence)

    @property
    def resolved_engine(self) -> str:
        """The engine that runs the converted model.

        Vendors' quantizers want weights of 8 bits, with which the kernels of the portable preset's engine saturate.
        """
        if self.engine is None and self.backend == "pt2e" and self.preset == "portable":
            return PRESETS["x86_vnni"].engine
        return self.engine or PRESETS[self.preset].engine

    @property
    def resolved_fuse_add(self) -> bool:
        """Whether residuals are added inside of convolutions."""
        return PRESETS[self.preset].fuse_add if self.fuse_add is None else self.fuse_add

    @property
    def round_cheap(self) -> bool:
        """Whether cheap operations between int8 layers are rounded one by one."""
        return PRESETS[self.preset].round_cheap

    @property
    def probabilities(self) -> ActivationSpec:
        """The grid of a softmax, of whose values the range is known."""
        return ActivationSpec(fixed_range=PRESETS[self.preset].probabilities)

    @property
    def factors(self) -> ActivationSpec | None:
        """What is different in the grids of queries, keys and values."""
        return PRESETS[self.preset].factors

    @property
    def resolved_weight(self) -> WeightSpec:
        """The weight grid where no override applies."""
        return _observed(self._own_weight(), [self.weight])

    def _own_weight(self) -> WeightSpec:
        own = PRESETS[self.preset].weight
        return own if self.weight is None else self.weight.onto(own)

    @property
    def resolved_activation(self) -> ActivationSpec:
        """The activation grid where no override applies."""
        own = PRESETS[self.preset].activation
        return own if self.activation is None else self.activation.onto(own)

    @property
    def learns_scales(self) -> bool:
        """Whether any scale is a parameter."""
        grids = [self.weight, self.activation, *(s for o in self.overrides.values() for s in (o.weight, o.activation))]
        return any(grid is not None and grid.learned_scale for grid in grids)

    def weight_spec(
        self, name: str, module: nn.Module, vendor: WeightSpec | None = None, kept: bool = False
    ) -> WeightSpec:
        """Grid of the weight of the layer ``name``; a vendor's integers and scheme yield to overrides only.

        ``kept`` is whether :attr:`keep` means this layer.
        """
        grid = self._own_weight()
        if kept:
            grid = _with_bits_of(PRESETS[self.preset].weight, grid)
        if vendor is not None:
            per_channel = grid.per_channel and vendor.per_channel
            grid = replace(grid, quant_min=vendor.quant_min, quant_max=vendor.quant_max, per_channel=per_channel)
        overrides = [override.weight for override in self._overrides(name, module)]
        for override in overrides:
            grid = grid if override is None else override.onto(grid)
        return _observed(grid, [self.weight, *overrides])

    def activation_spec(
        self,
        name: str,
        module: nn.Module | None,
        vendor: ActivationSpec | None = None,
        kept: bool = False,
        others: Sequence[Named] = (),
    ) -> ActivationSpec:
        """Grid of the output of the layer or operation ``name``; what a vendor gives yields to overrides only.

        ``kept`` is whether :attr:`keep` means this tensor. ``others`` are more names of it, with the modules that have
        them: of this very call of a layer, and of the activation that is absorbed.
        """
        grid = self.resolved_activation
        if kept:
            grid = _with_bits_of(PRESETS[self.preset].activation, grid)
        if vendor is not None:
            grid = vendor.onto(grid)
        for override in self._overrides(name, module, others):
            grid = grid if override.activation is None else override.activation.onto(grid)
        return grid

    def excludes(self, name: str, module: nn.Module) -> str | None:
        """Why the layer ``name`` stays float, or ``None`` if it is quantized."""
        if self.include and not any(matches(p, name, module) for p in self.include):
            return "not in include"
        return next((f"exclude {p!r}" for p in self.exclude if matches(p, name, module)), None)

    def check_patterns(self, modules: Mapping[str, nn.Module]) -> None:
        """Raise ``ValueError`` for a pattern that matches no module."""
        for kind in ("include", "exclude", "overrides"):
            for pattern in getattr(self, kind):
                if not any(matches(pattern, name, module) for name, module in modules.items()):
                    names = [name for name in modules if name]
                    raise ValueError(
                        f"qconfig.{kind}: pattern {pattern!r} matches no module. "
                        f"Use a glob over dotted names ({some_of(names, 12)}) or 'type:ClassName'."
                    )

    def without_effect(self, weights: Sequence[Named], values: Sequence[Named]) -> list[str]:
        """The grids of overrides that no weight and no rounded value has.

        Args:
            weights: names and modules of the quantized layers.
            values: those of what is rounded.

        Example:
            >>> qconfig = QConfig(overrides={"pool": LayerQConfig(activation=ActivationSpec(0, 15))})
            >>> qconfig.without_effect([("fc", None)], [("fc", None)])
            ["activation of 'pool'"]
        """
        return [
            f"{kind} of {pattern!r}"
            for pattern, layer in self.overrides.items()
            for kind, grid, places in (("weight", layer.weight, weights), ("activation", layer.activation, values))
            if grid is not None and not any(matches(pattern, *named) for named in places)
        ]

    def _overrides(self, name: str, module: nn.Module | None, others: Sequence[Named] = ()) -> list[LayerQConfig]:
        names = [(name, module), *others]
        return [c for p, c in self.overrides.items() if any(matches(p, *named) for named in names)]

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> QConfig:
        """The QConfig that :meth:`as_given` or :meth:`to_dict` made plain.

        Example:
            >>> qconfig = QConfig("x86_vnni", overrides={"fc": LayerQConfig(weight=WeightSpec(-7, 7))})
            >>> QConfig.from_dict(qconfig.as_given()) == qconfig
            True
        """
        overrides = {pattern: _specs_of(layer) for pattern, layer in plain["overrides"].items()}
        return cls(**{**plain, **_specs_of(plain), "overrides": {p: LayerQConfig(**s) for p, s in overrides.items()}})

    def as_given(self) -> dict[str, Any]:
        """Plain data with the settings that were given, from which :meth:`from_dict` makes an equal QConfig."""
        return {**dataclasses.asdict(self), **_as_given(self), "overrides": _overrides_as_given(self)}

    def to_dict(self) -> dict[str, Any]:
        """Plain data with the values of the preset filled in, for manifests."""
        return {
            **self.as_given(),
            "weight": dataclasses.asdict(self.resolved_weight),
            "activation": dataclasses.asdict(self.resolved_activation),
            "engine": self.resolved_engine,
            "fuse_add": self.resolved_fuse_add,
            "include": list(self.include),
            "exclude": list(self.exclude),
        }

    def differences(self, other: QConfig) -> list[str]:
        """The settings in which another QConfig differs, as ``name=own (here other)``.

        Example:
            >>> QConfig("qnnpack", engine="x86").differences(QConfig("portable", weight=WeightSpec(-127, 127)))
            ["preset='qnnpack' (here 'portable')", "engine='x86' (here None)"]
        """
        theirs, ours = (_with_grids(qconfig) for qconfig in (self, other))
        shown, here = self.as_given(), other.as_given()
        return [f"{key}={shown[key]!r} (here {here[key]!r})" for key in theirs if theirs[key] != ours[key]]


def _take_grids(config: QConfig | LayerQConfig) -> None:
    for name, kind in (("weight", WeightSpec), ("activation", ActivationSpec)):
        if getattr(config, name) is not None:
            object.__setattr__(config, name, as_dataclass(kind, getattr(config, name), name))


def _observed(grid: WeightSpec, given: Sequence[WeightSpec | None]) -> WeightSpec:
    """The grid with the observer that its bits want, unless one was given: min/max leaves 2 bits little but zeros."""
    named = any(spec is not None and "observer" in spec.given for spec in given)
    return grid if named or grid.bits > 2 else replace(grid, observer="mse")


def _with_bits_of(preset: AnyGrid, grid: AnyGrid) -> AnyGrid:
    """The grid with the integers and the scheme of the preset, if it has fewer of them."""
    names = {"quant_min", "quant_max", "symmetric"} & {f.name for f in dataclasses.fields(preset)}
    return grid if grid.bits >= preset.bits else replace(grid, **{name: getattr(preset, name) for name in names})


def _as_given(config: QConfig | LayerQConfig) -> dict[str, Any]:
    return {
        "weight": config.weight and config.weight.as_given(),
        "activation": config.activation and config.activation.as_given(),
    }


def _overrides_as_given(qconfig: QConfig) -> dict[str, Any]:
    return {pattern: _as_given(layer) for pattern, layer in qconfig.overrides.items()}


def _with_grids(qconfig: QConfig) -> dict[str, Any]:
    """Settings to compare: a grid that is spelled out is that of the preset if it has its settings."""
    weight, activation = qconfig.resolved_weight, qconfig.resolved_activation
    overrides = {
        pattern: (layer.weight and layer.weight.onto(weight), layer.activation and layer.activation.onto(activation))
        for pattern, layer in qconfig.overrides.items()
    }
    grids = {"weight": weight, "activation": activation, "overrides": overrides}
    return {**qconfig.as_given(), **grids}


def _specs_of(plain: Mapping[str, Any]) -> dict[str, Any]:
    kinds = {"weight": WeightSpec, "activation": ActivationSpec}
    return {name: None if plain[name] is None else kind(**plain[name]) for name, kind in kinds.items()}

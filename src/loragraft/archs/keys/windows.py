"""Sliding-window attention: which layers of a checkpoint see only the last positions, and how GGUF says so.

`attention.sliding_window` is the number of positions seen, the token's own included; `attention.sliding_window_pattern`
(an array of booleans) the layers that it is for, where it is not for those that the architecture has it for anyway.
llama.cpp knows both keys, but reads them for some architectures only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from loragraft.archs.config import Config
from loragraft.archs.keys.rule import GgufModel, Rule
from loragraft.errors import CheckpointError, UnsupportedError
from loragraft.formats.gguf.values import Metadata, Value, ValueType

_SLIDING, _FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Windows(Rule):
    """How one model_type of transformers says which layers have a window."""

    switch: str | None = None
    """The key that must be true for there to be any."""
    layers: Callable[[Config, int], bool] | None = None
    """Whether a layer has the window where `layer_types` does not say it; None: all have it, always."""
    names: tuple[str, ...] = ("max_window_layers",)
    """Keys that `layers` reads; also those that the switch makes meaningless."""
    usual: Callable[[int], bool] | None = None
    """Which layers have it in a GGUF without a pattern. None: all, and llama.cpp computes without any window, so that
    one as long as the context is left out; else llama.cpp honours it, and its converter writes it always."""

    @property
    def config_keys(self) -> frozenset[str]:
        named = {"sliding_window"}
        if self.switch is not None:
            named |= {self.switch, *self.names}
        if self.layers is not None:
            named |= {"layer_types", *self.names}
        return frozenset(named)

    def read(self, config: Config) -> tuple[int | None, ...]:
        """By layer. Raises CheckpointError for layers that are to have a window of no size."""
        n_layers = config.n_layers
        window: int | None = None
        if config.given("sliding_window") is not None:
            window = config.optional_integer("sliding_window") or None
        if self.switch is not None and not config.get(self.switch):
            window = None
        slides = self._slides(config, n_layers, window is not None)
        if window is None and any(slides):
            raise CheckpointError(config.path, f"layer_types has {_SLIDING}, but there is no sliding_window")
        return tuple(window if slide else None for slide in slides)

    def _slides(self, config: Config, n_layers: int, window: bool) -> Sequence[bool]:
        if self.layers is None:
            return [window] * n_layers
        types = config.get("layer_types")
        if types is None:
            return [window and self.layers(config, layer) for layer in range(n_layers)]
        if (
            not isinstance(types, list)
            or len(types) != n_layers
            or not {*map(str, types)} <= {_SLIDING, _FULL}
        ):
            raise CheckpointError(
                config.path,
                "bad layer_types",
                found=repr(types)[:80],
                expected=f"{n_layers} of {_FULL}, {_SLIDING}",
            )
        return [kind == _SLIDING for kind in types]

    def to_gguf(self, config: Config) -> Metadata:
        windows = self.read(config)
        size = next((window for window in windows if window is not None), None)
        if size is None or (self.usual is None and size >= config.context):
            return {}
        keys: Metadata = {"attention.sliding_window": Value.u32(size)}
        slides = [window is not None for window in windows]
        if slides != [self.usual is None or self.usual(layer) for layer in range(len(slides))]:
            pattern = Value.numbers(ValueType.BOOL, [int(slide) for slide in slides])
            keys["attention.sliding_window_pattern"] = pattern
        return keys

    def notes(self, config: Config, arch: str) -> list[str]:
        if self.usual is not None or not self.to_gguf(config):
            return []
        return [
            f"{config.path.name}: sliding_window = {config.get('sliding_window')} is kept, but llama.cpp attends to "
            f"everything in {arch}: longer texts differ there"
        ]

    def to_config(self, model: GgufModel) -> dict[str, Any]:
        windows = [layer.window for layer in model.h.layers]
        sizes = {window for window in windows if window is not None}
        if len(sizes) > 1 or (self.layers is None and sizes and None in windows):
            raise no_such_windows(model)
        size = next(iter(sizes), None)
        keys: dict[str, Any] = {"sliding_window": size}
        if self.switch is not None:
            keys[self.switch] = size is not None
        if self.layers is not None:
            slides = [window is not None for window in windows]
            keys["layer_types"] = [_SLIDING if slide else _FULL for slide in slides]
            if size is not None and "max_window_layers" in self.names:
                keys["max_window_layers"] = slides.index(True)
        return keys


def no_such_windows(model: GgufModel) -> UnsupportedError:
    return UnsupportedError(
        f"{model.h.arch}.attention.sliding_window",
        "no transformers model of this architecture has these windows",
        found=sorted({layer.window or 0 for layer in model.h.layers}),
    )


def _from_layer_on(config: Config, layer: int) -> bool:
    return layer >= (config.optional_integer("max_window_layers") or 0)


def _every_other_below(config: Config, layer: int) -> bool:
    return layer % 2 == 0 and layer < (config.optional_integer("max_window_layers") or 0)


EVERY_LAYER = Windows()
BY_LAYER_TYPES = Windows(layers=lambda config, layer: True, names=())
FROM_LAYER_ON = Windows(layers=_from_layer_on)
IF_USED = Windows(switch="use_sliding_window")
UPPER_LAYERS = Windows(switch="use_sliding_window", layers=_from_layer_on)
EVERY_OTHER_LAYER = Windows(switch="use_sliding_window", layers=_every_other_below)

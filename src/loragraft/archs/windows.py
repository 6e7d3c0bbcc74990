"""Sliding-window attention: which layers of a checkpoint see only the last positions, and how GGUF says so.

`attention.sliding_window` is the number of positions seen, the token's own included; `attention.sliding_window_pattern`
(an array of booleans) the layers that it is for, where it is not for all. llama.cpp knows both keys, but reads neither
for the architectures here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from loragraft.archs.config import Config
from loragraft.errors import CheckpointError
from loragraft.formats.gguf.values import Metadata, Value, ValueType

Windows = tuple[int | None, ...]
"""By layer: how many positions it sees, or None for all."""
_SLIDING, _FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True, slots=True)
class WindowRule:
    """How one model_type of transformers says which layers have a window."""

    switch: str | None = None
    """The key that must be true for there to be any."""
    layers: Callable[[Config, int], bool] | None = None
    """Whether a layer has the window where `layer_types` does not say it; None: all have it."""

    @property
    def keys(self) -> frozenset[str]:
        """Of config.json, that are read, or belong to the switch and say nothing more."""
        named = {"sliding_window"}
        if self.switch is not None:
            named |= {self.switch, "max_window_layers"}
        if self.layers is not None:
            named |= {"layer_types", "max_window_layers"}
        return frozenset(named)

    def read(self, config: Config) -> Windows:
        """Raises CheckpointError for layers that are to have a window of no size."""
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

    def write(self, windows: Windows) -> dict[str, Any] | None:
        """What config.json must say; None if this model_type cannot say it."""
        sizes = {window for window in windows if window is not None}
        if len(sizes) > 1 or (self.layers is None and sizes and None in windows):
            return None
        size = next(iter(sizes), None)
        keys: dict[str, Any] = {"sliding_window": size}
        if self.switch is not None:
            keys[self.switch] = size is not None
        if self.layers is not None:
            slides = [window is not None for window in windows]
            keys["layer_types"] = [_SLIDING if slide else _FULL for slide in slides]
            if size is not None:
                keys["max_window_layers"] = slides.index(True)
        return keys


def _from_layer_on(config: Config, layer: int) -> bool:
    return layer >= (config.optional_integer("max_window_layers") or 0)


def _every_other_below(config: Config, layer: int) -> bool:
    return layer % 2 == 0 and layer < (config.optional_integer("max_window_layers") or 0)


EVERY_LAYER = WindowRule()
IF_USED = WindowRule(switch="use_sliding_window")
UPPER_LAYERS = WindowRule(switch="use_sliding_window", layers=_from_layer_on)
EVERY_OTHER_LAYER = WindowRule(switch="use_sliding_window", layers=_every_other_below)


def window_keys(windows: Windows, context: int) -> Metadata:
    """The GGUF keys, without the architecture's prefix; none if no window is shorter than the `context`."""
    size = next((window for window in windows if window is not None), None)
    if size is None or size >= context:
        return {}
    keys: Metadata = {"attention.sliding_window": Value.u32(size)}
    if None in windows:
        slides = [int(window is not None) for window in windows]
        keys["attention.sliding_window_pattern"] = Value.numbers(ValueType.BOOL, slides)
    return keys

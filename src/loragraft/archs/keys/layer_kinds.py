"""What mixes positions in each layer, as `layer_types` says it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loragraft.archs.config import Config
from loragraft.errors import CheckpointError

#: What newer files call them.
_SAME = {"linear_attention": "mamba", "full_attention": "attention"}


def layer_kinds(
    config: Config, known: Sequence[str], usual: Callable[[Config, int], str], key: str = "layer_types"
) -> list[str]:
    """One of `known` for each layer; `usual` says it where config.json does not. Raises CheckpointError."""
    kinds = config.get(key)
    if isinstance(kinds, list):
        kinds = [_SAME.get(str(kind), kind) if kind not in known else kind for kind in kinds]
    if kinds is None:
        return [usual(config, layer) for layer in range(config.n_layers)]
    if not isinstance(kinds, list) or len(kinds) != config.n_layers or not {*map(str, kinds)} <= {*known}:
        raise CheckpointError(
            config.path,
            f"bad {key}",
            found=repr(kinds)[:80],
            expected=f"{config.n_layers} of {', '.join(known)}",
        )
    return [str(kind) for kind in kinds]

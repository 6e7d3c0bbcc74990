"""Whether an adapter changes anything, before it is put on a model: an untrained one fits as well as a trained one."""

from __future__ import annotations

from loragraft.adapters.lora import Adapter, LoraPair
from loragraft.units import names_text


def idle_targets(adapter: Adapter) -> list[str]:
    """The targets whose pair adds nothing, as one of its halves is all zero, or whose factors are all 1. (A DoRA pair
    may still rescale rows.)"""
    idle = [target for target, pair in adapter.pairs.items() if not changes(pair)]
    idle += [target for target, transform in adapter.transforms.items() if not transform.changes]
    return [target for target in idle if not _changed_otherwise(adapter, target)]


def _changed_otherwise(adapter: Adapter, target: str) -> bool:
    pair, transform = adapter.pairs.get(target), adapter.transforms.get(target)
    return pair is not None and transform is not None and (changes(pair) or transform.changes)


def changes(pair: LoraPair) -> bool:
    return pair.magnitude is not None or bool(pair.scale and pair.b.any() and pair.a.any())


def idle_note(adapter: Adapter) -> str | None:
    """A note on what in `adapter` changes nothing, if there is anything."""
    idle = idle_targets(adapter)
    if not idle:
        return None
    listed = names_text(idle)
    what, why, all_of_it = ("pairs", "B or A is zero", "all of its B are zero")
    if adapter.transforms:
        what, why, all_of_it = ("factors", "they are 1", "all of its factors are 1")
    if len(idle) < len(adapter.targets):
        count = f"{len(idle)} of its {len({*adapter.pairs, *adapter.transforms})} {what}"
        return f"{adapter.path}: {count} change nothing, as {why} ({listed})"
    return (
        f"{adapter.path}: this adapter changes nothing, as {all_of_it} ({listed}): was it trained, and saved "
        "from the trained model?"
    )

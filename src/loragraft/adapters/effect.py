"""Whether an adapter changes anything, before it is put on a model: an untrained one fits as well as a trained one."""

from __future__ import annotations

from loragraft.adapters.lora import Adapter, LoraPair


def idle_targets(adapter: Adapter) -> list[str]:
    """The targets whose pair adds nothing, as one of its halves is all zero. (A DoRA pair may still rescale rows.)"""
    return [target for target, pair in adapter.pairs.items() if not changes(pair)]


def changes(pair: LoraPair) -> bool:
    return pair.magnitude is not None or bool(pair.scale and pair.b.any() and pair.a.any())


def idle_note(adapter: Adapter) -> str | None:
    """A note on what in `adapter` changes nothing, if there is anything."""
    idle = idle_targets(adapter)
    if not idle:
        return None
    listed = ", ".join(idle[:3]) + (", ..." if len(idle) > 3 else "")
    if len(idle) < len(adapter.targets):
        count = f"{len(idle)} of its {len(adapter.pairs)} pairs"
        return f"{adapter.path}: {count} change nothing, as B or A is zero ({listed})"
    return (
        f"{adapter.path}: this adapter changes nothing, as all of its B are zero ({listed}): was it trained, and saved "
        "from the trained model?"
    )

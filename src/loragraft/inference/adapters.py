"""The adapters of a model that runs: which of them its program holds, and the set in use."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from loragraft.adapters.invocation import invoked_at
from loragraft.adapters.lora import Adapter
from loragraft.arrays import Ids
from loragraft.backends.batch import AdapterSet
from loragraft.backends.program import Program
from loragraft.errors import AdapterError
from loragraft.formats.source import ModelSource
from loragraft.huggingface.intake import STRICT, Intake
from loragraft.opening import AdapterArgument, AdapterArguments, AdapterSource, listed, read_adapters

#: Adapters that are kept ready though no set uses them: what was used last.
_IDLE = 8


@dataclass(frozen=True, slots=True)
class _Held:
    adapter: Adapter
    slot: int | None
    """None for one that has no pairs: it changes whole tensors, which was done when the model was loaded."""


class ModelAdapters:
    """Changing strengths is free; another adapter is read and packed once.

    `active`: the set in use, as batches name it. `loaded`: the adapters that the model was opened with; those of them
    that change whole tensors are in its weights, and must stay, at their strength.
    """

    def __init__(
        self,
        program: Program,
        source: ModelSource,
        loaded: Sequence[tuple[Adapter, float]] = (),
        intake: Intake = STRICT,
    ) -> None:
        self._program, self._source, self._intake = program, source, intake
        self._bound = {_key(adapter): (adapter, scale) for adapter, scale in loaded if not adapter.is_plain}
        self._held: dict[int, _Held] = {}
        self._paths: dict[Path, Adapter] = {}
        self.active: AdapterSet = ()
        self._invoked: dict[int, Adapter] = {}
        self.strengths: list[tuple[Adapter, float]] = []
        self._activate(loaded)

    @property
    def nbytes(self) -> int:
        """What the adapters in use take as float32."""
        return sum(adapter.nbytes for adapter, _ in self.strengths)

    def use(self, adapters: AdapterArguments, in_use: Iterable[AdapterSet] = ()) -> None:
        """Make `adapters` (paths, or pairs of path and strength) the set in use. A path that was read before is not
        read again. `in_use`: sets that are still needed. Raises AdapterError, and changes nothing then."""
        wanted = [self._known(argument) for argument in listed(adapters)]
        read = read_adapters(wanted, self._source, intake=self._intake, invoked=True)
        for key, (adapter, scale) in self._bound.items():
            if not any(key == _key(other) and scale == strength for other, strength in read):
                raise AdapterError(
                    adapter.path,
                    "changes whole tensors of the model as it was loaded, so it must stay in use",
                    expected=f"strength {scale}",
                    hint="load the model without it",
                )
        self._activate(read, [slot for chosen in in_use for slot, _ in chosen])

    def parts(self, ids: Ids, text: Callable[[Sequence[int]], str]) -> list[tuple[int, AdapterSet]]:
        """The parts of the sequence `ids`, each by its end and the adapters that work in it: all of them, but an aLoRA
        only from where its invocation tokens stand last. `text`: what tokens mean, for the error.

        Raises AdapterError if the tokens of one are not in `ids`: what is asked for is not left out silently."""
        starts: dict[int, int] = {}
        for slot, adapter in self._invoked.items():
            place = invoked_at(ids, adapter.invocation)
            if place is None:
                words = text(adapter.invocation)
                raise AdapterError(
                    adapter.path,
                    "works only from its invocation tokens on (aLoRA), which the prompt does not hold",
                    found=f"{len(ids)} other tokens",
                    expected=f"the tokens {list(adapter.invocation)[:16]}",
                    hint=f"put {words!r} where it is to begin, or leave the adapter out: without these tokens the base "
                    "is alone",
                )
            starts[slot] = place
        ends = sorted({*starts.values(), len(ids)} - {0})
        return [
            (end, tuple((slot, strength) for slot, strength in self.active if starts.get(slot, 0) < end))
            for end in ends
        ]

    def _known(self, argument: AdapterArgument) -> AdapterArgument:
        source, *strength = argument if isinstance(argument, tuple) else (argument,)
        known: AdapterSource = source
        if isinstance(source, str | PathLike):
            known = self._paths.get(Path(source).resolve(), source)
        return (known, *strength) if strength else known  # type: ignore[return-value]

    def _activate(self, adapters: Sequence[tuple[Adapter, float]], in_use: Collection[int] = ()) -> None:
        chosen: list[tuple[int, float]] = []
        invoked: dict[int, Adapter] = {}
        for adapter, strength in adapters:
            slot = self._slot(adapter)
            if slot is not None:
                chosen.append((slot, strength))
                if adapter.invocation and strength:
                    invoked[slot] = adapter
        self._program.check_adapters(tuple(chosen))
        self.active, self._invoked = tuple(chosen), invoked
        self.strengths = list(adapters)
        self._drop_idle({*in_use, *dict(self.active)})

    def _slot(self, adapter: Adapter) -> int | None:
        key = _key(adapter)
        held = self._held.pop(key, None)
        if held is None:
            plain = adapter.beside
            if not adapter.is_plain and key not in self._bound:
                plain = adapter  # refused, with the reason
            slot = (
                self._program.add_adapter(plain)
                if plain.pairs or plain.transforms or not plain.is_plain
                else None
            )
            held = _Held(adapter, slot)
            self._paths[adapter.path.resolve()] = adapter
        self._held[key] = held  # the last one used comes last
        return held.slot

    def _drop_idle(self, in_use: Collection[int]) -> None:
        idle = [
            key
            for key, held in self._held.items()
            if held.slot is not None and held.slot not in in_use and key not in self._bound
        ]
        for key in idle[: max(0, len(idle) - _IDLE)]:
            held = self._held.pop(key)
            if held.slot is not None:
                self._program.drop_adapter(held.slot)
            self._paths = {path: adapter for path, adapter in self._paths.items() if _key(adapter) != key}


def _key(adapter: Adapter) -> int:
    """The same for one adapter under several notes; the record is held as long as its key."""
    return id(adapter.pairs)

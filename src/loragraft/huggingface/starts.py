"""Adapters that were trained beside a base from which their start had been taken out (`init_lora_weights`).

The original base needs the start taken out again: W + s B A - s B0 A0. OLoRA's and PiSSA's are computed again from the
weight; of any, the adapter as it was before training may lie beside it, as PEFT's examples leave it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from loragraft.adapters import olora, pissa
from loragraft.adapters.advice import SAVE_CONVERTED
from loragraft.adapters.lora import LoraPair
from loragraft.adapters.peft_config import COMPUTED_STARTS, LoraSettings
from loragraft.errors import AdapterError, FormatError
from loragraft.formats.jsonfile import load_json
from loragraft.formats.peft import CONFIG
from loragraft.formats.source import ModelSource
from loragraft.formats.weight_files import ADAPTER, weight_files

Open = Callable[[Path], Mapping[str, LoraPair]]


#: LLaMA-Factory's copies of a PiSSA adapter say that they are plain, and lie beside the one for the original base.
_COPIES, _CONVERTED = ("pissa_backup", "pissa_init"), "pissa_converted"


def refuse_a_copy(folder: Path) -> None:
    """Raises AdapterError for LLaMA-Factory's copy of a PiSSA adapter: it fits no base that anybody has."""
    converted = folder.parent / _CONVERTED
    if folder.name in _COPIES and (converted / CONFIG).is_file():
        raise AdapterError(
            folder,
            "is a copy that LLaMA-Factory makes of a PiSSA adapter, for a base without what PiSSA took out of it",
            expected=f"{_CONVERTED}/ beside it, which is for the base itself",
            hint=f"name that one: {converted}",
        )


def for_the_original(
    folder: Path,
    base: ModelSource,
    settings: LoraSettings,
    pairs: Mapping[str, LoraPair],
    open_: Open,
    notes: list[str],
) -> dict[str, LoraPair]:
    """`pairs` for the base as it was before training took their start out; `open_` reads the start of a folder.

    Raises AdapterError if the start is neither there nor can be computed.
    """
    if settings.start == "loftq":
        raise AdapterError(
            folder / CONFIG,
            "LoftQ quantized the base before training, and took its own steps to it",
            found="init_lora_weights 'loftq'",
            expected="an adapter for a base that you can get",
            hint="set init_lora_weights to true there, and put it on the base that LoftQ saved beside it",
        )
    if (start := _start_folder(folder)) is not None:
        notes.append(
            f"{folder}: trained from {start.name}/, which is taken out again (init_lora_weights {settings.start!r})"
        )
        return _less(folder, pairs, open_(start))
    if settings.start not in COMPUTED_STARTS:
        raise AdapterError(
            folder / CONFIG,
            "init_lora_weights changed the base before training, in a way that cannot be computed again",
            found=repr(settings.start)[:80],
            expected="an adapter for the original base",
            hint=SAVE_CONVERTED,
        )
    compute = olora.for_the_original if settings.start == "olora" else pissa.for_the_original
    found = {}
    for name, pair in pairs.items():
        tensor = base.tensors.get(name)
        if tensor is None or len(tensor.shape) != 2 or not tensor.type.is_float:
            raise AdapterError(
                folder,
                f"{'OLoRA' if settings.start == 'olora' else 'PiSSA'}'s start cannot be recomputed from {name}",
                found="no such weight" if tensor is None else f"{tensor.type} {tensor.shape}",
                expected="the matrix in floating point that training started from",
                hint="merge it into the base before that is quantized",
            )
        found[name] = compute(pair, tensor)
    return found


def _less(folder: Path, pairs: Mapping[str, LoraPair], start: Mapping[str, LoraPair]) -> dict[str, LoraPair]:
    if pairs.keys() != start.keys() or any(
        pair.a.shape != start[name].a.shape for name, pair in pairs.items()
    ):
        raise AdapterError(
            folder, "the start beside it is another adapter's", expected="pairs of the same modules"
        )
    return {
        name: replace(
            pair,
            a=np.concatenate([pair.a, start[name].a], axis=-2),
            b=np.concatenate([pair.b, -start[name].b * np.float32(start[name].scale / pair.scale)], axis=-1),
        )
        for name, pair in pairs.items()
    }


def _start_folder(folder: Path) -> Path | None:
    """An adapter in or beside `folder` whose name says that it is a start, and whose configuration that it is plain."""
    for place in (folder, folder.resolve().parent):
        for child in sorted(
            path for path in place.iterdir() if path.is_dir() and "init" in path.name.lower()
        ):
            if (child / CONFIG).is_file() and weight_files(child, ADAPTER):
                try:
                    kind = load_json(child / CONFIG, FormatError).get("init_lora_weights")
                except FormatError:
                    continue
                if kind in (True, None):
                    return child
    return None

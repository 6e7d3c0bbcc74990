"""Opens what the user names: a model or an adapter, from whatever file it lies in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from numbers import Real
from os import PathLike
from typing import cast

from loragraft.adapters.advice import RUN_INVOKED
from loragraft.adapters.effect import idle_note
from loragraft.adapters.gguf_adapter import read_gguf_adapter
from loragraft.adapters.lora import Adapter
from loragraft.adapters.rebase import rebase
from loragraft.adapters.receipt import RECEIPTS, digest_of, receipts_in
from loragraft.archs import ARCHS
from loragraft.errors import AdapterError
from loragraft.formats.gguf.model import open_gguf
from loragraft.formats.gguf.scales import scale_of
from loragraft.formats.source import ModelSource
from loragraft.huggingface.contents import Kind, Role, recognise
from loragraft.huggingface.intake import STRICT, Intake
from loragraft.huggingface.model import open_checkpoint
from loragraft.huggingface.peft_placement import open_peft
from loragraft.system.files import named_path

AdapterSource = str | PathLike[str] | Adapter
AdapterArgument = AdapterSource | tuple[AdapterSource, float]
"""What the verbs take as an adapter: a path (or a loaded one), alone or with its strength."""
AdapterArguments = Sequence[AdapterArgument] | AdapterArgument
"""What they take as adapters: any number of them, or just one."""


#: Of a name from a file, in a note.
_MAX_NAME = 100


def open_model(
    path: str | PathLike[str], *, dequantize: bool = False, intake: Intake = STRICT
) -> ModelSource:
    """The model at `path`, as `huggingface.contents` finds it: a GGUF file (any file of a split one) or a Hugging Face
    folder, read lazily.

    `dequantize`: see `loragraft.huggingface.model.open_checkpoint`. Raises FormatError or UnsupportedError.
    """
    found = recognise(named_path(path), Role.MODEL)
    if found.kind is Kind.CHECKPOINT:
        model = open_checkpoint(found.path, dequantize=dequantize, intake=intake)
    else:
        model = open_gguf(found.path)
    model.notes[:0] = found.notes
    return model


def load_adapter(
    path: str | PathLike[str], base: ModelSource, *, intake: Intake = STRICT, invoked: bool = False
) -> Adapter:
    """The adapter at `path`, a PEFT or mlx-lm folder or a GGUF adapter, with its pairs on the tensors of `base`.

    `invoked`: whether one is wanted too that works only from its invocation tokens on (aLoRA). Raises FormatError for
    malformed files, AdapterError for an adapter of another model, or one that holds what is not honoured.
    """
    found = recognise(named_path(path), Role.ADAPTER)
    if found.kind is Kind.GGUF_ADAPTER:
        adapter = read_gguf_adapter(found.path, base)
    else:
        adapter = open_peft(found.path, base, mlx=found.kind is Kind.MLX_ADAPTER, intake=intake)
    _check_scales(adapter, base)
    if adapter.invocation and not invoked:
        raise AdapterError(
            adapter.path,
            "it works only from its invocation tokens on (aLoRA), which no merged weight can do",
            found=f"alora_invocation_tokens {list(adapter.invocation)[:8]}",
            expected="an adapter that always works",
            hint=RUN_INVOKED,
        )
    adapter.notes[:0] = found.notes
    if adapter.invocation:
        adapter.notes.append(
            f"{adapter.path}: works only from its invocation tokens {list(adapter.invocation)[:8]} on (aLoRA); before "
            "them the base is alone"
        )
    if note := idle_note(adapter):
        adapter.notes.append(note)
    return adapter


def outer_scale(target: str, base: ModelSource) -> str | None:
    """The tensor of the architecture's own that multiplies what `target` gives, adapter included; None: there is none,
    and an adapter on `target` can be."""
    outer = ARCHS.by_name(base.arch).outer_scales if ARCHS.has_name(base.arch) else frozenset()
    return (
        scale_of(target, base.tensors) if target.removesuffix(".weight").rpartition(".")[2] in outer else None
    )


def _check_scales(adapter: Adapter, base: ModelSource) -> None:
    """Raises AdapterError for a pair on a weight that the architecture itself scales, adapter included."""
    for target in {**adapter.pairs, **adapter.transforms}:
        if (scale := outer_scale(target, base)) is not None:
            raise AdapterError(
                adapter.path,
                f"adapts {target}, and the base multiplies what its experts give by numbers of their own",
                found=scale,
                expected="an adapter of other linears",
                hint="merge it in transformers with peft's merge_and_unload, and convert the result",
            )


def load_adapters(
    adapters: AdapterArguments, base: ModelSource, *, intake: Intake = STRICT, invoked: bool = False
) -> tuple[ModelSource, list[tuple[Adapter, float]]]:
    """All of `adapters`, each with its strength (1 where none is given), and the base that their pairs are for: `base`
    with the tensors that they replace as a whole (`loragraft.adapters.rebase`).

    Raises as `load_adapter`, and AdapterError for a strength that is not a finite number, or adapters that exclude each
    other.
    """
    loaded = read_adapters(adapters, base, intake=intake, invoked=invoked)
    merged = {digest: (name, scale) for name, scale, _, digest in receipts_in(base.metadata) if digest}
    if merged:
        loaded = [(_with_note_of_merged(adapter, base, merged), scale) for adapter, scale in loaded]
    return rebase(base, loaded), loaded


def _with_note_of_merged(
    adapter: Adapter, base: ModelSource, merged: Mapping[str, tuple[str, float]]
) -> Adapter:
    """`adapter`, with a note if its weights are among those that were merged into `base`, by their sha256."""
    known = merged.get(digest_of(adapter.files))
    if known is None:
        return adapter
    name = known[0] if len(known[0]) <= _MAX_NAME else f"{known[0][:_MAX_NAME]}..."
    note = (
        f"{adapter.path}: is in {base.path.name} already ({name} at {known[1]:g}, according to its {RECEIPTS}), "
        "and is added once more"
    )
    return replace(adapter, notes=[*adapter.notes, note])


def read_adapters(
    adapters: AdapterArguments, base: ModelSource, *, intake: Intake = STRICT, invoked: bool = False
) -> list[tuple[Adapter, float]]:
    """All of `adapters`, each with its strength, their pairs on the tensors of `base`. Raises as `load_adapter`, and
    AdapterError for a strength that is not a finite number."""
    loaded: list[tuple[Adapter, float]] = []
    for argument in listed(adapters):
        if isinstance(argument, tuple) and len(argument) != 2:
            raise AdapterError(
                "adapters",
                "hold a tuple of another length",
                found=len(argument),
                expected="a path and a strength",
            )
        source, scale = argument if isinstance(argument, tuple) else (argument, 1.0)
        adapter = (
            source
            if isinstance(source, Adapter)
            else load_adapter(source, base, intake=intake, invoked=invoked)
        )
        if not (isinstance(scale, Real) and isfinite(scale)):
            raise AdapterError(adapter.path, "bad strength", found=scale, expected="a finite number")
        if any(adapter.path.resolve() == other.path.resolve() for other, _ in loaded):
            adapter = replace(
                adapter, notes=[*adapter.notes, f"{adapter.path}: given twice, and added twice"]
            )
        loaded.append((adapter, float(scale)))
    return loaded


def listed(adapters: AdapterArguments) -> Sequence[AdapterArgument]:
    """As a list, also where it is one adapter, or one with its strength."""
    if isinstance(adapters, str | PathLike | Adapter):
        return [adapters]
    if isinstance(adapters, tuple) and len(adapters) == 2 and isinstance(adapters[1], Real):
        return [(adapters[0], adapters[1])]  # one, with its strength
    if not isinstance(adapters, Sequence):
        raise AdapterError("adapters", "not a list", found=repr(adapters)[:80], expected="paths")
    return cast("Sequence[AdapterArgument]", adapters)

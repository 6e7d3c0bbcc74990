"""A PEFT adapter on a base: every module's pair onto the GGUF weight that the module became."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from loragraft.adapters.kinship import doubt
from loragraft.adapters.lora import EMBEDDING, OUTPUT, Adapter, Floats, LoraPair
from loragraft.adapters.olora import for_the_original
from loragraft.adapters.peft import ModuleDelta, PeftTensors, read_tensors
from loragraft.adapters.peft_config import LoraSettings, read_settings
from loragraft.errors import AdapterError, naming
from loragraft.formats.checkpoint import Checkpoint
from loragraft.formats.peft import CONFIG, PeftFolder
from loragraft.formats.source import ModelSource, TensorSource
from loragraft.huggingface.adapter_tokenizer import adapter_tokenizer
from loragraft.huggingface.contents import repository_name
from loragraft.huggingface.intake import STRICT, Intake
from loragraft.huggingface.mapped_names import names_of
from loragraft.huggingface.mlx import MLX_WEIGHTS, read_mlx
from loragraft.huggingface.peft_replacement import Replacements
from loragraft.huggingface.resizing import grown, tokenizer_size
from loragraft.huggingface.targets import Targets, listed
from loragraft.huggingface.task import check_task
from loragraft.huggingface.tensor_names import Place
from loragraft.huggingface.tokenizer_file import TokenizerFile
from loragraft.huggingface.wrappers import TextNames, is_other_part, refuse_or_note


def open_peft(folder: Path, base: ModelSource, *, mlx: bool = False, intake: Intake = STRICT) -> Adapter:
    """The PEFT adapter in `folder`, or with `mlx` mlx-lm's, placed on `base`; every tensor of it is used, or it is an
    error.

    Raises CheckpointError for malformed files, AdapterError for what does not fit the base or is not honoured.
    """
    notes: list[str] = []
    if mlx:
        settings, tensors, config = read_mlx(folder)
        files = [folder / MLX_WEIGHTS]
    else:
        peft = PeftFolder.open(folder, allow_pickle=intake.allow_pickle)
        settings, tensors, config = (
            read_settings(folder / CONFIG, peft.config),
            read_tensors(peft),
            peft.config,
        )
        notes += peft.notes
        files = peft.files
    with naming(base.path):
        names = names_of(base)
    if EMBEDDING not in base.tensors:
        raise AdapterError(folder, f"needs a base with {EMBEDDING}", found=base.path.name)
    check_task(folder, config, tensors, notes)
    found = tensors.names
    tensors = _text_part(folder, tensors, intake, notes)
    if not mlx:
        tensors = _named(folder, config, tensors, names, base, notes)
    whole = Replacements(folder, base, names, settings, notes)
    replaced = whole.tensors(tensors)
    vocabulary = {**base.tensors, **replaced}[EMBEDDING].shape[0]
    if intake.resize_vocab:
        vocabulary = _resize(folder, base, replaced, vocabulary, notes)
    placement = _Placement(folder, base, names, settings, replaced)
    biases = {}
    for delta in tensors.deltas:
        placement.add(delta)
        _check_kind(folder, settings, delta)
        if delta.bias is not None:
            name, values = whole.bias(delta.module, delta.bias, settings.scale_of(delta.module))
            biases[name] = values
    pairs = placement.pairs()
    if settings.olora:
        pairs = {name: _without_olora(folder, base, pair) for name, pair in pairs.items()}
    if note := doubt(config.get("model" if mlx else "base_model_name_or_path"), base):
        notes.append(f"{folder}: {note}")
    alpha = settings.global_alpha
    return Adapter(
        folder,
        pairs,
        base.arch,
        alpha if all(pair.scale == (alpha or 0) / pair.rank for pair in pairs.values()) else None,
        notes,
        n_tensors=tensors.count,
        replaced=replaced,
        rows=whole.rows(tensors.rows, vocabulary),
        biases=biases,
        tokenizer=adapter_tokenizer(folder, base, vocabulary, notes),
        left_out=tuple(name for name in found if name not in set(tensors.names)),
        name=repository_name(folder.resolve()),
        files=tuple(files),
    )


def _resize(
    folder: Path, base: ModelSource, replaced: dict[str, TensorSource], rows: int, notes: list[str]
) -> int:
    """Rows for all tokens of the tokenizer beside the adapter, into `replaced`; how many there are then."""
    checkpoint = Checkpoint(folder, {}, [])
    if not TokenizerFile.is_there(checkpoint) or (wanted := tokenizer_size(checkpoint)) <= rows:
        return rows
    tensors = {**base.tensors, **replaced}
    for name in (EMBEDDING, OUTPUT):
        if name in tensors:
            replaced[name] = grown(tensors[name], wanted)
    replaced.setdefault(OUTPUT, replaced[EMBEDDING])  # tied, and so it stays
    notes.append(
        f"{folder}: {wanted - rows} tokens had no row in the embedding: each gets the mean of the others"
    )
    return wanted


def _text_part(folder: Path, tensors: PeftTensors, intake: Intake, notes: list[str]) -> PeftTensors:
    """`tensors` without those that adapt a vision or audio tower. Raises AdapterError unless `intake` lets them go."""
    others = [delta.module for delta in tensors.deltas if is_other_part(delta.module)]
    others += [name for name in (*tensors.trained, *tensors.rows) if is_other_part(name)]
    refuse_or_note(folder, others, intake, notes, AdapterError)
    return PeftTensors(
        [delta for delta in tensors.deltas if not is_other_part(delta.module)],
        {name: tensor for name, tensor in tensors.trained.items() if not is_other_part(name)},
        {name: tensor for name, tensor in tensors.frozen.items() if not is_other_part(name)},
        {name: rows for name, rows in tensors.rows.items() if not is_other_part(name)},
    )


def _named(
    folder: Path,
    config: Mapping[str, Any],
    tensors: PeftTensors,
    names: TextNames,
    base: ModelSource,
    notes: list[str],
) -> PeftTensors:
    """`tensors` without the pairs of modules that the configuration does not name: PEFT leaves them out. A note on
    them, and on modules that it names and the file has nothing for."""
    targets = Targets(folder / CONFIG, config, notes)
    if not targets.known:
        return tensors
    stray = [delta for delta in tensors.deltas if not delta.of_parameter and not targets.name(delta.module)]
    if stray:
        notes.append(
            f"{folder}: {len(stray)} of {len(tensors.deltas)} adapted modules "
            f"({listed([delta.module for delta in stray])}) are left out, as in "
            f"peft: target_modules of {CONFIG} does not name them; add them there if they were trained"
        )
        modules = {delta.module for delta in stray}
        tensors = replace(tensors, deltas=[delta for delta in tensors.deltas if delta.module not in modules])
        if not tensors.names:
            raise AdapterError(
                folder,
                f"holds no tensor that its configuration names: peft would change nothing ({listed(sorted(modules))})",
                found=f"target_modules {config.get('target_modules')!r}"[:120],
                expected="the modules that were trained",
                hint=f"name them in target_modules of {CONFIG}",
            )
    there = {names.module(delta.module) for delta in tensors.deltas}
    wanted = [module for module in names.modules(base.tensors) if targets.name(module)]
    missing = [module for module in wanted if module not in there]
    if missing and len(missing) < len(wanted):
        notes.append(
            f"{folder}: covers {len(wanted) - len(missing)} of the {len(wanted)} modules that target_modules of "
            f"{CONFIG} names; the others ({listed(missing)}) stay the base's"
        )
    return tensors


def _check_kind(folder: Path, settings: LoraSettings, delta: ModuleDelta) -> None:
    """The tensors must be what the configuration says that they are."""
    for key, said, there in (
        ("lora_bias", settings.lora_bias, delta.bias is not None),
        ("use_dora", settings.dora, delta.magnitude is not None),
    ):
        if said != there:
            what = "bias of B" if key == "lora_bias" else "lora_magnitude_vector"
            raise AdapterError(
                folder,
                f"{key} of {CONFIG} is not what its tensors say",
                found=f"{'a' if there else 'no'} {what} for {delta.module}",
                expected=f"{key} {said}",
            )
    if delta.magnitude is not None and (delta.embedding or delta.bias is not None):
        raise AdapterError(
            folder,
            f"DoRA of {delta.module} is not honoured: "
            + (
                "it rescales columns of the embedding"
                if delta.embedding
                else "its norm would count the bias of B"
            ),
            hint="merge it with peft (merge_and_unload), then convert what that saved",
        )


def _without_olora(folder: Path, base: ModelSource, pair: LoraPair) -> LoraPair:
    tensor = base.tensors.get(pair.target)
    if tensor is None or len(tensor.shape) != 2 or not tensor.type.is_float:
        raise AdapterError(
            folder,
            f"OLoRA's start cannot be had again from {pair.target}",
            found="no such weight" if tensor is None else f"{tensor.type} {tensor.shape}",
            expected="the matrix in floating point that training started from",
            hint="merge it into the base before that is quantized",
        )
    return for_the_original(pair, tensor)


Part = tuple[Floats, Floats, float, Floats | None]
"""A, B, scale and magnitude."""


@dataclass(slots=True)
class _Target:
    """The pairs for one GGUF weight: one, or one per expert or part of it (key None, or which)."""

    place: Place
    parts: dict[int | None, Part] = field(default_factory=dict)


class _Placement:
    def __init__(
        self,
        path: Path,
        base: ModelSource,
        names: TextNames,
        settings: LoraSettings,
        replaced: Mapping[str, TensorSource],
    ) -> None:
        self._path, self._base, self._names, self._settings = path, base, names, settings
        self._shapes = {name: tensor.shape for name, tensor in {**base.tensors, **replaced}.items()}
        self._shapes.setdefault(OUTPUT, self._shapes[EMBEDDING])  # tied
        self._targets: dict[str, _Target] = {}

    def add(self, delta: ModuleDelta) -> None:
        """Find the weights that `delta` changes, and keep its part for each."""
        module = delta.module
        places = self._names.places(f"{module}.weight")
        if places:
            scale = self._scale(module, delta.a.shape[0])
            if delta.embedding:
                self._add_embedding(places[0], delta, scale)
                return
            for place in places:
                self._add(place, module, delta.a, delta.b, scale, delta.magnitude)
            return
        stack = module
        while stack.endswith(".base_layer"):
            stack = stack.removesuffix(".base_layer")
        if stack.endswith(".experts") and self._names.places(f"{stack}.gate_up_proj"):
            self._add_stack(stack, delta)
            return
        raise AdapterError(
            self._path,
            f"adapts {module}, which the base has not",
            found=f"{self._base.path.name}: {self._base.arch}, {self._names.layers} layers",
            expected="the model that it was trained on",
        )

    def pairs(self) -> dict[str, LoraPair]:
        """All pairs, by target."""
        found = {}
        for name, target in self._targets.items():
            if target.place.tensor.fused is not None:
                found[name] = self._joined(name, target)
            else:
                one = None in target.parts
                found[name] = self._single(name, target) if one else self._stacked(name, target)
        return found

    def _scale(self, name: str, rank: int) -> float:
        expected = self._settings.rank_of(name)
        if rank != expected:
            raise AdapterError(
                self._path,
                f"the rank of {name} is not the one that {CONFIG} says",
                found=rank,
                expected=expected,
            )
        return self._settings.scale_of(name)

    def _add_embedding(self, place: Place, delta: ModuleDelta, scale: float) -> None:
        if place.name != EMBEDDING:
            raise AdapterError(self._path, f"{delta.module} is no embedding of the base", found=place.name)
        self._add(place, delta.module, delta.b.T, delta.a.T, scale)

    def _add_stack(self, stack: str, delta: ModuleDelta) -> None:
        """One of the parameters of a layer's fused experts; which one, its shape says."""
        fits = []
        for parameter in ("gate_up_proj", "down_proj"):
            places = self._names.places(f"{stack}.{parameter}")
            shape = self._shapes.get(places[0].name)
            if shape is None or not f"{stack}.{parameter}".endswith(self._settings.parameters):
                continue
            experts, out, columns = shape[0], shape[1] * len(places), shape[2]
            rank = self._settings.rank_of(f"{stack}.{parameter}")
            for swapped in (False, True):
                rows, width = (columns, out) if swapped else (out, columns)
                if delta.a.shape == (experts * rank, width) and delta.b.shape == (rows, rank * experts):
                    fits.append(
                        (swapped == self._settings.swapped_experts, parameter, places, experts, swapped)
                    )
        if not fits:
            raise AdapterError(
                self._path,
                f"the shapes of {delta.module} fit no experts of the base",
                found=f"A {delta.a.shape}, B {delta.b.shape}",
                expected="A (experts * r, in), B (out, r * experts)",
            )
        _, parameter, places, experts, swapped = max(fits, key=lambda fit: fit[0])
        name = f"{stack}.{parameter}"
        rank = delta.a.shape[0] // experts
        a = delta.a.reshape(experts, rank, -1)
        b = delta.b.reshape(delta.b.shape[0], rank, experts).transpose(2, 0, 1)
        if swapped:
            a, b = b.transpose(0, 2, 1), a.transpose(0, 2, 1)
        for place in places:
            self._add(place, name, a, b, self._settings.scale_of(name))

    def _add(
        self,
        place: Place,
        module: str,
        a: Floats,
        b: Floats,
        scale: float,
        magnitude: Floats | None = None,
    ) -> None:
        whole = self._shapes.get(place.name)
        if whole is None:
            raise AdapterError(
                self._path, f"adapts {module}, but the base has no {place.name}", found=self._base.path.name
            )
        a, b, magnitude = self._ordered(place, module, a, b, magnitude)
        shape = (*a.shape[:-2], b.shape[-2], a.shape[-1])
        expected = whole if place.expert is None else whole[1:]
        if (span := place.span) is not None:
            expected = (span[1] - span[0], *whole[1:])
        if shape != expected:
            raise AdapterError(
                self._path,
                f"the shape of its delta for {module} is not that of {self._base.path.name}'s {place.name}",
                found=shape,
                expected=expected,
            )
        parts = self._targets.setdefault(place.name, _Target(place)).parts
        which = place.expert if place.tensor.fused is None else place.tensor.fused.index
        if which in parts:
            raise AdapterError(self._path, f"adapts {module} twice")
        parts[which] = (np.ascontiguousarray(a), np.ascontiguousarray(b), scale, magnitude)

    def _ordered(
        self, place: Place, module: str, a: Floats, b: Floats, magnitude: Floats | None
    ) -> tuple[Floats, Floats, Floats | None]:
        """Columns of A, rows of B and of the magnitude as the weight has them in GGUF."""
        if place.values is not None:
            raise AdapterError(self._path, f"adapts {module}, whose values GGUF changes", found=place.name)
        try:
            order, columns = place.order(b.shape[-2]), place.column_order(a.shape[-1])
        except ValueError as problem:
            raise AdapterError(
                self._path, f"its delta for {module} does not fit ({problem})", found=(a.shape, b.shape)
            ) from None
        if columns is not None:
            a = a[..., columns]
        if order is None:
            return a, b, magnitude
        return a, b[..., order, :], None if magnitude is None else magnitude[order]

    def _single(self, name: str, target: _Target) -> LoraPair:
        return LoraPair(name, *target.parts[None])

    def _stacked(self, name: str, target: _Target) -> LoraPair:
        """Experts adapted one by one, as a stack: zeros for the others, and up to the largest rank."""
        experts, out, columns = self._shapes[name]
        parts: Mapping[int | None, Part] = target.parts
        scales = {scale for _, _, scale, _ in parts.values()}
        common = scales.pop() if len(scales) == 1 else 1.0
        rank = max(a.shape[0] for a, _, _, _ in parts.values())
        stack_a, stack_b = (
            np.zeros((experts, rank, columns), np.float32),
            np.zeros((experts, out, rank), np.float32),
        )
        lengths = np.zeros((experts, out), np.float32)
        decomposed = False
        for expert, (a, b, scale, magnitude) in parts.items():
            stack_a[expert, : a.shape[0]] = a
            stack_b[expert, :, : b.shape[1]] = b if common == scale else b * np.float32(scale / common)
            if magnitude is not None:
                lengths[expert], decomposed = magnitude, True
        if decomposed and len(parts) < experts:
            raise AdapterError(
                self._path,
                f"DoRA of some experts of {name} only is not honoured",
                found=f"{len(parts)} of {experts}",
                hint="merge it with peft (merge_and_unload), then convert what that saved",
            )
        return LoraPair(name, stack_a, stack_b, common, lengths if decomposed else None)

    def _joined(self, name: str, target: _Target) -> LoraPair:
        """Parts of a fused weight adapted one by one, as one pair: each has its own columns of B, and rows."""
        place, parts = target.place, target.parts
        fused = place.tensor.fused
        assert fused is not None
        scales = {scale for _, _, scale, _ in parts.values()}
        common = scales.pop() if len(scales) == 1 else 1.0
        b = np.zeros((self._shapes[name][0], sum(a.shape[0] for a, _, _, _ in parts.values())), np.float32)
        lengths = np.zeros(len(b), np.float32)
        decomposed = [magnitude is not None for _, _, _, magnitude in parts.values()]
        if any(decomposed) and (not all(decomposed) or len(parts) < place.parts):
            raise AdapterError(
                self._path,
                f"DoRA of a part of {name} only is not honoured",
                found=f"{sum(decomposed)} of {place.parts} parts",
                hint="merge it with peft (merge_and_unload), then convert what that saved",
            )
        done = 0
        for index, (_, own, scale, magnitude) in sorted(parts.items(), key=lambda item: item[0] or 0):
            first, last = replace(fused, index=index or 0).span(place.h, place.layer)
            block = own if common == scale else own * np.float32(scale / common)
            b[first:last, done : done + own.shape[1]] = block
            done += own.shape[1]
            if magnitude is not None:
                lengths[first:last] = magnitude
        a = np.concatenate([parts[index][0] for index in sorted(parts, key=lambda index: index or 0)])
        return LoraPair(name, a, b, common, lengths if any(decomposed) else None)

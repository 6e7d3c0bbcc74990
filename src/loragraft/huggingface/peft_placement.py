"""A PEFT adapter on a base: every module's pair onto the GGUF weight that the module became."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from loragraft.adapters.advice import merge_with_peft
from loragraft.adapters.kinship import doubt
from loragraft.adapters.lora import EMBEDDING, OUTPUT, Adapter
from loragraft.adapters.methods.method import Context, ModuleDelta
from loragraft.adapters.methods.vera import projections
from loragraft.adapters.peft import PeftTensors, read_tensors
from loragraft.adapters.peft_config import SCALES, LoraSettings, read_settings
from loragraft.adapters.tinker import check_output
from loragraft.errors import AdapterError, advising, naming, printable
from loragraft.formats.checkpoint import Checkpoint
from loragraft.formats.peft import CONFIG, PeftFolder
from loragraft.formats.source import ModelSource, TensorSource
from loragraft.huggingface.adapter_placement import AdapterPlacement
from loragraft.huggingface.adapter_tokenizer import adapter_tokenizer
from loragraft.huggingface.contents import repository_name
from loragraft.huggingface.intake import STRICT, Intake
from loragraft.huggingface.mapped_names import names_of
from loragraft.huggingface.mlx import MLX_WEIGHTS, read_mlx
from loragraft.huggingface.peft_replacement import Replacements
from loragraft.huggingface.resizing import grown, tokenizer_size
from loragraft.huggingface.starts import for_the_original, refuse_a_copy
from loragraft.huggingface.targets import Targets
from loragraft.huggingface.task import check_task
from loragraft.huggingface.tokenizer_file import TokenizerFile
from loragraft.huggingface.wrappers import TextNames, is_other_part, refuse_or_note
from loragraft.units import names_text

#: Keys that say which modules are adapted.
_NAMING = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


def open_peft(folder: Path, base: ModelSource, *, mlx: bool = False, intake: Intake = STRICT) -> Adapter:
    """The PEFT adapter in `folder`, or with `mlx` mlx-lm's, placed on `base`; every tensor of it is used, or it is an
    error.

    Raises CheckpointError for malformed files, AdapterError for what does not fit the base or is not supported.
    """
    with advising(f"what the adapter holds: loragraft inspect {folder}", AdapterError):
        refuse_a_copy(folder)
        return _open(folder, base, mlx, intake)


def _open(folder: Path, base: ModelSource, mlx: bool, intake: Intake) -> Adapter:
    notes: list[str] = []
    if mlx:
        settings, tensors, config = read_mlx(folder)
        files = [folder / MLX_WEIGHTS]
    else:
        peft = PeftFolder.open(folder, allow_pickle=intake.allow_pickle)
        settings, tensors, config = (
            read_settings(folder / CONFIG, peft.config),
            PeftTensors([]),
            peft.config,
        )
        most = max((prod(tensor.shape) for tensor in base.tensors.values()), default=0)
        tensors = read_tensors(peft, settings, most)
        notes += peft.notes
        files = peft.files
    trained_on = config.get("model" if mlx else "base_model_name_or_path")
    with advising(_advice(folder, trained_on, base), AdapterError):
        return _on_base(folder, base, settings, tensors, config, files, notes, mlx=mlx, intake=intake)


def _advice(folder: Path, trained_on: object, base: ModelSource) -> str:
    """What to do where the tensors do not fit the base."""
    if not isinstance(trained_on, str) or doubt(trained_on, base) is None:
        return f"is this the base that it was trained on? What it holds: loragraft inspect {folder}"
    name = printable(trained_on[:200])
    return f"it was trained on {name}, as it says: loragraft merge {name} --lora {folder} -o merged.gguf"


def _on_base(
    folder: Path,
    base: ModelSource,
    settings: LoraSettings,
    tensors: PeftTensors,
    config: Mapping[str, Any],
    files: Sequence[Path],
    notes: list[str],
    *,
    mlx: bool,
    intake: Intake,
) -> Adapter:
    with naming(base.path):
        names = names_of(base)
    if EMBEDDING not in base.tensors:
        raise AdapterError(folder, f"needs a base with {EMBEDDING}", found=base.path.name)
    check_task(folder, config, tensors, notes)
    found = tensors.names
    tensors = _text_part(folder, tensors, intake, notes)
    if tensors.by_tinker:
        check_output(folder, tied=OUTPUT not in base.tensors and "lm_head" in tensors.modules)
    elif not mlx:
        tensors = _named(folder, config, tensors, names, base, notes)
    whole = Replacements(folder, base, names, settings, notes)
    replaced = whole.tensors(tensors)
    vocabulary = {**base.tensors, **replaced}[EMBEDDING].shape[0]
    if intake.resize_vocab:
        vocabulary = _resize(folder, base, replaced, vocabulary, notes)
    placement = AdapterPlacement(folder, base, names, settings, replaced)
    biases = {}
    if tensors.pending:
        tensors = _drawn(folder, config, settings, tensors, names, base)
    for delta in tensors.deltas:
        delta = _pooled(folder, settings, delta, names, base) if settings.qalora_group else delta
        placement.add(delta)
        if settings.method is None:
            _check_kind(folder, settings, delta)
        if delta.bias is not None:
            name, values = whole.bias(delta.module, delta.bias, settings.scale_of(delta.module))
            biases[name] = values
    for one in tensors.transforms:
        placement.add_transform(one)
    pairs = placement.pairs()
    if settings.start:
        pairs = for_the_original(
            folder, base, settings, pairs, lambda start: open_peft(start, base, intake=intake).pairs, notes
        )
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
        transforms=placement.transforms,
        tokenizer=adapter_tokenizer(folder, base, vocabulary, notes),
        left_out=tuple(name for name in found if name not in set(tensors.names)),
        name=repository_name(folder.resolve()),
        files=tuple(files),
        settings={} if mlx or settings.method else {key: config[key] for key in SCALES if key in config},
        invocation=settings.invocation,
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
    modules = [module for module in tensors.modules if is_other_part(module)]
    others = modules + [name for name in (*tensors.trained, *tensors.rows) if is_other_part(name)]
    refuse_or_note(folder, others, intake, notes, AdapterError)
    return replace(
        tensors.without(modules),
        trained={name: tensor for name, tensor in tensors.trained.items() if not is_other_part(name)},
        frozen={name: tensor for name, tensor in tensors.frozen.items() if not is_other_part(name)},
        rows={name: rows for name, rows in tensors.rows.items() if not is_other_part(name)},
    )


def _pooled(
    folder: Path, settings: LoraSettings, delta: ModuleDelta, names: TextNames, base: ModelSource
) -> ModuleDelta:
    """QALoRA's A [r, in / group], which meets the means of groups of inputs, times their number, as an A of all inputs
    (peft/tuners/lora/variants.py)."""
    group = settings.qalora_group or 1
    places = names.places(f"{delta.module}.weight")
    shape = base.tensors[places[0].name].shape if places and places[0].name in base.tensors else (0,)
    if delta.a.shape[1] * group != shape[-1]:
        raise AdapterError(
            folder,
            f"use_qalora: its A of {delta.module} does not fit groups of {group} inputs",
            found=f"A {delta.a.shape}",
            expected=f"{shape[-1] / group:g} columns, for {shape[-1]} inputs",
            hint="is qalora_group_size in adapter_config.json the one that it was trained with?",
        )
    factor = np.float32(delta.a.shape[1] / group)
    return replace(delta, a=np.repeat(delta.a * factor, group, axis=1))


def _drawn(
    folder: Path,
    config: Mapping[str, Any],
    settings: LoraSettings,
    tensors: PeftTensors,
    names: TextNames,
    base: ModelSource,
) -> PeftTensors:
    """VeRA without its projections: they are drawn again, for the largest of the weights that it adapts."""
    shapes = []
    for module in tensors.pending:
        places = names.places(f"{module}.weight")
        if not places or len(shape := base.tensors[places[0].name].shape) != 2:
            raise AdapterError(
                folder, f"adapts {module}, but the base model has no such tensor", found=base.path.name
            )
        shapes.append(shape)
    context = Context(folder / CONFIG, config)
    rank = context.number("r", whole=True)
    for module, own in tensors.pending.items():
        if (found := own.get("vera_lambda_d")) is None or found.shape != (rank,):
            raise context.misfit(module, "no lambda_d" if found is None else found.shape, (rank,))
    context.shared.update(projections(context, max(s[0] for s in shapes), max(s[1] for s in shapes)))
    assert settings.method is not None
    made = [settings.method.build(context, module, own) for module, own in tensors.pending.items()]
    return replace(tensors, deltas=[one for one in made if isinstance(one, ModuleDelta)], pending={})


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
    parameters = {delta.module for delta in tensors.deltas if delta.of_parameter}
    stray = [module for module in tensors.modules if module not in parameters and not targets.name(module)]
    if stray:
        notes.append(
            f"{folder}: {len(stray)} of {len(tensors.modules)} adapted modules ({names_text(stray)}) are left out, as "
            f"in peft: target_modules of {CONFIG} does not name them; add them there if they were trained"
        )
        tensors = tensors.without(set(stray))
        if not tensors.names:
            raise AdapterError(
                folder,
                f"holds no tensor that its configuration names: peft would change nothing ({names_text(stray)})",
                found=", ".join(f"{key} {config[key]!r}" for key in _NAMING if config.get(key))[:160],
                expected="the modules that were trained",
                hint=f"correct {' and '.join(key for key in _NAMING if config.get(key))} in {folder / CONFIG}",
            )
    there = {names.module(module) for module in tensors.modules}
    wanted = [module for module in names.modules(base.tensors) if targets.name(module)]
    missing = [module for module in wanted if module not in there]
    if missing and len(missing) < len(wanted):
        notes.append(
            f"{folder}: covers {len(wanted) - len(missing)} of the {len(wanted)} modules that target_modules of "
            f"{CONFIG} names; the others ({names_text(missing)}) stay the base's"
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
                f"{key} of {CONFIG} disagrees with its tensors",
                found=f"{'a' if there else 'no'} {what} for {delta.module}",
                expected=f"{key} {said}",
                hint=f"are {CONFIG} and the weights of one training? If they are, set {key} there to "
                f"{str(there).lower()}",
            )
    if delta.magnitude is not None and (delta.embedding or delta.bias is not None):
        raise AdapterError(
            folder,
            f"DoRA of {delta.module} is not supported: "
            + (
                "it rescales columns of the embedding"
                if delta.embedding
                else "its norm would count the bias of B"
            ),
            hint=merge_with_peft(folder),
        )

"""Export a model as a Hugging Face checkpoint in NVFP4, for vLLM, TensorRT-LLM and SGLang.

gpt-oss goes to its own layout, with its experts in MXFP4. Layouts of NVFP4: NVIDIA Model-Optimizer (`modelopt`: weight,
weight_scale, weight_scale_2, input_scale) and vllm-project/compressed-tensors (`nvfp4-pack-quantized`: weight_packed,
weight_scale and reciprocal global scales).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from loragraft.adapters.collect import collect_deltas
from loragraft.adapters.lora import Adapter
from loragraft.archs import ARCHS
from loragraft.archs.graphs import model_graph
from loragraft.errors import CheckpointError, FormatError, LoragraftError, OutputError, naming
from loragraft.formats.gguf.model import model_files
from loragraft.formats.jsonfile import MAX_BYTES, load_json
from loragraft.formats.source import ModelSource
from loragraft.formats.textfile import read_file
from loragraft.huggingface.config_json import bias_flags, config_of
from loragraft.huggingface.tokenizer_json import generation_config, tokenizer_files
from loragraft.opening import AdapterArguments, load_adapters, open_model
from loragraft.progress import SILENT, Noted, Progress
from loragraft.streaming.change_kept import kept_note
from loragraft.streaming.checkpoint.contents import Contents
from loragraft.streaming.checkpoint.folder import NewFolder, check_new
from loragraft.streaming.checkpoint.layouts import LAYOUTS, Layout
from loragraft.streaming.checkpoint.shards import INDEX, file_plans, index_of, plan_shards
from loragraft.streaming.nvfp4_scales import measure_scales
from loragraft.streaming.spreading import spread_over, spread_pass
from loragraft.streaming.writing import FilePlan, write_files
from loragraft.system.files import files_of, named_path
from loragraft.system.output import OutputFile
from loragraft.system.threads import thread_count
from loragraft.system.workers import Workers
from loragraft.system.workers.crew import Crew

MAX_SHARD_BYTES = 5 * 10**9
"""Of weights in one file: huggingface_hub's own limit."""
#: What belongs to a checkpoint beside its weights and its config.json, and is copied from a source folder.
_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote."""

    path: Path
    algorithm: str
    """NVFP4, or W4A16_NVFP4 where no scales of the activations are known; MXFP4; the type of all weights, where none is
    quantized."""
    carried_over: int
    """Matrices whose codes and scales were exported as they were."""
    quantized: int
    """Matrices that were quantized now."""
    size: int
    """Of the weights, in bytes."""
    files: int
    """That hold them."""
    notes: list[str]
    """What the user should know."""


def export(
    source: str | PathLike[str] | ModelSource,
    output: str | PathLike[str],
    *,
    format: str = "modelopt",  # noqa: A002 (the word that everyone uses for it)
    adapters: AdapterArguments = (),
    max_shard_bytes: int = MAX_SHARD_BYTES,
    max_memory: int | None = None,
    resume: bool = False,
    threads: int | None = None,
    workers: Workers | Crew | None = None,
    progress: Progress = SILENT,
) -> ExportReport:
    """Write the model at `source` (a GGUF or a Hugging Face folder), with `adapters`, to the new folder `output`.

    Weights that are NVFP4 already, and that no adapter changes, keep their codes and scales bit for bit; all other
    linears are quantized, q/k/v and gate/up under one scale each, so that a change to one changes its fellows' codes.
    Embeddings, output, norms, biases and routers stay in floating point. Scales of the
    activations are exported if the source has them for every linear; else the checkpoint is weight-only (W4A16_NVFP4).
    Weights beyond `max_shard_bytes` go to further files, found by an index. `max_memory`: bytes that the threads'
    buffers may take together. `resume`: continue a run that was killed, in the folder that it left.
    `workers`: as for `merge`.

    Raises `FormatError`, `AdapterError`, `UnsupportedError`, `QuantizeError`, `OutputError`.
    """
    if format not in LAYOUTS:
        raise LoragraftError(format, "no such format", expected=" or ".join(LAYOUTS))
    folder = named_path(output, OutputError)
    check_new(folder, resume=resume)
    if workers is not None and isinstance(source, ModelSource):
        raise LoragraftError("workers", "open the model themselves", expected="its path")
    progress, work = Noted(progress), _Exporting(source, adapters, format, max_shard_bytes)
    model, loaded, contents, layout, notes = work.planned()
    each, threads = threads, thread_count(threads)
    tokenizers = [adapter.path for adapter, _ in loaded if adapter.tokenizer]
    with naming(model.path):
        shards = plan_shards(layout.tasks, max_shard_bytes)
        files = _side_files(model, contents, layout, notes, tokenizers)
    for note in notes:
        progress.note(note)
    if len(shards) > 1:
        files[INDEX] = _json_bytes(INDEX, index_of(shards))
    total = sum(shard.size for shard in shards)
    names = [*(shard.name for shard in shards), *files]
    with (
        NewFolder(folder, names, size=total, resume=resume),
        naming(model.path),
        spread_over(workers, each, partial(work.files, folder)) as spread,
    ):
        steps = [task.step for task in layout.tasks]
        measure_scales(
            steps, threads=threads, progress=progress, group=lambda step: layout.group_of[step.name]
        )
        write_files(
            file_plans(folder, shards),
            inputs=[*model_files(model), *(file for adapter, _ in loaded for file in files_of(adapter.path))],
            recipe=[(str(adapter.path), scale) for adapter, scale in loaded],
            run=None if spread is None else partial(spread_pass, how=spread),
            resume=resume,
            threads=threads,
            max_memory=max_memory,
            subject=model.path,
            progress=progress,
            label="Exporting",
        )
        for name, data in files.items():
            with OutputFile(folder / name, len(data)) as file:
                file.write_at(0, data)
    if loaded:
        with naming(model.path):
            wanted = "MXFP4_MOE" if contents.packed else "NVFP4"
            lost = kept_note(steps, f"merge to a GGUF with --type {wanted} --calibrate TEXT, and export that")
        if lost is not None:
            progress.note(lost)
    linears = len(layout.group_of)
    return ExportReport(
        folder,
        contents.algorithm,
        layout.carried_over,
        linears - layout.carried_over,
        total,
        len(shards),
        progress.notes,
    )


@dataclass(frozen=True)
class _Exporting:
    """What is to be exported, as it was asked for: what a worker needs to plan the same."""

    source: str | PathLike[str] | ModelSource
    adapters: AdapterArguments
    format: str
    max_shard_bytes: int

    def planned(self) -> tuple[ModelSource, list[tuple[Adapter, float]], Contents, Layout, list[str]]:
        model = self.source
        if not isinstance(model, ModelSource):
            model = open_model(model)
        model_graph(model)  # raises for a model that is not whole
        model, loaded = load_adapters(self.adapters, model)
        model, deltas = collect_deltas(model, loaded)
        notes = [*model.notes, *(note for adapter, _ in loaded for note in adapter.notes)]
        with naming(model.path):
            layout = LAYOUTS[self.format]
            contents = Contents(model, deltas, notes, keep_f16=layout.keeps_f16, mxfp4=layout.mxfp4)
            return model, loaded, contents, layout(contents), notes

    def files(self, folder: Path) -> list[FilePlan]:
        *_, layout, _ = self.planned()
        return file_plans(folder, plan_shards(layout.tasks, self.max_shard_bytes))


def _side_files(
    model: ModelSource, contents: Contents, layout: Layout, notes: list[str], tokenizers: Sequence[Path]
) -> dict[str, bytes]:
    """Everything but the weights: copied from a source folder, and the folders of adapters with `tokenizers` of their
    own; else made from the metadata."""
    files: dict[str, bytes] = {}
    objects: dict[str, Any] = {}
    if model.path.is_dir():
        config = load_json(model.path / "config.json", CheckpointError)
        for key in ("quantization_config", "compression_config"):
            config.pop(key, None)
        config["vocab_size"] = model.tensors["token_embd.weight"].shape[0]
        _, config_class = ARCHS.by_model_type(str(config["model_type"]))
        config.update(bias_flags(config_class, model.tensors))  # an adapter may have brought biases
        config["tie_word_embeddings"] = "output.weight" not in model.tensors
        for folder in (model.path, *tokenizers):
            for name in _COPIED:
                if (folder / name).is_file():
                    files[name] = read_file(folder / name, MAX_BYTES, CheckpointError)
    else:
        shapes = {name: tensor.shape for name, tensor in model.tensors.items()}
        freqs = model.tensors.get("rope_freqs.weight")
        config = config_of(model.metadata, shapes, None if freqs is None else freqs.rows(0, 1).view("<f4")[0])
        objects.update(tokenizer_files(model.metadata, notes))
        objects["generation_config.json"] = generation_config(model.metadata)
    config.pop("torch_dtype", None)
    config["dtype"] = config["torch_dtype"] = {"F16": "float16", "BF16": "bfloat16"}[contents.dtype.name]
    objects["config.json"] = config
    if layout.group_of:
        config["quantization_config"] = layout.quantization_config()
        objects.update(layout.extra_files())
    files.update({name: _json_bytes(name, value) for name, value in objects.items()})
    return files


def _json_bytes(name: str, value: Any) -> bytes:
    try:
        return json.dumps(value, indent=2, ensure_ascii=False).encode()
    except UnicodeEncodeError as problem:
        text = problem.object[problem.start : problem.end]
        raise FormatError(name, "a text for this file is not UTF-8", found=repr(text)) from None

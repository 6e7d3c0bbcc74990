"""Export a model as a Hugging Face checkpoint in NVFP4, for vLLM, TensorRT-LLM and SGLang.

Layouts: NVIDIA Model-Optimizer (`modelopt`: weight, weight_scale, weight_scale_2, input_scale) and
vllm-project/compressed-tensors (`nvfp4-pack-quantized`: weight_packed, weight_scale and reciprocal global scales).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from loragraft.adapters.collect import collect_deltas
from loragraft.archs import ARCHS
from loragraft.archs.graphs import model_graph
from loragraft.errors import CheckpointError, FormatError, LoragraftError, OutputError, naming
from loragraft.formats.jsonfile import MAX_BYTES, load_json
from loragraft.formats.output import OutputFile
from loragraft.formats.source import ModelSource
from loragraft.formats.textfile import read_file
from loragraft.huggingface.config_json import bias_flags, config_of
from loragraft.huggingface.tokenizer_json import generation_config, tokenizer_files
from loragraft.opening import AdapterArguments, load_adapters, open_model
from loragraft.progress import SILENT, Progress
from loragraft.streaming.checkpoint.contents import Contents
from loragraft.streaming.checkpoint.layouts import LAYOUTS, Layout
from loragraft.streaming.checkpoint.shards import INDEX, index_of, plan_shards, write_shards
from loragraft.system.threads import thread_count

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
    """NVFP4, or W4A16_NVFP4 where no scales of the activations are known."""
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
    threads: int | None = None,
    progress: Progress = SILENT,
) -> ExportReport:
    """Write the model at `source` (a GGUF or a Hugging Face folder), with `adapters`, to the new folder `output`.

    Weights that are NVFP4 already, and that no adapter changes, keep their codes and scales bit for bit; all other
    linears are quantized, q/k/v and gate/up under one scale each, so that a change to one changes its fellows' codes.
    Embeddings, output, norms, biases and routers stay in floating point. Scales of the
    activations are exported if the source has them for every linear; else the checkpoint is weight-only (W4A16_NVFP4).
    Weights beyond `max_shard_bytes` go to further files, found by an index.

    Raises `FormatError`, `AdapterError`, `UnsupportedError`, `OutputError`.
    """
    if format not in LAYOUTS:
        raise LoragraftError(format, "no such format", expected=" or ".join(LAYOUTS))
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(folder, "is there already", expected="a new or empty folder")
    model = source if isinstance(source, ModelSource) else open_model(source)
    model_graph(model)  # raises for a model that is not whole
    model, loaded = load_adapters(adapters, model)
    model, deltas = collect_deltas(model, loaded)
    notes = [*model.notes, *(note for adapter, _ in loaded for note in adapter.notes)]
    threads = thread_count(threads)
    tokenizers = [adapter.path for adapter, _ in loaded if adapter.tokenizer]
    with naming(model.path):
        contents = Contents(model, deltas, notes, keep_f16=LAYOUTS[format].keeps_f16, threads=threads)
        layout = LAYOUTS[format](contents)
        shards = plan_shards(layout.tasks, max_shard_bytes)
        files = _side_files(model, contents, layout, notes, tokenizers)
    if len(shards) > 1:
        files[INDEX] = _json_bytes(INDEX, index_of(shards))
    created = _make_folder(folder)
    try:
        write_shards(folder, shards, threads, progress)
        for name, data in files.items():
            with OutputFile(folder / name, len(data)) as file:
                file.write_at(0, data)
    except BaseException:
        for path in folder.iterdir():  # it was empty: whatever is there is ours
            path.unlink()
        if created:
            folder.rmdir()
        raise
    for note in notes:
        progress.note(note)
    carried = sum(scale is None for _, scale in contents.linears.values())
    size = sum(shard.size for shard in shards)
    return ExportReport(
        folder, contents.algorithm, carried, len(contents.linears) - carried, size, len(shards), notes
    )


def _make_folder(folder: Path) -> bool:
    """Whether it had to be made."""
    try:
        there = folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        return not there
    except OSError as problem:
        raise OutputError(folder, f"cannot be made: {problem.strerror}") from None


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
        _, config_class = ARCHS.by_model_type(str(config["model_type"]), "config.json")
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
    config["dtype"] = config["torch_dtype"] = {"F16": "float16", "BF16": "bfloat16"}[contents.dtype]
    config["quantization_config"] = layout.quantization_config()
    objects["config.json"] = config
    objects.update(layout.extra_files())
    files.update({name: _json_bytes(name, value) for name, value in objects.items()})
    return files


def _json_bytes(name: str, value: Any) -> bytes:
    try:
        return json.dumps(value, indent=2, ensure_ascii=False).encode()
    except UnicodeEncodeError as problem:
        text = problem.object[problem.start : problem.end]
        raise FormatError(name, "a text for this file is not UTF-8", found=repr(text)) from None

"""A Hugging Face folder as a `ModelSource`: what llama.cpp's convert_hf_to_gguf makes of it, without making it.

Every tensor is read row by row when it is asked for, with the rows already in GGUF's order and experts stacked, so a
checkpoint of any size converts in the memory of a few blocks of rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from loragraft.archs import ARCHS, Arch, ConfigClass
from loragraft.archs.config import Config
from loragraft.archs.graphs import model_graph
from loragraft.errors import CheckpointError, naming
from loragraft.formats.checkpoint import Checkpoint
from loragraft.formats.gguf.values import QUANTIZATION_VERSION, Metadata, Value, ValueType
from loragraft.formats.source import ModelSource, TensorSource
from loragraft.formats.views import in_memory, values_of
from loragraft.huggingface.config_json import biased_linears
from loragraft.huggingface.hyperparameters import check_expressible, hyperparameters
from loragraft.huggingface.intake import STRICT, Intake
from loragraft.huggingface.model_card import general_metadata
from loragraft.huggingface.placement import Placement
from loragraft.huggingface.resizing import grown, padded, tokenizer_size
from loragraft.huggingface.tensor_names import TensorNames
from loragraft.huggingface.vocab import tokenizer_metadata
from loragraft.huggingface.weights import Weight, read_weights
from loragraft.huggingface.wrappers import text_model
from loragraft.quants.filetypes import BY_NAME as FILE_TYPES

_IN_LAYER = re.compile(r"model\.layers\.(?P<layer>\d{1,4})\.(?P<name>.+)")


def open_checkpoint(folder: Path, *, dequantize: bool = False, intake: Intake = STRICT) -> ModelSource:
    """The model in `folder`, with GGUF's names, row order and metadata, its tensors in their stored types.

    As llama.cpp does, everything with one axis, norms and the experts' router are F32. `dequantize`: weights whose
    quantization GGUF cannot carry losslessly become F32 instead of an error. Raises CheckpointError for files that are
    malformed, UnsupportedError for what has no GGUF form.
    """
    checkpoint = text_model(Checkpoint.open(folder, allow_pickle=intake.allow_pickle), intake)
    path = checkpoint.path / "config.json"
    kind = str(checkpoint.config.get("model_type"))
    arch, config_class = ARCHS.by_model_type(kind, str(path), checkpoint.config)
    config = Config(path, checkpoint.config, config_class.defaults)
    notes = [*checkpoint.notes, *check_expressible(arch, config_class, config)]
    reasons: list[str] = []
    read = read_weights(checkpoint, notes, dequantize=dequantize, reasons=reasons)
    weights = _wanted(config_class, config, read, notes)
    scalars = _scalars(arch, config, weights)
    sizes = scalars | hyperparameters(arch, config_class, config, 0)
    with naming(path):
        names = TensorNames({"general.architecture": Value.string(arch.name), **sizes})
    placement = Placement(checkpoint.path, names)
    tensors = placement.place(weights)
    implied = dict(arch.extra_tensors(config))
    for rule in config_class.keys:
        implied |= rule.tensors(config)
    extra = {name: in_memory(name, values) for name, values in implied.items()}
    tensors = _after_quantized(tensors, extra)
    rows = _embedding(config, tensors).shape[0]
    size = config.optional_integer("vocab_size") or rows
    if size > rows:
        _check_vocabulary(config, tensors)  # before anything is made of this size
    if intake.resize_vocab:
        _check_vocabulary(config, tensors)
        size = max(size, tokenizer_size(checkpoint))
        tensors = _resized(checkpoint.path, tensors, size, notes)
    tensors |= {
        tensor.gguf + ".weight": padded(tensors[tensor.gguf + ".weight"], rows)
        for tensor in arch.tensors
        if tensor.padded and tensor.gguf + ".weight" in tensors
    }
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    metadata: Metadata = {
        **general_metadata(checkpoint.path.resolve(), arch.name, "model", shapes, notes),
        **scalars,
        **hyperparameters(arch, config_class, config, _file_type(tensors)),
        "general.quantization_version": Value.u32(QUANTIZATION_VERSION),
        **_activation_hints(placement.wide_activations),
        **tokenizer_metadata(checkpoint, size, notes, ranked=arch.vocabulary),
    }
    if size > rows:
        metadata[f"{arch.name}.vocab_size"] = Value.u32(size)
    else:
        _check_vocabulary(config, tensors)
    if len(names.places("model.embed_tokens.weight")) < 2:  # else the output is of the embedding, and not it
        _check_tied(config, tensors, notes)
    _check_biases(config_class, config, tensors)
    model = ModelSource(checkpoint.path, arch.name, metadata, tensors, notes, "; ".join(reasons))
    model_graph(model)  # raises for a checkpoint that lacks weights, or whose config.json says other sizes
    return model


def _wanted(
    config_class: ConfigClass, config: Config, weights: list[Weight], notes: list[str]
) -> list[Weight]:
    """`weights` but those that the class leaves out; a note says how many."""
    wanted = [weight for weight in weights if not config_class.left_out(config, weight.name)]
    if len(wanted) < len(weights):
        gone = next(weight.name for weight in weights if config_class.left_out(config, weight.name))
        notes.append(
            f"{config.path.parent}: {len(weights) - len(wanted)} tensors of layers that predict further tokens are "
            f"left out, as in llama.cpp's converter and in transformers ({gone}, ...)"
        )
    return wanted


def _scalars(arch: Arch, config: Config, weights: list[Weight]) -> Metadata:
    """The record's `scalars` as keys; their tensors leave `weights`."""
    found: dict[str, dict[int, float]] = {}
    for weight in list(weights):
        match = _IN_LAYER.fullmatch(weight.name)
        key, _ = arch.scalars.get(match["name"], (None, ())) if match else (None, ())
        if match is None or key is None:
            continue
        weights.remove(weight)
        values = values_of(weight.source).reshape(-1) if weight.shape in ((), (1,)) else np.empty(0)
        if len(values) != 1:
            raise CheckpointError(config.path.parent, f"{weight.name} is not one number", found=weight.shape)
        found.setdefault(key, {})[int(match["layer"])] = float(values[0])
    metadata: Metadata = {}
    for key, _ in arch.scalars.values():
        layers = found.get(key, {})
        if sorted(layers) != list(range(config.n_layers)):
            raise CheckpointError(
                config.path.parent,
                f"lacks {key} of some layers",
                found=sorted(layers)[:8],
                expected=config.n_layers,
            )
        metadata[key] = Value.numbers(ValueType.FLOAT32, [layers[layer] for layer in sorted(layers)])
    return metadata


def _embedding(config: Config, tensors: dict[str, TensorSource]) -> TensorSource:
    embedding = tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(
            config.path.parent, "lacks the token embedding", expected="model.embed_tokens.weight"
        )
    return embedding


def _resized(
    path: Path, tensors: dict[str, TensorSource], rows: int, notes: list[str]
) -> dict[str, TensorSource]:
    """`tensors` with an embedding and an output of so many rows."""
    more = rows - tensors["token_embd.weight"].shape[0]
    if more <= 0:
        return tensors
    notes.append(f"{path}: {more} tokens had no row in the embedding: each gets the mean of the others")
    names = ("token_embd.weight", "output.weight")
    return {name: grown(tensor, rows) if name in names else tensor for name, tensor in tensors.items()}


def _check_vocabulary(config: Config, tensors: dict[str, TensorSource]) -> None:
    size, rows = config.optional_integer("vocab_size"), _embedding(config, tensors).shape[0]
    if size is not None and rows != size:
        raise CheckpointError(
            config.path,
            "vocab_size differs from the number of rows of the embedding",
            found=size,
            expected=rows,
        )


def _check_tied(config: Config, tensors: dict[str, TensorSource], notes: list[str]) -> None:
    """The output must be there if it is not the embedding; a note if it is said to be, and there is another."""
    tied, output = bool(config.get("tie_word_embeddings")), tensors.get("output.weight")
    if output is None and not tied:
        raise CheckpointError(
            config.path.parent,
            "lacks lm_head.weight",
            expected="it, or tie_word_embeddings in config.json",
            hint="is the checkpoint complete, and a causal language model's?",
        )
    if output is not None and tied and not _alike(output, tensors["token_embd.weight"]):
        notes.append(
            f"{config.path.name}: tie_word_embeddings is true, but lm_head.weight is not the embedding: it is kept, as "
            "transformers 5 and llama.cpp do (transformers 4 does not)"
        )


def _alike(a: TensorSource, b: TensorSource) -> bool:
    """Whether some 64 rows, spread over both, are the same: all of a vocabulary is too much to read for a note."""
    if a.shape != b.shape or a.type != b.type:
        return False
    rows = np.unique(np.linspace(0, a.n_rows - 1, 64).astype(int)).tolist()
    return all(np.array_equal(a.rows(row, row + 1), b.rows(row, row + 1)) for row in rows)


def _check_biases(config_class: ConfigClass, config: Config, tensors: dict[str, TensorSource]) -> None:
    """A bias that config.json does not announce is one that transformers drops."""
    flags = {key: not key or bool(config.get(key)) for key in config_class.biases}
    expected = {linear for key, linears in config_class.biases.items() if flags[key] for linear in linears}
    for name, linear in biased_linears(tensors).items():
        if linear not in expected:
            key = next((key for key, linears in config_class.biases.items() if linear in linears), None)
            raise CheckpointError(
                config.path,
                f"the checkpoint has {name}, which {config_class.hf_class} would leave out",
                found=None if key is None else f"{key} = {config.get(key)!r}",
                hint=None if key is None else f"if it was trained with this bias, set {key} to true",
            )


def _file_type(tensors: dict[str, TensorSource]) -> int:
    """`general.file_type`: NVFP4 if any weight is, MXFP4_MOE if experts are MXFP4, else the type of the first weight
    with two axes."""
    types = [tensor.type.name for tensor in tensors.values() if len(tensor.shape) > 1]
    if "MXFP4" in types:
        return FILE_TYPES["MXFP4_MOE"].number
    return FILE_TYPES["NVFP4" if "NVFP4" in types else next(iter(types), "F16")].number


def _activation_hints(names: set[str]) -> Metadata:
    """llama.cpp's note that these tensors' products must not use 4-bit activations."""
    if not names:
        return {}
    return {
        "general.tensor_extra.name": Value.strings(sorted(names)),
        "general.tensor_extra.prec_a4": Value.numbers(ValueType.BOOL, [0] * len(names)),
    }


def _after_quantized(
    tensors: dict[str, TensorSource], extra: Mapping[str, TensorSource]
) -> dict[str, TensorSource]:
    """`extra` goes before the first tensor that is not part of a quantized weight."""
    names = list(tensors)
    at = next(
        (i for i, n in enumerate(names) if not (_is_companion(n) or tensors[n].type.name == "NVFP4")),
        len(names),
    )
    items = list(tensors.items())
    return dict([*items[:at], *extra.items(), *items[at:]])


def _is_companion(name: str) -> bool:
    return name.endswith((".scale", ".input_scale"))

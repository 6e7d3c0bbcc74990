"""A Hugging Face folder as a `ModelSource`: what llama.cpp's convert_hf_to_gguf makes of it, without making it.

Every tensor is read row by row when it is asked for, with the rows already in GGUF's order and experts stacked, so a
checkpoint of any size converts in the memory of a few blocks of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loragraft.archs import ARCHS
from loragraft.archs.base import ModelType, biased_linears
from loragraft.archs.config import Config
from loragraft.archs.gguf_keys import check_expressible, hyperparameters
from loragraft.archs.graphs import model_graph
from loragraft.archs.names import Place, TensorNames
from loragraft.archs.rope import rope_row_order
from loragraft.errors import CheckpointError, UnsupportedError, naming
from loragraft.formats.checkpoint import Checkpoint
from loragraft.formats.gguf.values import QUANTIZATION_VERSION, Metadata, Value, ValueType
from loragraft.formats.source import ModelSource, TensorSource
from loragraft.formats.views import Reordered, Stacked, float_rows, in_memory, widened
from loragraft.huggingface.model_card import general_metadata
from loragraft.huggingface.vocab import tokenizer_metadata
from loragraft.huggingface.weights import Weight, read_weights
from loragraft.quants.filetypes import BY_NAME as FILE_TYPES


def open_checkpoint(folder: Path, *, dequantize: bool = False) -> ModelSource:
    """The model in `folder`, with GGUF's names, row order and metadata, its tensors in their stored types.

    As llama.cpp does, everything with one axis, norms and the experts' router are F32. `dequantize`: weights whose
    quantization GGUF cannot carry losslessly become F32 instead of an error. Raises CheckpointError for files that are
    malformed, UnsupportedError for what has no GGUF form.
    """
    checkpoint = Checkpoint.open(folder)
    path = checkpoint.path / "config.json"
    arch, model_type = ARCHS.by_model_type(str(checkpoint.config.get("model_type")), str(path))
    config = Config(path, checkpoint.config, model_type.defaults)
    notes = check_expressible(arch, model_type, config)
    weights = read_weights(checkpoint, notes, dequantize=dequantize)
    sizes = hyperparameters(arch, model_type, config, 0)
    with naming(path):
        names = TensorNames({"general.architecture": Value.string(arch.name), **sizes})
    placement = _Placement(checkpoint.path, names)
    tensors = placement.place(weights)
    freqs = arch.rope_freqs(config)
    if freqs is not None:
        tensors = _after_quantized(tensors, in_memory("rope_freqs.weight", freqs))
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    metadata: Metadata = {
        **general_metadata(checkpoint.path.resolve(), arch.name, "model", shapes, notes),
        **hyperparameters(arch, model_type, config, _file_type(tensors)),
        "general.quantization_version": Value.u32(QUANTIZATION_VERSION),
        **_activation_hints(placement.wide_activations),
        **tokenizer_metadata(checkpoint, config.optional_integer("vocab_size"), notes),
    }
    _check_vocabulary(config, tensors)
    _check_tied(config, tensors, notes)
    _check_biases(model_type, config, tensors)
    model = ModelSource(checkpoint.path, arch.name, metadata, tensors, notes)
    model_graph(model)  # raises for a checkpoint that lacks weights, or whose config.json says other sizes
    return model


def _check_vocabulary(config: Config, tensors: dict[str, TensorSource]) -> None:
    size, embedding = config.optional_integer("vocab_size"), tensors.get("token_embd.weight")
    if None not in (size, embedding) and embedding is not None and embedding.shape[0] != size:
        raise CheckpointError(
            config.path,
            "vocab_size is not the number of the embedding's rows",
            found=size,
            expected=embedding.shape[0],
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


def _check_biases(model_type: ModelType, config: Config, tensors: dict[str, TensorSource]) -> None:
    """A bias that config.json does not announce is one that transformers drops."""
    flags = {key: not key or bool(config.get(key)) for key in model_type.biases}
    expected = {linear for key, linears in model_type.biases.items() if flags[key] for linear in linears}
    for name, linear in biased_linears(tensors).items():
        if linear not in expected:
            key = next((key for key, linears in model_type.biases.items() if linear in linears), None)
            raise CheckpointError(
                config.path,
                f"the checkpoint has {name}, which {model_type.hf_class} would leave out",
                found=None if key is None else f"{key} = {config.get(key)!r}",
                hint=None if key is None else f"if it was trained with this bias, set {key} to true",
            )


def _file_type(tensors: dict[str, TensorSource]) -> int:
    """`general.file_type`: NVFP4 if any weight is, else the type of the first weight with two axes."""
    types = [tensor.type.name for tensor in tensors.values() if len(tensor.shape) > 1]
    return FILE_TYPES["NVFP4" if "NVFP4" in types else next(iter(types), "F16")].number


def _activation_hints(names: set[str]) -> Metadata:
    """llama.cpp's note that these tensors' products must not use 4-bit activations."""
    if not names:
        return {}
    return {
        "general.tensor_extra.name": Value.strings(sorted(names)),
        "general.tensor_extra.prec_a4": Value.numbers(ValueType.BOOL, [0] * len(names)),
    }


def _after_quantized(tensors: dict[str, TensorSource], extra: TensorSource) -> dict[str, TensorSource]:
    """`extra` goes before the first tensor that is not part of a quantized weight."""
    names = list(tensors)
    at = next(
        (i for i, n in enumerate(names) if not (_is_companion(n) or tensors[n].type.name == "NVFP4")),
        len(names),
    )
    items = list(tensors.items())
    return dict([*items[:at], (extra.name, extra), *items[at:]])


def _is_companion(name: str) -> bool:
    return name.endswith((".scale", ".input_scale"))


def place_weights(path: Path, names: TensorNames, weights: Sequence[Weight]) -> dict[str, TensorSource]:
    """`weights` of the folder `path`, which may be some of a model's only, under GGUF's names, in its row order and
    types. Raises UnsupportedError for a weight without a place, CheckpointError for experts that are not complete."""
    return _Placement(path, names).place(weights)


@dataclass(slots=True)
class _Piece:
    place: Place
    weight: Weight


class _Placement:
    """Puts Hugging Face tensors into GGUF tensors, in the order in which llama.cpp's converter writes them."""

    def __init__(self, path: Path, names: TensorNames) -> None:
        self._path, self._names = path, names
        self._stacks: dict[str, dict[int, _Piece]] = {}
        self._tensors: dict[str, TensorSource] = {}
        self.wide_activations: set[str] = set()
        """Tensors that were quantized for products with 16-bit activations."""

    def place(self, weights: Sequence[Weight]) -> dict[str, TensorSource]:
        for weight in weights:
            if self._names.is_buffer(weight.name):
                continue
            places = self._names.places(weight.name)
            if not places:
                raise UnsupportedError(
                    self._path,
                    f"tensor {weight.name!r} has no place in this architecture's GGUF",
                    found=weight.shape,
                )
            for place in places:
                self._add(_Piece(place, weight))
        for name, pieces in self._stacks.items():
            missing = [e for e in range(self._names.experts) if e not in pieces]
            raise CheckpointError(
                self._path,
                f"{name} lacks experts",
                found=f"{len(pieces)} of them",
                expected=f"also {missing[:4]}",
            )
        return self._tensors

    def _add(self, piece: _Piece) -> None:
        name, expert = piece.place.name, piece.place.expert
        if expert is None:
            self._finish(name, [piece])
            return
        stack = self._stacks.setdefault(name, {})
        if expert in stack or expert >= self._names.experts:
            raise CheckpointError(
                self._path,
                f"{piece.weight.name!r} is no expert of the model",
                expected=f"{self._names.experts} experts",
            )
        stack[expert] = piece
        if len(stack) == self._names.experts:
            self._finish(name, [stack[e] for e in range(len(stack))])
            del self._stacks[name]

    def _finish(self, name: str, pieces: list[_Piece]) -> None:
        if name in self._tensors:
            raise CheckpointError(self._path, f"two tensors are both {name}", found=pieces[0].weight.name)
        weights = [piece.weight for piece in pieces]
        first = weights[0]
        for weight in weights[1:]:
            if (weight.shape, weight.source.type) != (first.shape, first.source.type):
                raise CheckpointError(
                    self._path,
                    f"the experts of {name} differ",
                    found=f"{weight.name} {weight.source.type} {weight.shape}",
                    expected=f"{first.source.type} {first.shape}",
                )
        sources = [self._arranged(piece) for piece in pieces]
        source = sources[0] if pieces[0].place.expert is None else Stacked(name, sources)
        if _is_float32_in_gguf(name, source.shape):
            source = widened(source)
        source.name = name
        self._tensors[name] = source
        if first.wide_activations:
            self.wide_activations.add(name)
        self._add_companion(f"{name.removesuffix('.weight')}.scale", [w.scale for w in weights])
        self._add_companion(f"{name.removesuffix('.weight')}.input_scale", [w.input_scale for w in weights])

    def _add_companion(self, name: str, scales: list[float | None]) -> None:
        """The scales of a quantized weight, one or one per expert; absent means 1."""
        values = np.array([1.0 if scale is None else scale for scale in scales], np.float32)
        if (values != 1).any():
            self._tensors[name] = in_memory(name, values)

    def _arranged(self, piece: _Piece) -> TensorSource:
        """The tensor of one piece, its rows in GGUF's order."""
        source, place = piece.weight.source, piece.place
        rows = source.shape[-2] if len(source.shape) > 1 else source.shape[-1]
        if place.heads is not None:
            if rows % (2 * place.heads):
                raise CheckpointError(
                    self._path,
                    f"{piece.weight.name} does not divide into heads",
                    found=f"{rows} rows",
                    expected=f"{place.heads} heads",
                )
            order = rope_row_order(rows, place.heads)
            if len(source.shape) == 1:
                values = float_rows(source.rows(0, 1), source.type).reshape(-1)
                return in_memory(place.name, values[order])
            return Reordered(source, order, source.shape)
        if place.half is not None:
            if len(source.shape) != 3 or rows % 2:
                raise CheckpointError(
                    self._path, f"{piece.weight.name} is no pair of stacks", found=source.shape
                )
            half = rows // 2
            experts = source.shape[0]
            order = (
                np.arange(experts)[:, None] * rows + place.half * half + np.arange(half)[None, :]
            ).reshape(-1)
            return Reordered(source, order, (experts, half, source.shape[-1]))
        return source


def _is_float32_in_gguf(name: str, shape: tuple[int, ...]) -> bool:
    """What llama.cpp's converter keeps in F32 whatever the output type (conversion/base.py, `prepare_tensors`)."""
    return (
        len(shape) <= 1
        or not name.endswith(".weight")
        or name.endswith(("_norm.weight", ".ffn_gate_inp.weight", ".ffn_gate_inp_shexp.weight"))
    )

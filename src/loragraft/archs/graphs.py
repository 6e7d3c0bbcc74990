"""From a model file's metadata and tensor facts to its graph."""

from __future__ import annotations

from collections.abc import Mapping

from loragraft.archs import ARCHS
from loragraft.archs.arch import Arch
from loragraft.archs.hparams import Hparams
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.unread_keys import check_unread
from loragraft.errors import FormatError, UnsupportedError, naming
from loragraft.formats.gguf.values import Value
from loragraft.formats.source import ModelSource, TensorSource
from loragraft.graph.ops import Graph, TensorFact
from loragraft.graph.spec import verify


def read_hparams(metadata: Mapping[str, Value]) -> Hparams:
    """The shape of the model described by GGUF metadata, as its architecture reads them.

    Raises FormatError naming the key that is missing or bad, UnsupportedError for an unknown architecture.
    """
    return _read(MetadataKeys(metadata))[1]


def check_keys(metadata: Mapping[str, Value]) -> list[str]:
    """Notes on keys that the architecture does not read; raises UnsupportedError for one that it would have to, and the
    errors of `read_hparams`."""
    keys = MetadataKeys(metadata)
    arch, h = _read(keys)
    return check_unread(metadata, keys, arch, h)


def _read(keys: MetadataKeys) -> tuple[Arch, Hparams]:
    arch = ARCHS.by_name(keys.arch)
    return arch, arch.hparams(keys)


def tensor_facts(tensors: Mapping[str, TensorSource]) -> dict[str, TensorFact]:
    """What `build_graph` needs to know of a model's tensors."""
    return {name: TensorFact(tensor.shape, tensor.type.name) for name, tensor in tensors.items()}


def build_graph(metadata: Mapping[str, Value], tensors: Mapping[str, TensorFact]) -> Graph:
    """The model's graph, without adapters.

    Raises UnsupportedError for an architecture that is not known, FormatError for a missing key or tensor.
    """
    keys = MetadataKeys(metadata)
    arch, h = _read(keys)
    graph = arch.build(h, tensors)
    _check_sizes(h, tensors)
    return graph


def model_graph(model: ModelSource) -> Graph:
    """The verified graph of `model`, without adapters.

    Errors as of `build_graph`, `verify` and `check_keys`, naming the file, and UnsupportedError for a tensor of a type
    that no backend reads; what `check_keys` notes is added to the model's notes.
    """
    with naming(model.path):
        graph = build_graph(model.metadata, tensor_facts(model.tensors))
        notes = check_keys(model.metadata)
        model.notes.extend(note for note in notes if note not in model.notes)
        verify(graph)
    tokens, rows = model.metadata.get("tokenizer.ggml.tokens"), model.tensors["token_embd.weight"].shape[0]
    if tokens is not None and len(tokens.data) > rows:
        raise FormatError(
            model.path,
            "the tokenizer has more tokens than the model embeds",
            found=len(tokens.data),
            expected=f"up to {rows}",
        )
    for name, tensor in model.tensors.items():
        if not tensor.type.holds_weights:
            raise UnsupportedError(
                model.path, f"tensor {name!r} is of a type that holds no weights", found=tensor.type
            )
    return graph


def _check_sizes(h: Hparams, tensors: Mapping[str, TensorFact]) -> None:
    """Sizes that the graph takes from the weights must be the metadata's too, where other engines read them."""
    width = tensors["token_embd.weight"].shape[-1]
    if width != h.width:
        raise FormatError(
            f"{h.arch}.embedding_length", "the weights have another width", found=h.width, expected=width
        )
    rows, output = tensors["token_embd.weight"].shape[0], tensors.get("output.weight")
    if output is not None and output.shape[0] != rows:
        raise FormatError(
            "output.weight",
            "predicts a different number of tokens than the embedding has",
            found=output.shape[0],
            expected=rows,
        )
    for name, fact in tensors.items():
        if name.endswith((".ffn_gate_inp.weight", "_exps.weight")) and fact.shape[0] != h.experts:
            raise FormatError(
                f"{h.arch}.expert_count",
                f"{name} is of a different number of experts",
                found=h.experts,
                expected=fact.shape[0],
            )

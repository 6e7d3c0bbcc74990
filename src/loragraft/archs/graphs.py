"""From a model file's metadata and tensor facts to its graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from loragraft.archs import llama, qwen2, qwen2moe, qwen3, qwen3moe, starcoder2
from loragraft.archs.hparams import Hparams, read_hparams
from loragraft.archs.metadata_keys import check_keys
from loragraft.errors import FormatError, UnsupportedError, naming
from loragraft.formats.gguf.values import Value
from loragraft.formats.source import ModelSource, TensorSource
from loragraft.graph.ops import Graph, TensorFact
from loragraft.graph.spec import verify

Build = Callable[[Hparams, Mapping[str, TensorFact]], Graph]

#: The graph builder of every GGUF architecture that runs.
BUILDERS: dict[str, Build] = {
    "llama": llama.build,
    "qwen2": qwen2.build,
    "qwen2moe": qwen2moe.build,
    "qwen3": qwen3.build,
    "qwen3moe": qwen3moe.build,
    "starcoder2": starcoder2.build,
}


def tensor_facts(tensors: Mapping[str, TensorSource]) -> dict[str, TensorFact]:
    """What `build_graph` needs to know of a model's tensors."""
    return {name: TensorFact(tensor.shape, tensor.type.name) for name, tensor in tensors.items()}


def build_graph(metadata: Mapping[str, Value], tensors: Mapping[str, TensorFact]) -> Graph:
    """The model's graph, without adapters.

    Raises UnsupportedError for an architecture that has no builder, FormatError for a missing key or tensor.
    """
    h = read_hparams(metadata)
    try:
        build = BUILDERS[h.arch]
    except KeyError:
        raise UnsupportedError(
            h.arch,
            "loragraft cannot run this architecture",
            expected="one of " + ", ".join(sorted(BUILDERS)),
            hint="merging and quantizing a GGUF need no graph",
        ) from None
    graph = build(h, tensors)
    _check_sizes(h, tensors)
    return graph


def model_graph(model: ModelSource) -> Graph:
    """The verified graph of `model`, without adapters.

    Errors as of `build_graph`, `verify` and `check_keys`, naming the file, and UnsupportedError for a tensor of a type
    that no backend reads; what `check_keys` notes is added to the model's notes.
    """
    with naming(model.path):
        graph = build_graph(model.metadata, tensor_facts(model.tensors))
        notes = check_keys(model.metadata, read_hparams(model.metadata))
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
            f"{h.arch}.embedding_length", "the weights are of another width", found=h.width, expected=width
        )
    rows, output = tensors["token_embd.weight"].shape[0], tensors.get("output.weight")
    if output is not None and output.shape[0] != rows:
        raise FormatError(
            "output.weight",
            "predicts another number of tokens than are embedded",
            found=output.shape[0],
            expected=rows,
        )
    for name, fact in tensors.items():
        if name.endswith((".ffn_gate_inp.weight", "_exps.weight")) and fact.shape[0] != h.experts:
            raise FormatError(
                f"{h.arch}.expert_count",
                f"{name} is of another number of experts",
                found=h.experts,
                expected=fact.shape[0],
            )

"""`load`: a model to talk to, from a GGUF or a Hugging Face folder, with or without adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from os import PathLike
from typing import Any, Literal, get_args
from weakref import WeakSet

import numpy as np

from loragraft.archs.graphs import model_graph
from loragraft.archs.metadata import MetadataKeys
from loragraft.arrays import Floats, Ids
from loragraft.backends.batch import AdapterSet, Piece
from loragraft.backends.program import Options, Program
from loragraft.errors import ContextError, LoragraftError, check_number, naming
from loragraft.formats.source import ModelSource
from loragraft.graph.ops import Graph
from loragraft.huggingface.intake import STRICT, Intake
from loragraft.inference.adapters import ModelAdapters
from loragraft.inference.devices import backend_named
from loragraft.inference.generate import Generation, batches, finite
from loragraft.inference.measurement import DEFAULT_CONTEXT, Activations, BackendName, Measurement
from loragraft.inference.perplexity import Perplexity, perplexity
from loragraft.inference.sampling import Sampler, Sampling
from loragraft.inference.tokenizer import Tokenizer, checked_ids
from loragraft.opening import AdapterArguments, load_adapters, open_model
from loragraft.progress import SILENT, Progress
from loragraft.system.mapped import intact
from loragraft.system.threads import thread_count


class Model:
    """A model ready to run, for any number of generations at once.

    `source`: the file's metadata and tensors; `graph`: what runs, without adapters; `program`: what runs it;
    `adapters`: those in use; `notes`: what the readers of the files want the user to know.
    """

    def __init__(
        self,
        source: ModelSource,
        graph: Graph,
        program: Program,
        adapters: ModelAdapters,
        *,
        notes: Sequence[str] = (),
    ) -> None:
        self.source = source
        self.path = source.path
        self.graph = graph
        self.program = program
        self.adapters = adapters
        self.notes = list(notes)
        self._generations: WeakSet[Generation] = WeakSet()

    @property
    def size(self) -> int:
        """Bytes of the weights, and of the adapters in use as float32."""
        weights = sum(tensor.n_rows * tensor.row_bytes for tensor in self.source.tensors.values())
        return weights + self.adapters.nbytes

    def set_adapters(self, adapters: AdapterArguments) -> None:
        """Use `adapters` (paths, or pairs of path and strength) from now on, in place of those in use. A generation
        under way goes on with those it began with.

        Other strengths cost nothing; an adapter that was not in use yet is read once. Raises AdapterError for one that
        does not fit, or that changes whole tensors, which only `load` can do; nothing is changed then.
        """
        self.adapters.use(adapters, [generation.adapters for generation in self._generations])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.source.metadata, self.path)

    @property
    def context_length(self) -> int:
        """The longest sequence that the model was trained for, in tokens."""
        return MetadataKeys(self.source.metadata).count("context_length")

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> Ids:
        """`text` as ids, int32 [n]; see `Tokenizer.encode`. (`generate` reads its prompt with `parse_special`.)"""
        return self.tokenizer.encode(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, ids: Sequence[int] | Ids, *, show_special: bool = False) -> str:
        """The text of `ids`; see `Tokenizer.decode`."""
        return self.tokenizer.decode(ids, show_special=show_special)

    def chat_prompt(self, messages: str | Sequence[Mapping[str, Any]]) -> Ids:
        """The prompt, int32 [n], that asks for the reply to `messages` (each with `role` and `content`; a lone string
        is the user's) in the form that the model was trained on: its chat template.

        Raises LoragraftError if the file has no template, or its template refuses the messages.
        """
        if not isinstance(messages, str | Sequence):
            raise LoragraftError("messages", "not a list", found=type(messages).__name__)
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self.with_bos(self.tokenize(self.chat_text(messages), add_special=False, parse_special=True))

    def chat_text(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of `chat_prompt`. `tools`: functions that the model may call, as OpenAI's API describes them;
        `extra`: more variables for the template."""
        from loragraft.inference.chat import conversation_text

        return conversation_text(self.source, self.tokenizer, messages, tools=tools, extra=extra)

    def with_bos(self, ids: Ids) -> Ids:
        """The tokens of a chat with BOS first, if the model wants it."""
        from loragraft.inference.chat import with_bos

        return with_bos(self.tokenizer, ids)

    @property
    def has_template(self) -> bool:
        """Whether it has a chat template; one without continues texts."""
        return "tokenizer.chat_template" in self.source.metadata

    def template_reads(self, name: str) -> bool:
        """Whether the chat template has a variable of this name."""
        from loragraft.inference.chat import template_of

        return name in template_of(self.source)

    def logits(self, ids: Sequence[int] | Ids, *, last_only: bool = False, first: int = 0) -> Floats:
        """Logits float32 [n - first, vocab] of the tokens from `first` on of the sequence `ids`, read from its start,
        or [1, vocab] for its last token.

        Raises LoragraftError for no tokens, tokens outside of the vocabulary, tokens without those that an aLoRA in
        use begins at, or logits that are not finite.
        """
        tokens = checked_ids(ids)
        check_number("first", first, int)
        if not 0 <= first < len(tokens):
            raise LoragraftError(
                "first", "is outside the sequence", found=first, expected=f"0 to {len(tokens) - 1}"
            )
        if last_only:
            first = len(tokens) - 1
        sequence = self.program.open_sequence()
        try:
            parts = [
                self._read(sequence, tokens[start:stop], first - start, adapters)
                for start, stop, adapters in batches(self.adapters.parts(tokens, self._told))
            ]
        finally:
            self.program.close_sequence(sequence)
        return np.concatenate([part for part in parts if len(part)])

    def _told(self, ids: Sequence[int]) -> str:
        return self.detokenize(ids, show_special=True)

    def _read(self, sequence: int, tokens: Ids, first: int, adapters: AdapterSet) -> Floats:
        """The logits from row `first` on; of none if that lies beyond them."""
        wants: int | Literal["none"] = max(first, 0) if first < len(tokens) else "none"
        logits = self.program.run([Piece(sequence, tokens, adapters, wants)])
        return finite(logits, self.path) if len(logits) else logits

    def generate(
        self,
        prompt: str | Sequence[int] | Ids,
        *,
        max_tokens: int = 128,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        seed: int | None = None,
    ) -> Generation:
        """Continues `prompt`: an iterator over text as it becomes certain, until the model ends it or
        `max_tokens` are made.

        Temperature 0 is greedy. Raises LoragraftError, at the call, for settings out of range, a prompt that leaves
        no room in the model's context, or one without the tokens that an aLoRA in use begins at.
        """
        sampling = Sampling(temperature, top_k, top_p, min_p, seed)
        ids = self.tokenize(prompt, parse_special=True) if isinstance(prompt, str) else checked_ids(prompt)
        check_number("max_tokens", max_tokens, int, least=0)
        room = self.context_length - len(ids)
        if room <= 0:
            raise ContextError(
                "prompt",
                "longer than the model's context",
                found=f"{len(ids)} tokens",
                expected=f"fewer than {self.context_length}",
            )
        generation = Generation(
            self.program,
            self.tokenizer,
            ids,
            Sampler(sampling),
            min(max_tokens, room),
            self.adapters.parts(ids, self._told),
            self.path,
        )
        self._generations.add(generation)
        return generation

    def perplexity(
        self,
        text: str,
        *,
        context: int = DEFAULT_CONTEXT,
        windows: int | None = None,
        progress: Progress = SILENT,
    ) -> Perplexity:
        """The perplexity on `text`, in windows of `context` tokens, the first `windows` of them; see
        `loragraft.inference.measurement`. Raises TextError if the text is shorter than two windows."""
        how = Measurement(text, context=context, windows=windows)
        return perplexity(self, how.read_by(self.tokenizer, self.context_length, progress), progress)


@intact
def load(
    path: str | PathLike[str],
    adapters: AdapterArguments = (),
    *,
    backend: BackendName = "native",
    device: str = "cpu",
    threads: int | None = None,
    context: int | None = None,
    activations: Activations = "auto",
    keys_values_memory: int | None = None,
    intake: Intake = STRICT,
) -> Model:
    """The model at `path` (a GGUF, or a Hugging Face folder), with `adapters` (paths, or pairs of path and strength)
    active at run time. Weights of a folder that GGUF has no type for are dequantized, with a note.

    `backend`: "native" runs quantized weights as they are; "reference" is NumPy in float32. `device`: "cpu", or a
    GPU: "webgpu", "cuda" or "xpu", by number ("cuda:1") where there are several (`devices` lists them). `context`:
    positions to make room for (default: as many as come). `activations`: what they are rounded to before a product
    with a quantized weight (default: the backend's choice). `keys_values_memory`: bytes that the keys and values of
    all sequences may take together (default: as much as memory holds).

    Raises LoragraftError for files that are malformed, do not belong together or are not supported.
    """
    if activations not in get_args(Activations):
        raise LoragraftError(
            "activations",
            "no such kind",
            found=activations,
            expected="one of " + ", ".join(get_args(Activations)),
        )
    if context is not None:
        check_number("context", context, int, least=1)
    if keys_values_memory is not None:
        check_number("keys_values_memory", keys_values_memory, int, least=1)
    runner = backend_named(backend, device)
    source, loaded = load_adapters(
        adapters, open_model(path, dequantize=True, intake=intake), intake=intake, invoked=True
    )
    graph = model_graph(source)
    options = Options(
        context=context,
        threads=thread_count(threads),
        activations=activations,
        pool_bytes=keys_values_memory,
    )
    with naming(source.path):
        program = runner.prepare(graph, source.tensors, options)
    used = ModelAdapters(program, source, loaded, intake)
    notes = [*source.notes, *(note for adapter, _ in loaded for note in adapter.notes), *program.notes]
    return Model(source, graph, program, used, notes=notes)

"""One token after another from a program."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from os import PathLike
from pathlib import Path

import numpy as np

from loragraft.arrays import Floats, Ids
from loragraft.backends.batch import AdapterSet, Piece
from loragraft.backends.program import Program
from loragraft.errors import LoragraftError
from loragraft.inference.sampling import Sampler
from loragraft.inference.tokenizer import Tokenizer
from loragraft.system.mapped import check_intact

BATCH = 512  # tokens of a prompt per forward pass, which bounds the memory for activations


Parts = Sequence[tuple[int, AdapterSet]]
"""The parts of a prompt, in their order: the end of each, and the adapters that work in it."""


def generate_ids(
    program: Program,
    prompt: Ids,
    sampler: Sampler,
    *,
    max_tokens: int,
    parts: Parts,
    end_ids: Collection[int] = (),
    subject: str | PathLike[str] = "the model",
) -> Iterator[int]:
    """Reads `prompt` (int32 [T], T >= 1) as a sequence of its own, by its `parts`, then yields up to `max_tokens` new
    tokens under the adapters of the last part.

    A token of `end_ids` ends it and is not yielded. Raises LoragraftError for an empty prompt, or predictions that are
    not finite (naming `subject`).
    """
    if not len(prompt):
        raise LoragraftError("prompt", "is empty", hint="this model puts no BOS token before it")
    sequence = program.open_sequence()
    try:
        logits = read(program, sequence, prompt, parts)
        _, adapters = parts[-1]
        if not max_tokens:
            return
        token = sampler.pick(finite(logits, subject))
        for count in range(max_tokens):
            if token in end_ids:
                return
            yield token
            if count + 1 < max_tokens:
                token = _next(
                    program, Piece(sequence, np.array([token], np.int32), adapters), sampler, subject
                )
    finally:
        program.close_sequence(sequence)


def _next(program: Program, piece: Piece, sampler: Sampler, subject: str | PathLike[str]) -> int:
    """The token behind `piece`. Where the likeliest is taken, logits stay on the device."""
    if not sampler.greedy:
        return sampler.pick(finite(program.run([piece])[0], subject))
    tokens, peaks = program.likeliest([piece])
    _check_finite(peaks[0], subject)
    return int(tokens[0])


def finite(logits: Floats, subject: str | PathLike[str]) -> Floats:
    """`logits`, if they are numbers of which a token can be chosen. Raises LoragraftError for NaN, infinity, and if a
    file of the model became shorter meanwhile."""
    _check_finite(logits.max(), subject)
    return logits


def _check_finite(peak: np.float32, subject: str | PathLike[str]) -> None:
    check_intact(Path(subject))
    if not np.isfinite(peak):
        raise LoragraftError(
            subject,
            "the model's predictions are not finite",
            found=peak,
            hint="a weight holds NaN or infinity, or an adapter's scale is too large",
        )


def read(program: Program, sequence: int, prompt: Ids, parts: Parts) -> Floats:
    """Appends `prompt` batch by batch; the logits float32 [vocab] behind its last token."""
    for start, stop, adapters in batches(parts):
        last = stop == len(prompt)
        logits = program.run(
            [Piece(sequence, prompt[start:stop], adapters, wants="last" if last else "none")]
        )
    return np.asarray(logits[0])


def batches(parts: Parts) -> Iterator[tuple[int, int, AdapterSet]]:
    """Start and end of every forward pass over a sequence, and the adapters that work in it."""
    begin = 0
    for end, adapters in parts:
        for start in range(begin, end, BATCH):
            yield start, min(start + BATCH, end), adapters
        begin = end


class Generation(Iterator[str]):
    """The text of a generation, piece by piece as it becomes certain.

    `prompt_tokens`: how many were read; `ids`: the tokens made so far; `limit`: how many there can be, with the room in
    the model's context; `seed`: what to pass for the same text again; `adapters`: the set that it runs under, from its
    beginning to its end.
    """

    def __init__(
        self,
        program: Program,
        tokenizer: Tokenizer,
        prompt: Ids,
        sampler: Sampler,
        max_tokens: int,
        parts: Parts,
        subject: str | PathLike[str] = "the model",
    ) -> None:
        self.prompt_tokens = len(prompt)
        self.seed = sampler.seed
        self.limit = max_tokens
        self.adapters = parts[-1][1] if parts else ()
        self.ids: list[int] = []
        tokens = generate_ids(
            program,
            prompt,
            sampler,
            max_tokens=max_tokens,
            parts=parts,
            end_ids=tokenizer.end_ids,
            subject=subject,
        )
        self._text = self._decoded(tokens, tokenizer)

    def _decoded(self, tokens: Iterator[int], tokenizer: Tokenizer) -> Iterator[str]:
        decoder = tokenizer.decoder()
        for token in tokens:
            self.ids.append(token)
            yield decoder.push(token)
        yield decoder.finish()

    def __next__(self) -> str:
        while not (piece := next(self._text)):
            pass
        return piece

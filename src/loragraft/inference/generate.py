"""One token after another from a session."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from os import PathLike
from pathlib import Path

import numpy as np

from loragraft.backends.base import Session
from loragraft.backends.batch import Floats, Ids
from loragraft.errors import LoragraftError
from loragraft.inference.sampling import Sampler
from loragraft.inference.tokenizer import Tokenizer
from loragraft.system.mapped import check_intact

BATCH = 512  # tokens of a prompt per forward pass, which bounds the memory for activations


def generate_ids(
    session: Session,
    prompt: Ids,
    sampler: Sampler,
    *,
    max_tokens: int,
    end_ids: Collection[int] = (),
    subject: str | PathLike[str] = "the model",
) -> Iterator[int]:
    """Appends `prompt` (int32 [T], T >= 1) to the session, then yields up to `max_tokens` new tokens.

    A token of `end_ids` ends it and is not yielded. Raises LoragraftError for an empty prompt, or predictions that are
    not finite (naming `subject`), or a session on which another sequence was begun between two tokens.
    """
    if not len(prompt):
        raise LoragraftError("prompt", "is empty", hint="this model puts no BOS token before it")
    logits = read(session, prompt)
    sequence = session.n_resets
    for count in range(max_tokens):
        token = sampler.pick(finite(logits, subject))
        if token in end_ids:
            return
        yield token
        if count + 1 < max_tokens:
            if session.n_resets != sequence:
                raise LoragraftError(
                    subject,
                    "another sequence was begun on this model since, so this one cannot go on",
                    hint="finish one before the next, or load the model twice",
                )
            logits = session.forward(np.array([token], dtype=np.int32), last_only=True)[0]


def finite(logits: Floats, subject: str | PathLike[str]) -> Floats:
    """`logits`, if they are numbers of which a token can be chosen. Raises LoragraftError for NaN, infinity, and if a
    file of the model became shorter meanwhile."""
    check_intact(Path(subject))
    if not np.isfinite(peak := logits.max()):
        raise LoragraftError(
            subject,
            "the model's predictions are not finite",
            found=peak,
            hint="a weight holds NaN or infinity, or an adapter's scale is too large",
        )
    return logits


def read(session: Session, prompt: Ids) -> Floats:
    """Appends `prompt` batch by batch; the logits float32 [vocab] behind its last token."""
    for start in range(0, len(prompt), BATCH):
        logits = session.forward(prompt[start : start + BATCH], last_only=True)
    last: Floats = logits[0]
    return last


class Generation(Iterator[str]):
    """The text of a generation, piece by piece as it becomes certain.

    `prompt_tokens`: how many were read; `ids`: the tokens made so far; `limit`: how many there can be, with the room in
    the model's context; `seed`: what to pass for the same text again.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        prompt: Ids,
        sampler: Sampler,
        max_tokens: int,
        subject: str | PathLike[str] = "the model",
    ) -> None:
        self.prompt_tokens = len(prompt)
        self.seed = sampler.seed
        self.limit = max_tokens
        self.ids: list[int] = []
        tokens = generate_ids(
            session, prompt, sampler, max_tokens=max_tokens, end_ids=tokenizer.end_ids, subject=subject
        )
        self._text = self._decoded(session, tokens, tokenizer)

    def _decoded(self, session: Session, tokens: Iterator[int], tokenizer: Tokenizer) -> Iterator[str]:
        session.reset()  # now, not at the call: another sequence may have come between
        decoder = tokenizer.decoder()
        for token in tokens:
            self.ids.append(token)
            yield decoder.push(token)
        yield decoder.finish()

    def __next__(self) -> str:
        while not (piece := next(self._text)):
            pass
        return piece

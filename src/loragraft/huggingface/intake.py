"""What a user may allow of files that are not quite what they should be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Intake:
    """Nothing unless it is asked for; without it the file is refused, and the message names the option."""

    allow_pickle: bool = False
    """Read pickled weights (.bin, .pt), by torch's weights-only rules."""
    text_only: bool = False
    """Of a multimodal model or adapter take the language model's part, and leave the others out, with a note."""
    resize_vocab: bool = False
    """Give the embedding and the output a row for every token of the tokenizer, also one saved beside an adapter."""


STRICT = Intake()

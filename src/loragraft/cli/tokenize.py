"""`loragraft tokenize`: see how a model reads a text."""

from __future__ import annotations

import json
from pathlib import Path

from loragraft.cli import console
from loragraft.cli.command import command, flag
from loragraft.cli.options import JSON, MODEL, PROMPT, PROMPT_FILE, prompt_of


@command(
    'loragraft tokenize model.gguf -p "Hello, world"',
    "loragraft tokenize ./hf-folder -f text.txt --json",
    'loragraft tokenize model.gguf -p "<|begin_of_text|>Hi" --parse-special --no-add-special',
)
@MODEL
@PROMPT
@PROMPT_FILE
@flag("--add-special/--no-add-special", default=True, help="Add BOS and EOS if the model wants them.")
@flag("--parse-special", help="Read control tokens that the text spells out as tokens.")
@JSON
def tokenize(
    model: Path,
    prompt: str | None,
    file: Path | None,
    add_special: bool,
    parse_special: bool,
    as_json: bool,
) -> None:
    """Print the tokens of a text, one per line: id and text."""
    text = prompt_of(prompt, file)

    from loragraft.inference.tokenizer import Tokenizer
    from loragraft.opening import open_model

    tokenizer = Tokenizer(open_model(model, dequantize=True).metadata, model)
    ids = tokenizer.encode(text, add_special=add_special, parse_special=parse_special).tolist()
    pieces = [tokenizer.piece(token, show_special=True) for token in ids]
    if as_json:
        shown = [piece.decode(errors="backslashreplace") for piece in pieces]
        console.result(json.dumps({"ids": ids, "pieces": shown}, ensure_ascii=False))
        return
    for token, piece in zip(ids, pieces, strict=True):
        console.result(f"{token:>7}  {_quoted(piece)}")
    console.info(f"{len(ids)} tokens")


def _quoted(piece: bytes) -> str:
    """As Python would write it; a token that is part of a character as its bytes."""
    try:
        return repr(piece.decode())
    except UnicodeDecodeError:
        return repr(piece)[1:]

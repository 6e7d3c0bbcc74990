"""The options of every command that takes files from trainers: what may be done about those that are not as they should
be."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from loragraft.cli.command import option

_file = functools.partial(option, panel="Files", is_flag=True)

_OPTIONS = (
    _file(
        "--allow-pickle",
        help="Read pickled weights (.bin, .pt), by torch's weights-only rules: no code in them runs.",
    ),
    _file("--text-only", help="Take only the language model from a multimodal model or adapter."),
    _file(
        "--resize-vocab",
        help="Add an embedding row for every token of the (adapter's) tokenizer that has none: the mean of the others.",
    ),
)


def intake_options(function: Callable[..., None]) -> Callable[..., None]:
    """Gives a command these options, as the argument `intake`."""

    @functools.wraps(function)
    def wrapped(*args: Any, allow_pickle: bool, text_only: bool, resize_vocab: bool, **others: Any) -> None:
        from loragraft.huggingface.intake import Intake

        function(*args, intake=Intake(allow_pickle, text_only, resize_vocab), **others)

    for decorate in reversed(_OPTIONS):
        wrapped = decorate(wrapped)
    return wrapped

"""Chat templates: a conversation as the text that a model was trained to continue.

A template is a Jinja program that came with the model's file, so it runs in Jinja's sandbox, in a process of its own
with limits of time and memory (`template_process.py`). It sees what transformers gives it (`apply_chat_template`,
utils/chat_template_utils.py): the messages, the texts of BOS and EOS, whether to open the reply, `raise_exception`,
`strftime_now`, and a `tojson` that escapes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from loragraft.arrays import Ids
from loragraft.errors import LoragraftError
from loragraft.formats.source import ModelSource
from loragraft.inference.tokenizer import Tokenizer
from loragraft.system.confined import Confined

Message = Mapping[str, Any]
"""`role` (system, user, assistant, ...) and `content`: what JSON can hold."""

_HINT = "pass the prompt as it is, without --chat"


def render(
    template: str,
    messages: Sequence[Message],
    *,
    bos: str = "",
    eos: str = "",
    open_reply: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    extra: Mapping[str, Any] | None = None,
    subject: str | PathLike[str] = "chat template",
) -> str:
    """The text of `messages` under `template`; with `open_reply` up to where the model's reply begins.

    `bos`, `eos`: the texts of these tokens; `tools`: functions that the model may call; `extra`: further variables of
    the template. Raises LoragraftError, naming `subject`, for a template that is malformed,
    that refuses the messages, or that takes more time or memory than any conversation needs.
    """
    variables = {
        **(extra or {}),
        "messages": list(messages),
        "tools": None if tools is None else list(tools),
        "bos_token": bos,
        "eos_token": eos,
        "add_generation_prompt": open_reply,
    }
    try:
        answer = _renderer.ask({"template": template, "variables": variables})
    except (TypeError, ValueError, RecursionError) as problem:
        raise LoragraftError(
            "messages", f"cannot be written as JSON: {problem}", expected="roles and contents"
        ) from None
    if "problem" in answer:
        reason = " ".join(answer["problem"].split())
        raise LoragraftError(subject, f"its chat template fails: {reason}", hint=_HINT)
    return str(answer["answer"])


def template_of(model: ModelSource) -> str:
    """The chat template of `model`. Raises LoragraftError if it has none."""
    template = model.metadata.get("tokenizer.chat_template")
    if template is None:
        raise LoragraftError(model.path, "has no chat template", hint=_HINT)
    return str(template.data)


def conversation_text(
    model: ModelSource,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    open_reply: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> str:
    """`render` with the template of `model`."""
    bos, eos = (
        "" if token is None else tokenizer.decode([token], show_special=True)
        for token in (tokenizer.bos, tokenizer.eos)
    )
    return render(
        template_of(model),
        messages,
        bos=bos,
        eos=eos,
        open_reply=open_reply,
        tools=tools,
        extra=extra,
        subject=model.path,
    )


def with_bos(tokenizer: Tokenizer, ids: Ids) -> Ids:
    """The tokens of a conversation with BOS first, if the model wants it. Most templates write it themselves; as in
    llama.cpp, it comes once."""
    missing = tokenizer.add_bos and (not len(ids) or ids[0] != tokenizer.bos)
    return np.concatenate([[tokenizer.bos], ids]).astype(np.int32) if missing else ids


_renderer = Confined(
    Path(__file__).with_name("template_process.py"), ("jinja2", "markupsafe"), "chat template"
)

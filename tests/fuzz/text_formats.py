"""Formats that people and clients type: templates, options, conversations, requests to the server."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import hostile_models as hostile
import loragraft as lg
from fuzz.format import Format
from fuzz.mutate import mutated_json, mutated_text
from loragraft.errors import LoragraftError
from loragraft.formats.gguf.model import open_gguf
from loragraft.formats.gguf.values import Value
from loragraft.formats.split import parse_size
from loragraft.inference.calibration import calibration_windows
from loragraft.inference.chat import render
from loragraft.patterns import PatternError, SuffixTable, searcher
from loragraft.quants.filetypes import file_type
from loragraft.server.bodies import decoded
from loragraft.server.chat import ChatCompletions
from loragraft.server.completions import Completions
from loragraft.server.constraints import Grammars
from loragraft.server.errors import ApiError
from loragraft.server.schema import ChatRequest, CompletionRequest
from loragraft.server.serve import ServeOptions, make_state
from loragraft.streaming.options import layers, override, tensor_type, tensor_type_file
from loragraft.units import byte_count
from loragraft.units import share as unit_share


class Template(Format):
    share = 10

    def mutant(self, rng: random.Random) -> Path:
        text = (
            "{% for m in messages %}{{ m.role|upper }}: {{ m['content'] }}{% if loop.last %}{{ eos_token }}"
        )
        text += "{% endif %}{% endfor %}"
        tokens = [
            *(
                "{% for a in range(9999) %}",
                "{% endfor %}",
                "{{ 'a' * 10**9 }}",
                "{% macro m() %}",
                "{% endmacro %}",
            ),
            *(
                "{{ m() }}",
                "{% set x = x ~ x %}",
                "|tojson",
                "|sort",
                "|join",
                "[",
                "]",
                "(",
                ")",
                "{{",
                "}}",
                "{%",
                "%}",
            ),
            *(
                "**",
                "*",
                "//0",
                "%",
                ".__class__",
                "|attr('x')",
                "|format(1)",
                "|indent(10**9)",
                "namespace(x=1)",
                "|list",
            ),
            *(
                "{% if 1 %}",
                "{% endif %}",
                "cycler()",
                "|truncate(0)",
                "|xmlattr",
                "raise_exception('x')",
                "|batch(3)",
            ),
        ]
        self.path.write_text(mutated_text(rng, text, tokens))
        return self.path

    def read(self, path: Path) -> None:
        render(path.read_text(), [{"role": "user", "content": "hi"}], bos="<s>", eos="</s>")


_WORDS = (
    *(
        r"blk\.\d+\.attn_v=q8_0",
        "attn_v=q4_k",
        "k=int:3",
        "k=str:x",
        "k=bool:true",
        "0,1,2",
        "4G",
        "3.2GB",
        "99%",
    ),
    *("Q4_K_M", "15", "(a|b)*c", "[a-z_.0-9]+", "a{2,5}", "^x$", "(.*)*(.*)*x"),
)


class Options(Format):
    """Expressions, rules and the other texts of the command line."""

    share = 100

    def mutant(self, rng: random.Random) -> Path:
        tokens = [
            "(",
            ")",
            "*",
            "+",
            "?",
            "{2,3}",
            "{9999}",
            "[",
            "]",
            "^",
            "\\",
            "\\d",
            "|",
            "(?i)",
            "(?=",
            ".",
            "=",
            "int:",
        ]
        self.path.write_text(mutated_text(rng, rng.choice(_WORDS), tokens), "utf-8", "surrogatepass")
        return self.path

    def read(self, path: Path) -> None:
        text = path.read_text("utf-8", "surrogatepass")
        refused = ""
        for use in (
            *(searcher, lambda t: SuffixTable({t: 1}).find("a.b", 0), tensor_type, layers, override),
            *(file_type, lambda _: tensor_type_file(path)),
        ):
            try:
                use(text)
            except (LoragraftError, PatternError) as error:
                refused = str(error)
        for parse in (parse_size, byte_count, unit_share):  # click makes a usage error of a ValueError
            with suppress(ValueError, LoragraftError):
                parse(text)
        if refused:
            raise LoragraftError("options", refused[:40])


class Conversations(Format):
    """A text to calibrate on, a conversation or a text on each line."""

    share = 25

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = folder / "mutant.jsonl"
        self.model = open_gguf(hostile.gguf(folder / "model.gguf", hostile.model()))

    def mutant(self, rng: random.Random) -> Path:
        said = {"role": "user", "content": "the thing " * 4}
        lines = [
            {"text": hostile.TEXT},
            {"messages": [said]},
            {"prompt": "the", "completion": hostile.TEXT},
            {"conversations": [{"from": "gpt", "value": "in"}]},
        ]
        chosen = rng.choices(lines, k=2)
        text = "\n".join(
            json.dumps(mutated_json(rng, line) if rng.random() < 0.5 else line) for line in chosen
        )
        if rng.random() < 0.3:
            text = mutated_text(
                rng, text, ['"', "{", "}", "[" * 20_000, "\\ud800", "\n", "\u2028", "9" * 5000]
            )
        self.path.write_text(text, "utf-8", "surrogatepass")
        return self.path

    def read(self, path: Path) -> None:
        calibration_windows(self.model, [path], 2, 8)


class ServerBody(Format):
    """What a client sends, up to the request that the scheduler gets."""

    share = 40

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        small = hostile.model()
        small.metadata["tokenizer.chat_template"] = Value.string(
            "{% for m in messages %}{{ m.content }}{% endfor %}"
        )
        loaded = lg.load(hostile.gguf(folder / "model.gguf", small), threads=1)
        self.state = make_state(loaded, (), ServeOptions(alias="m"))
        self.grammars = Grammars(loaded.tokenizer)
        self.chat, self.plain = (
            ChatCompletions(self.state, self.grammars),
            Completions(self.state, self.grammars),
        )

    def mutant(self, rng: random.Random) -> Path:
        body = mutated_json(rng, rng.choice(_BODIES), rng.choice([1, 1, 2, 4]))
        self.path.write_bytes(json.dumps(body).encode())
        return self.path

    def read(self, path: Path) -> None:
        data = path.read_bytes()
        try:
            if b'"messages"' in data:
                self.chat.request(decoded(data, ChatRequest))
            else:
                for request in self.plain.requests(decoded(data, CompletionRequest)):
                    request.constraint and request.constraint()
        except ApiError as error:
            problem = error.message if 400 <= error.status < 500 else f"status {error.status}\n"
            raise LoragraftError("request", problem) from None


_SAID: list[dict[str, Any]] = [
    {"role": "system", "content": "the"},
    {"role": "user", "content": [{"type": "text", "text": "in <|end|>"}]},
    {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": '{"a": 1}'}}]},
    {"role": "tool", "content": "th", "tool_call_id": "a"},
]
_SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^a{1,9}$", "maxLength": 9}}}
_FUNCTION = {"type": "function", "function": {"name": "f", "parameters": _SCHEMA}}
_SETTINGS = {
    "model": "m",
    "n": 2,
    "seed": 1,
    "stop": ["x"],
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 3,
    "min_p": 0.1,
    "presence_penalty": 1,
    "logit_bias": {"3": 1},
    "max_tokens": 2,
    "lora": [],
}
_BODIES: list[dict[str, Any]] = [
    {**_SETTINGS, "prompt": "the thing", "logprobs": 2, "echo": True},
    {"model": "m", "prompt": [[3, 4], "th"], "grammar": 'root ::= "a" [b-d]*'},
    {**_SETTINGS, "messages": _SAID, "logprobs": True, "top_logprobs": 3, "chat_template_kwargs": {"a": 1}},
    {"model": "m", "messages": _SAID, "tools": [_FUNCTION], "tool_choice": "required"},
    {
        "model": "m",
        "messages": _SAID[:2],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": _SCHEMA}},
    },
]

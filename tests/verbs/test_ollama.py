"""Modelfiles: templates that say what the model's own say, and files that Ollama would find."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import loragraft as lg
from command_line import loragraft
from loragraft.formats.gguf.values import Value
from loragraft.formats.split import SplitLimits
from loragraft.inference.chat import render
from loragraft.inference.go_template import Messages, plain_template
from loragraft.opening import open_model
from loragraft.verbs.ollama import modelfile, ollama
from paths import data

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: As SmolLM2's: a system message of its own, where there is none.
DEFAULTED = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    + CHATML
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + "
    "m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
#: As Gemma's: no place for a system message but in the user's.
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + "
    "(first if loop.first else '') + m.content + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
#: It counts the turns: no texts around messages say that.
COUNTING = "{% for m in messages %}{{ loop.index ~ m.role ~ m.content }}{% endfor %}"


def rendered(template: str, bos: str = "<s>"):  # type: ignore[no-untyped-def]
    def run(messages: Messages, open_reply: bool) -> str:
        return render(template, messages, bos=bos, eos="</s>", open_reply=open_reply)

    return run


def run_go(template: str, messages: Messages) -> str:
    """The few things of Go's text/template that we write, done by the rules of its documentation."""
    tokens = re.findall(r"\{\{ (\"(?:[^\"\\]|\\.)*\"|.*?) \}\}|([^{]+)", template)
    assert all(not plain for _, plain in tokens), "text outside of actions"
    actions = [action for action, _ in tokens]
    system = next((each["content"] for each in messages if each["role"] == "system"), "")
    out: list[str] = []

    def true(condition: str, number: int, each: dict[str, str]) -> bool:
        last = number == len(messages) - 1
        known = {
            "not .System": not system,
            "not $last": not last,
            'and $last (ne .Role "assistant")': last and each.get("role") != "assistant",
            "and $.System (eq $i 1)": bool(system) and number == 1,
        }
        if condition.startswith("eq .Role "):
            return each["role"] == json.loads(condition[9:])
        return known[condition]

    def block(at: int, number: int, each: dict[str, str], live: bool) -> int:
        """Runs to the `end` or `else` that closes the block; where that is."""
        while at < len(actions):
            action = actions[at]
            if action == "end" or action.startswith("else"):
                return at
            if action.startswith("if "):
                taken, condition = False, action[3:]
                while True:
                    now = live and not taken and true(condition, number, each)
                    taken = taken or now
                    at = block(at + 1, number, each, now)
                    if actions[at] == "end":
                        break
                    condition = actions[at].removeprefix("else if ")
            elif action.startswith("range"):
                start, end = at + 1, at
                for place, message in enumerate(messages):
                    end = block(start, place, dict(message), live)
                at = end
            elif live and action.startswith('"'):
                out.append(json.loads(action))
            elif live and action == ".Content":
                out.append(each["content"])
            elif live and action == "$.System":
                out.append(system)
            at += 1
        return at

    assert block(0, 0, {}, True) == len(actions)
    return "".join(out)


def parsed(text: str) -> list[tuple[str, str]]:
    """What Ollama reads in a Modelfile, by the rules of its parser (parser/parser.go): a value goes to the end of the
    line, or to that of the line that closes its quotes; quotes come off, nothing is unescaped, what cannot be printed
    is dropped."""

    def value(given: str) -> str | None:
        for mark in ('"""', '"'):
            if given.startswith(mark):
                closed = len(given) >= 2 * len(mark) and given.endswith(mark)
                return given[len(mark) : -len(mark)] if closed else None
        return given

    commands, lines = [], iter(text.split("\n"))
    for line in lines:
        if not line.strip():
            continue
        name, _, rest = line.partition(" ")
        if name == "PARAMETER":
            name, _, rest = rest.partition(" ")
        while (found := value(rest.strip())) is None:
            rest += "\n" + next(lines)
        commands.append((name, "".join(char for char in found if char.isprintable() or char == "\n")))
    return commands


TALK = [
    {"role": "system", "content": 'Say "{{no}}"\nbriefly.'},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "1."},
    {"role": "user", "content": "And\ttwo?"},
]


@pytest.mark.parametrize(
    "template", [CHATML, DEFAULTED, LLAMA3, GEMMA], ids=["chatml", "default", "llama3", "gemma"]
)
@pytest.mark.parametrize(
    "talk", [TALK, TALK[1:], TALK[:2], TALK[1:2]], ids=["all", "no-system", "one", "bare"]
)
def test_gos_template_says_what_jinjas_says(template: str, talk: list[dict[str, str]]) -> None:
    found = plain_template(rendered(template), "<s>")
    assert found is not None
    assert run_go(found.go(), talk) == rendered(template)(talk, True).removeprefix("<s>")


def test_what_is_not_plain_is_not_guessed() -> None:
    assert plain_template(rendered(COUNTING)) is None
    assert plain_template(rendered("{{ messages[0].content }}")) is None
    assert plain_template(rendered("{{ raise_exception('no') }}")) is None


def test_what_ends_a_reply() -> None:
    found = plain_template(rendered(CHATML))
    assert found is not None
    assert found.stops == ["<|im_end|>"]


def test_a_modelfile(tmp_path: Path) -> None:
    override = {
        "tokenizer.chat_template": Value.string(DEFAULTED),
        "general.sampling.temp": Value.f32(0.6),
        "general.sampling.top_k": Value(type=Value.i32(1).type, data=20),
    }
    lg.merge(
        data("llama-kjv"),
        [],
        tmp_path / "my model.gguf",
        type="Q8_0",
        options=lg.QuantizeOptions(override_kv=override),
    )
    lg.convert_adapter(data("llama-kjv.shakespeare"), data("llama-kjv"), tmp_path / "poet.gguf")
    report = ollama(tmp_path / "my model.gguf", [tmp_path / "poet.gguf"], output=tmp_path / "Modelfile")
    text = (tmp_path / "Modelfile").read_text()
    assert report.text == text
    lines = text.splitlines()
    assert lines[:2] == ['FROM "./my model.gguf"', "ADAPTER ./poet.gguf"]
    assert 'PARAMETER stop "<|im_end|>"' in lines
    assert "PARAMETER temperature 0.6" in lines
    assert "PARAMETER top_k 20" in lines
    template = re.search(r'TEMPLATE """(.*)"""', text)
    assert template is not None
    assert run_go(template[1], TALK) == rendered(DEFAULTED, "")(TALK, True)


@pytest.mark.parametrize("name", ["plain", "a b", 'a "b" c', "a\\b c", 'ends "', "~", "..x", "ä 漢"])
def test_ollama_finds_the_file_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    lg.convert(data("llama-kjv"), tmp_path / f"{name}.gguf")
    report = ollama(tmp_path / f"{name}.gguf", output=tmp_path / "Modelfile")
    (command, path) = parsed(report.text)[0]
    assert command == "FROM"
    assert path == f"./{name}.gguf"


@pytest.mark.parametrize("end", ["<|im_end|>", 'say "end"', "two\nlines", '"""', "\u200b|\u00a0"])
def test_ollama_reads_the_texts_as_they_are(tmp_path: Path, end: str) -> None:
    template = CHATML.replace("<|im_end|>", json.dumps(end)[1:-1])
    override = {"tokenizer.chat_template": Value.string(template)}
    lg.convert(data("llama-kjv"), tmp_path / "f16.gguf")
    lg.quantize(
        tmp_path / "f16.gguf", tmp_path / "m.gguf", "Q8_0", options=lg.QuantizeOptions(override_kv=override)
    )
    read = parsed(ollama(tmp_path / "m.gguf").text)
    stops = [text for command, text in read if command == "stop"]
    assert stops == ([end] if "\u200b" not in end else [])
    (go,) = [text for command, text in read if command == "TEMPLATE"]
    go = re.sub(r"\\U000([0-9a-f]{5})", lambda match: chr(int(match[1], 16)), go)
    assert run_go(go, TALK) == rendered(template, "")(TALK, True)


def test_without_a_template_it_says_so(tmp_path: Path) -> None:
    lg.convert(data("llama-kjv"), tmp_path / "m.gguf")
    notes: list[str] = []
    assert "TEMPLATE" not in modelfile(open_model(tmp_path / "m.gguf"), "m.gguf", notes=notes)
    assert "has no chat template" in notes[0]


def test_the_command_creates_the_model_where_ollama_runs(tmp_path: Path) -> None:
    lg.convert(data("llama-kjv"), tmp_path / "m.gguf")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "ollama"  # one that says what it was asked, as there is none to install
    program.write_text(f'#!/bin/sh\necho "$@" > "{tmp_path}/asked"\n')
    program.chmod(0o755)
    words = [sys.executable, "-m", "loragraft", "ollama", str(tmp_path / "m.gguf"), "--name", "me/poet:q8"]
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "asked").read_text() == f"create me/poet:q8 -f {tmp_path / 'Modelfile'}\n"
    program.write_text("#!/bin/sh\necho could not connect >&2\nexit 1\n")
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert done.returncode == 1
    assert "could not connect" in done.stderr


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    lg.convert(data("llama-kjv"), folder / "m.gguf")
    lg.convert_adapter(data("llama-kjv.shakespeare"), data("llama-kjv"), folder / "poet.gguf")
    lg.split(folder / "m.gguf", folder / "parts", SplitLimits(max_tensors=20))
    return folder


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([str(data("llama-kjv"))], "Ollama takes GGUF files"),
        (["m.gguf", "--lora", str(data("llama-kjv.shakespeare"))], "is not a GGUF adapter"),
        (["m.gguf", "--name", "-rf /"], "Ollama takes no such name"),
        (["m.gguf", "--lora", "poet.gguf", "--lora", "poet.gguf"], "uses only one adapter"),
        (["parts-00001-of-00002.gguf"], "one of several files of a model"),
    ],
)
def test_what_is_refused(files: Path, words: list[str], says: str) -> None:
    done = loragraft("ollama", *words, cwd=files)
    assert done.returncode == 1, done.stderr
    assert says in done.stderr
    assert not (files / "Modelfile").exists()

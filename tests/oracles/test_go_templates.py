"""Modelfiles' templates, run by Go's own text/template, as Ollama runs them (template/template.go)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from loragraft.inference.chat import render
from loragraft.inference.go_template import Messages, plain_template

pytestmark = pytest.mark.oracle

PROGRAM = """package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct{ Role, Content string }

func main() {
	var cases []struct {
		Template, System string
		Messages         []*message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	var said []string
	for _, one := range cases {
		var text strings.Builder
		parsed := template.Must(template.New("").Option("missingkey=zero").Parse(one.Template))
		values := map[string]any{"System": one.System, "Messages": one.Messages, "Response": ""}
		if err := parsed.Execute(&text, values); err != nil {
			panic(err)
		}
		said = append(said, text.String())
	}
	json.NewEncoder(os.Stdout).Encode(said)
}
"""

START, END = "<|im_start|>", "<|im_end|>"


def chatml(end: str) -> str:
    text = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + END + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    return text.replace("END", json.dumps(end))


#: A system message within the first user's, as Gemma's.
WITHIN = (
    "{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{{ '<' + ('model' if m.role == 'assistant' else m.role) + '>\n' + "
    "(first if loop.first else '') + m.content + '<end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<model>\n' }}{% endif %}"
)
DEFAULTED = "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe kind.\n' }}{% endif %}" + chatml(
    END
)
ENDS = [END, 'say "end"', "two\nlines", '"""', "`{{ . }}`", "\u200b|\u00a0", "\x00\x1b", "\U0001f600"]
TALK = [
    {"role": "system", "content": 'Say "{{no}}"\nbriefly.'},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "1."},
    {"role": "user", "content": "And\ttwo?"},
]


def test_go_says_what_jinja_says(tmp_path: Path) -> None:
    if (go := shutil.which("go")) is None:
        pytest.skip("Go is not installed (Debian's golang-go)")
    cases, wanted = [], []
    for jinja in [*map(chatml, ENDS), WITHIN, DEFAULTED]:

        def rendered(messages: Messages, open_reply: bool, jinja: str = jinja) -> str:
            return render(jinja, messages, bos="", eos="", open_reply=open_reply)

        found = plain_template(rendered)
        assert found is not None
        for talk in (TALK, TALK[1:], TALK[:2], TALK[1:2]):
            system = next((each["content"] for each in talk if each["role"] == "system"), "")
            cases.append({"Template": found.go(), "System": system, "Messages": talk})
            wanted.append(rendered(talk, True))
    (tmp_path / "main.go").write_text(PROGRAM)
    done = subprocess.run(
        [go, "run", "main.go"],
        input=json.dumps(cases),
        cwd=tmp_path,
        env={**os.environ, "GO111MODULE": "off", "GOCACHE": str(tmp_path / "cache"), "GOPROXY": "off"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == wanted

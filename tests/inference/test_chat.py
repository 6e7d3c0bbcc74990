"""Chat templates against what transformers makes of them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import loragraft as lg
from loragraft.cli import app
from loragraft.inference.chat import render
from paths import ROOT, data

RECORDED = json.loads((ROOT / "tests/data/golden/chat-templates.json").read_text())


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["name"])
def test_as_transformers_renders_it(case: dict[str, object]) -> None:
    for conversation, expected in zip(case["conversations"], case["texts"], strict=True):  # type: ignore[call-overload]
        found = render(case["template"], conversation, bos="<s>", eos="</s>")  # type: ignore[arg-type]
        assert found == expected


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('roles must alternate') }}", "its chat template fails: roles must alternate"),
        ("{% for", "its chat template fails"),
        ("{{ messages[0].content + 1 }}", "its chat template fails"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ range(10**9) | list }}", "Range too big"),
        ("{{ messages.append(1) }}", "unsafe"),
    ],
)
def test_a_strangers_template_is_held_in_its_sandbox(template: str, says: str) -> None:
    with pytest.raises(lg.LoragraftError, match=says) as caught:
        render(template, [{"role": "user", "content": "x"}], subject="model.gguf")
    assert str(caught.value).startswith("model.gguf: ")


def chatty(folder: Path, template: str | None, *, bos: bool) -> lg.Model:
    options = lg.QuantizeOptions(
        override_kv={"tokenizer.ggml.add_bos_token": bos}
        | ({} if template is None else {"tokenizer.chat_template": template})
    )
    lg.merge(data("llama-kjv"), [], folder / "chat.gguf", type="Q8_0", options=options)
    return lg.load(folder / "chat.gguf")


def test_the_prompt_has_bos_once_and_control_tokens_as_tokens(tmp_path: Path) -> None:
    wanting = chatty(tmp_path, "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", bos=True)
    own = wanting.tokenizer
    assert own.bos is not None
    inner = [int(token) for token in wanting.tokenize("Be not afraid", add_special=False)]
    assert list(wanting.chat_prompt("Be not afraid")) == [own.bos, *inner, own.eos]
    silent = chatty(tmp_path, "{{ messages[-1].content }}", bos=True)
    assert list(silent.chat_prompt("Be not afraid")) == [own.bos, *inner]
    never = chatty(tmp_path, "{{ messages[-1].content }}", bos=False)
    assert list(never.chat_prompt([{"role": "user", "content": "Be not afraid"}])) == inner
    text = "".join(never.generate(never.chat_prompt("Be not afraid"), max_tokens=5, temperature=0))
    assert text == "".join(never.generate("Be not afraid", max_tokens=5, temperature=0))


def test_a_model_without_a_template_says_so(tmp_path: Path) -> None:
    with pytest.raises(lg.LoragraftError, match="has no chat template; pass the prompt as it is"):
        chatty(tmp_path, None, bos=True).chat_prompt("x")


def test_the_command(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    model = chatty(tmp_path, template, bos=False)
    greedy = ["run", str(model.path), "-p", "Be not afraid", "-n", "5", "--temp", "0"]
    runner = CliRunner()
    plain = runner.invoke(app, greedy)
    chat = runner.invoke(app, [*greedy, "--chat", "--system", "Speak low"])
    messages = [{"role": "system", "content": "Speak low"}, {"role": "user", "content": "Be not afraid"}]
    reply = "".join(model.generate(model.chat_prompt(messages), max_tokens=5, temperature=0))
    assert plain.stdout.startswith("Be not afraid")
    assert chat.stdout == f"{reply}\n"  # no echo
    wrong = runner.invoke(app, [*greedy, "--system", "x"])
    assert (wrong.exit_code, "--system needs --chat" in wrong.output) == (2, True)


#: What a stranger's template may do to those who only wanted to chat.
HOSTILE = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a long text": "{{ 'a' * 10**10 }}",
    "a long number": "{{ 10 ** (10**9) }}",
    "doubling": "{% set ns = namespace(x='a') %}{% for a in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "a list of itself": "{% set a = namespace(x=[1]) %}{% for _ in range(64) %}{% set a.x = [a.x, a.x] %}{% endfor %}"
    "{{ a.x }}",
    "equal lists": "{% set a = namespace(x=[1]) %}{% set b = namespace(x=[1]) %}{% for _ in range(64) %}"
    "{% set a.x = [a.x, a.x] %}{% set b.x = [b.x, b.x] %}{% endfor %}{{ a.x == b.x }}",
    "a wide format": "{{ '%1000000000d' % 1 }}",
    "a wide center": "{{ 'a'|center(10**10) }}",
    "replacing": "{{ ('a' * 100000)|replace('a', 'b' * 100000) }}",
    "much output": "{% for a in range(9999) %}{{ 'a' * 9999 }}{% endfor %}",
    "no length": "{{ 'abc'|truncate(0) }}",
    "no attributes": "{{ [1,2]|xmlattr }}",
    "nothing to cycle": "{{ cycler().next() }}",
    "blocks in blocks": "{% if 1 %}" * 120 + "{% endif %}" * 120,
    "21 loops": "{% for a in messages %}" * 21 + "{% endfor %}" * 21,
    "brackets": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "a macro of itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a long template": "a" * (1 << 21),
    "a lookup": "{{ messages['x'|first] }}{{ messages.x.y }}",
    "a format": "{{ '{'.format(1) }}",
    "half of a pair": "{{ '\\ud800'|tojson|upper|int(1, 0) }}",
}


HARMLESS = ("half of a pair",)


@pytest.mark.parametrize("case", HOSTILE)
def test_no_template_takes_more_than_it_may(case: str) -> None:
    start = time.monotonic()
    if case in HARMLESS:
        render(HOSTILE[case], [{"role": "user", "content": "x"}])
    else:
        with pytest.raises(lg.LoragraftError, match=r"^model\.gguf: its chat template fails: ") as caught:
            render(HOSTILE[case], [{"role": "user", "content": "x"}], subject="model.gguf")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1500
    assert time.monotonic() - start < 20
    assert render("{{ messages[0].content }}", [{"role": "user", "content": "still"}]) == "still"


def test_messages_that_are_none() -> None:
    with pytest.raises(lg.LoragraftError, match="messages: cannot be written as JSON"):
        render("x", [{"role": "user", "content": object()}])


def test_a_fork_does_not_take_its_parents_answers() -> None:
    render("x", [])
    child = os.fork()
    if child == 0:
        os._exit(0 if render("{{ bos_token }}", [], bos="child") == "child" else 1)
    texts = [render("{{ bos_token }}", [], bos=str(number)) for number in range(20)]
    assert texts == [str(number) for number in range(20)]
    assert os.waitpid(child, 0)[1] == 0


def test_the_process_is_used_again() -> None:
    render("x", [])
    start = time.monotonic()
    for _ in range(100):
        render("{{ messages[0].content }}", [{"content": "a" * 10_000}])
    assert time.monotonic() - start < 5

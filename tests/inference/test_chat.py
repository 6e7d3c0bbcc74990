"""Chat templates against what transformers makes of them."""

from __future__ import annotations

import json
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

"""Adapters that work from their invocation tokens on (aLoRA): what runs, and whose prefix it shares."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import loragraft as lg
from contamination import Asked, Recorder
from loragraft.adapters.invocation import invocation_tokens, invoked_at
from loragraft.backends.batch import Piece as Rows
from loragraft.cli import app
from loragraft.errors import AdapterError
from loragraft.formats.gguf.reader import GGUFFile
from loragraft.inference.conversation import Conversation
from loragraft.inference.measurement import BackendName
from loragraft.inference.model import Model
from loragraft.inference.sampling import Sampling
from loragraft.inference.scheduler.loop import Scheduler
from loragraft.inference.scheduler.request import Done, Failed, Started
from loragraft.inference.scheduler.shelf import Shelf, plain_only
from loragraft.opening import load_adapter
from paths import arrays, data
from served import scaled_adapter
from tolerances import nmse

INVOCATION = [400, 401]
BEFORE = np.array([7, 8, 9, 10, 11, 12, 13, 14], np.int32)
PROMPT = np.concatenate([BEFORE, np.array([*INVOCATION, 20, 21], np.int32)])


@pytest.fixture(scope="module")
def model() -> Model:
    return lg.load(data("llama-kjv"))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = scaled_adapter(tmp_path_factory.mktemp("alora") / "judge", 1.0, 3)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "alora_invocation_tokens": INVOCATION}))
    return folder


@pytest.fixture
def scheduler(model: Model, path: Path) -> Iterator[Scheduler]:
    shelf = Shelf(model.program, lambda path: plain_only(load_adapter(path, model.source, invoked=True)))
    shelf.register("judge", path)
    shelf.register("poet", data("llama-kjv.shakespeare"))
    scheduler = Scheduler(model.program, model.tokenizer, shelf, context=model.context_length, chunk=5)
    scheduler.start()
    yield scheduler
    scheduler.stop(0)
    for name in ("judge", "poet"):
        shelf.unregister(name)


def ask(scheduler: Scheduler, prompt: np.ndarray, *adapters: str) -> tuple[Asked, Done | Failed]:
    asked = Asked(
        prompt, tuple((name, 1.0) for name in adapters), Sampling(temperature=0), 5, recorder=Recorder()
    )
    scheduler.submit(asked.request)
    return asked, asked.end()


def by_hand(model: Model, path: Path, prompt: np.ndarray, place: int, steps: int) -> list[str]:
    """The digests of the logits where the rows before `place` are read by the base, in one batch with the others."""
    program = model.program
    slot = program.add_adapter(load_adapter(path, model.source, invoked=True))
    sequence = program.open_sequence()
    digests, tokens = Recorder(), prompt[place:]
    try:
        if place:
            program.run([Rows(sequence, prompt[:place], (), "none")])
        for _ in range(steps):
            (logits,) = program.run([Rows(sequence, tokens, ((slot, 1.0),), "last")])
            digests.mask(logits)
            tokens = np.array([logits.argmax()], np.int32)
    finally:
        program.close_sequence(sequence)
        program.drop_adapter(slot)
    return digests.digests


def test_it_works_from_its_tokens_on(model: Model, scheduler: Scheduler, path: Path) -> None:
    asked, done = ask(scheduler, PROMPT, "judge")
    assert isinstance(done, Done)
    assert [(ran.name, ran.active_from) for ran in done.adapters] == [("judge", len(BEFORE))]
    steps = len(asked.recorder.digests)
    assert steps > 1
    assert asked.recorder.digests == by_hand(model, path, PROMPT, len(BEFORE), steps)
    assert asked.recorder.digests != by_hand(model, path, PROMPT, 0, steps)


def test_the_base_s_prefix_is_shared_both_ways(model: Model, scheduler: Scheduler, path: Path) -> None:
    _, first = ask(scheduler, BEFORE)  # the base reads it
    again, second = ask(scheduler, PROMPT, "judge")
    assert isinstance(first, Done)
    assert isinstance(second, Done)
    assert second.cached_tokens == len(BEFORE)
    assert again.recorder.digests == by_hand(model, path, PROMPT, len(BEFORE), len(again.recorder.digests))
    other = np.concatenate([BEFORE[:4], [90, 91, 92], INVOCATION]).astype(np.int32)
    ask(scheduler, other, "judge")
    _, third = ask(scheduler, other, "poet")
    assert isinstance(third, Done)
    assert third.cached_tokens == 0  # another adapter does not
    _, fourth = ask(scheduler, np.append(other[:7], 5).astype(np.int32))
    assert isinstance(fourth, Done)
    assert (
        fourth.cached_tokens == 7
    )  # the base takes what was read before the tokens, and nothing behind them
    _, fifth = ask(scheduler, np.append(other, 5).astype(np.int32))
    assert isinstance(fifth, Done)
    assert fifth.cached_tokens == 7


def test_without_its_tokens_it_is_refused(scheduler: Scheduler) -> None:
    _, end = ask(scheduler, BEFORE, "judge")
    assert isinstance(end, Failed)
    assert "the prompt does not hold" in str(end.error)
    assert isinstance(ask(scheduler, BEFORE)[1], Done)  # and nothing else is


def test_beside_an_adapter_that_always_works(scheduler: Scheduler) -> None:
    asked = Asked(PROMPT, (("poet", 1.0), ("judge", 1.0)), Sampling(temperature=0), 3)
    scheduler.submit(asked.request)
    events = []
    while not isinstance(event := asked.events.get(timeout=120), Done | Failed):
        events.append(event)
    assert isinstance(event, Done)
    (started,) = [event for event in events if isinstance(event, Started)]
    assert [ran.active_from for ran in started.adapters] == [None, len(BEFORE)]


def test_no_merged_weight_does_it(model: Model, path: Path, tmp_path: Path) -> None:
    with pytest.raises(
        AdapterError, match=r"works only from its invocation tokens on .*loragraft run BASE --lora"
    ):
        load_adapter(path, model.source)
    with pytest.raises(AdapterError, match="no merged weight can do"):
        lg.merge(data("llama-kjv"), path, tmp_path / "o.gguf")
    assert not (tmp_path / "o.gguf").exists()


# ---- beside the base, without a scheduler ----


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter of golden/make_peft_alora.py."""
    folder = tmp_path_factory.mktemp("alora") / "trained"
    shutil.copytree(data("llama-kjv.shakespeare"), folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "alora_invocation_tokens": INVOCATION}))
    return folder


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("form", ["peft", "gguf", "back"])
def test_logits_are_peft_s(trained: Path, tmp_path: Path, backend: BackendName, form: str) -> None:
    """Also converted to GGUF, and back to a folder."""
    adapter = trained
    if form != "peft":
        lg.convert_adapter(trained, data("llama-kjv"), tmp_path / "a.gguf")
        adapter = tmp_path / "a.gguf"
    if form == "back":
        lg.convert_adapter(adapter, data("llama-kjv"), tmp_path / "back", to="peft")
        adapter = tmp_path / "back"
    golden = arrays("golden/peft-alora.npz")
    model = lg.load(data("llama-kjv"), adapter, backend=backend, activations="f32")
    always = lg.load(data("llama-kjv"), data("llama-kjv.shakespeare"), backend=backend, activations="f32")
    for number, begins in enumerate((8, 4, 0)):
        ids, rows, expected = (golden[f"{key}{number}"] for key in ("ids", "rows", "logits"))
        assert nmse(model.logits(ids)[rows], expected) < 1e-11
        assert (nmse(always.logits(ids)[rows], expected) > 1e-4) == (begins > 0)


def test_it_generates_what_peft_does(trained: Path) -> None:
    golden = arrays("golden/peft-alora.npz")
    model = lg.load(data("llama-kjv"), trained, activations="f32")
    stream = model.generate(golden["ids0"], max_tokens=12, temperature=0)
    list(stream)
    assert stream.ids == golden["greedy"].tolist()


def test_long_prompts_go_in_batches(trained: Path) -> None:
    ids = np.random.default_rng(5).integers(2, 300, 1010).astype(np.int32)
    ids[700:702] = INVOCATION
    model = lg.load(data("llama-kjv"), trained, activations="f32")
    whole, base = model.logits(ids), lg.load(data("llama-kjv"), activations="f32")
    np.testing.assert_allclose(whole[:700], base.logits(ids[:700]), rtol=0, atol=1e-4)
    np.testing.assert_allclose(model.logits(ids, first=1000), whole[1000:], rtol=0, atol=1e-4)
    stream = model.generate(ids, max_tokens=1, temperature=0)
    list(stream)
    assert stream.ids == [whole[-1].argmax()]


def test_two_of_them_begin_each_at_its_own_place(trained: Path, path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(path, other)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "alora_invocation_tokens": [10]}))
    model = lg.load(data("llama-kjv"), [trained, (other, 0.5)], activations="f32")
    both = model.logits(PROMPT)
    first, second = model.adapters.active
    program = model.program
    sequence = program.open_sequence()
    ends = [(0, 3, ()), (3, 8, (second,)), (8, 12, (first, second))]
    by_parts = [program.run([Rows(sequence, PROMPT[a:b], active, "all")]) for a, b, active in ends]
    program.close_sequence(sequence)
    np.testing.assert_array_equal(both, np.concatenate(by_parts))


def test_a_prompt_without_its_tokens_is_refused(trained: Path) -> None:
    model = lg.load(data("llama-kjv"), trained)
    words = re.escape(repr(model.detokenize(INVOCATION, show_special=True)))
    for refused in (model.logits, model.generate):
        with pytest.raises(
            AdapterError, match=rf"does not hold: found 8 other .*\[400, 401\]; put {words} where"
        ):
            refused(BEFORE)
    model.set_adapters([(trained, 0.0)])
    np.testing.assert_array_equal(model.logits(BEFORE), lg.load(data("llama-kjv")).logits(BEFORE))
    model.set_adapters([])
    np.testing.assert_array_equal(model.logits(BEFORE), lg.load(data("llama-kjv")).logits(BEFORE))


def test_the_command_line(trained: Path, tmp_path: Path) -> None:
    words = lg.load(data("llama-kjv")).detokenize(INVOCATION, show_special=True)
    command = ["run", str(data("llama-kjv")), "--lora", str(trained), "-n", "4", "--temp", "0", "-p"]
    done = CliRunner().invoke(app, [*command, "In the beginning" + words])
    assert done.exit_code == 0, done.output
    assert "works only from its invocation tokens [400, 401] on (aLoRA)" in done.output
    done = CliRunner().invoke(app, [*command, "In the beginning"])
    assert done.exit_code == 1
    assert "put " + repr(words) in done.output
    done = CliRunner().invoke(app, ["inspect", str(data("llama-kjv")), "--lora", str(trained)])
    assert done.exit_code == 0, done.output
    assert "[400, 401] on (aLoRA)" in done.output
    lg.convert_adapter(trained, data("llama-kjv"), tmp_path / "a.gguf")
    key = GGUFFile.open(tmp_path / "a.gguf").metadata["adapter.alora.invocation_tokens"]
    assert key.data.tolist() == INVOCATION
    assert key.data.dtype == np.uint32
    with pytest.raises(AdapterError, match="invocation tokens"):
        lg.convert_adapter(trained, data("llama-kjv"), tmp_path / "mlx", to="mlx")


def test_a_conversation_says_it(model: Model, path: Path) -> None:
    with Conversation(model, [("judge", path, 1.0)]) as talk:
        assert any(
            "works only from its invocation tokens [400, 401] on (aLoRA)" in note for note in talk.notes
        )


def test_the_last_place_counts() -> None:
    prompt = np.array([1, 2, 3, 1, 2, 4], np.int32)
    assert invoked_at(prompt, (1, 2)) == 3
    assert invoked_at(prompt, (1, 2, 3)) == 0
    assert invoked_at(prompt, (2, 2)) is None
    assert invoked_at(prompt[:1], (1, 2)) is None


@pytest.mark.parametrize("value", [[], "12", [-1], [1.5], [True], list(range(5000)), [2**40]])
def test_tokens_that_are_none(value: object) -> None:
    with pytest.raises(AdapterError, match="bad alora_invocation_tokens"):
        invocation_tokens(Path("adapter"), "alora_invocation_tokens", value)

"""The scheduler: answers, fairness, bounds, and that nothing of one request reaches another."""

from __future__ import annotations

import gc
import json
import os
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import loragraft as lg
from contamination import Asked, Recorder, storm
from hf_configs import records, weights, write_tokenizer
from loragraft.backends.batch import Piece as Rows
from loragraft.errors import BusyError, LoragraftError, TimeLimitError
from loragraft.inference.model import Model
from loragraft.inference.sampling import Sampling
from loragraft.inference.scheduler.embedding import LONGEST, HiddenStates
from loragraft.inference.scheduler.loop import Scheduler
from loragraft.inference.scheduler.prefixes import PrefixCache
from loragraft.inference.scheduler.request import (
    Done,
    Embedded,
    Failed,
    Floats,
    Piece,
    Pooling,
    Request,
    Started,
)
from loragraft.inference.scheduler.shelf import Shelf, plain_only
from loragraft.inference.scheduler.stopping import StopTexts
from loragraft.opening import load_adapter
from paths import data
from served import scaled_adapter

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def model() -> Model:
    return lg.load(data("llama-kjv"))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: scaled_adapter(folder / name, 1.0, seed) for seed, name in enumerate(("one", "two", "three"))
    }


@pytest.fixture
def scheduler(model: Model, paths: dict[str, Path]) -> Iterator[Scheduler]:
    yield from scheduled(model, paths)


def scheduled(model: Model, paths: dict[str, Path], **settings: int) -> Iterator[Scheduler]:
    shelf = Shelf(model.program, lambda path: plain_only(load_adapter(path, model.source)))
    for name, path in paths.items():
        shelf.register(name, path)
    scheduler = Scheduler(model.program, model.tokenizer, shelf, context=model.context_length, **settings)
    scheduler.start()
    yield scheduler
    scheduler.stop(0)
    for name in paths:
        shelf.unregister(name)


def asked(model: Model, text: str, tokens: int = 8, **more: object) -> Asked:
    made = Asked(model.tokenize(text), (), GREEDY, tokens)
    for name, value in more.items():
        setattr(made.request, name, value)
    return made


class Gate(Recorder):
    """Holds the scheduler where the first token is chosen, until it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.opened = threading.Event(), threading.Event()

    def mask(self, logits: Floats) -> None:
        self.reached.set()
        assert self.opened.wait(120)


def held(model: Model, scheduler: Scheduler, tokens: int, **more: object) -> tuple[Asked, Gate]:
    """A request that was submitted, and has come to its gate."""
    made, gate = asked(model, "And", tokens, **more), Gate()
    made.request.constraint = lambda: gate
    scheduler.submit(made.request)
    assert gate.reached.wait(120)
    return made, gate


def start(scheduler: Scheduler, made: Asked) -> Asked:
    scheduler.submit(made.request)
    return made


def text_of(made: Asked) -> str:
    pieces = []
    while not isinstance(event := made.events.get(timeout=120), Done):
        assert not isinstance(event, Failed), event.error
        if isinstance(event, Piece):
            pieces.append(event.text)
    return "".join(pieces)


def test_a_reply_is_what_the_model_generates(model: Model, scheduler: Scheduler) -> None:
    made = asked(model, "And the king", 12)
    scheduler.submit(made.request)
    assert text_of(made) == "".join(model.generate("And the king", max_tokens=12, temperature=0))


def test_a_prompt_that_was_read_is_not_read_again(model: Model, scheduler: Scheduler) -> None:
    ends = []
    for adapters in ((), (), (("one", 1.0),), (("one", 1.0),), (("one", 0.5),)):
        made = asked(model, "In the beginning God created the heaven", 2, adapters=adapters)
        scheduler.submit(made.request)
        end = made.end()
        assert isinstance(end, Done)
        ends.append(end.cached_tokens)
    whole = len(model.tokenize("In the beginning God created the heaven")) - 1
    assert ends == [0, whole, 0, whole, 0]


@pytest.mark.parametrize("seed", range(2))
def test_nothing_of_one_request_reaches_another(paths: dict[str, Path], seed: int) -> None:
    model, cold = (lg.load(data("llama-kjv")) for _ in range(2))
    adapters = {name: load_adapter(path, model.source) for name, path in paths.items()}
    for scheduler in scheduled(model, paths, chunk=16):
        counts = storm(
            scheduler,
            cold.program,
            adapters,
            paths,
            model.tokenizer.size,
            model.tokenizer.end_ids,
            requests=120,
            seed=seed,
        )
    assert counts["differing"] == counts["failed"] == 0
    assert counts["finished"] > 80
    assert counts["cancelled"] > 3


def test_more_than_may_wait_is_refused(model: Model, paths: dict[str, Path]) -> None:
    for scheduler in scheduled(model, {}, sequences=1, waiting=2):
        first, gate = held(model, scheduler, 3)
        waiting = [asked(model, "And", 3) for _ in range(2)]
        for each in waiting:
            scheduler.submit(each.request)
        for _ in range(3):
            with pytest.raises(BusyError, match="too many requests are waiting: found 2"):
                scheduler.submit(asked(model, "And", 3).request)
        gate.opened.set()
        assert all(isinstance(each.end(), Done) for each in (first, *waiting))


def test_a_request_that_is_cancelled_ends_without_a_word(model: Model, scheduler: Scheduler) -> None:
    made, gate = held(model, scheduler, 500)
    assert isinstance(made.events.get(timeout=120), Started)
    scheduler.cancel(made.request)
    other = asked(model, "And", 2)
    scheduler.submit(other.request)
    gate.opened.set()
    text_of(other)
    assert scheduler.active == 0
    assert not any(isinstance(made.events.get_nowait(), Done) for _ in range(made.events.qsize()))


def test_a_request_that_comes_while_another_is_refused_is_not_slept_over(
    model: Model, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes when the scheduler's thread has looked for requests and does not sleep yet: nobody is there to be
    woken."""
    sleeps: list[float | None] = []
    wait = scheduler._wake.wait

    def noted(timeout: float | None = None) -> bool:
        sleeps.append(timeout)
        return wait(timeout)

    monkeypatch.setattr(scheduler._wake, "wait", noted)
    refused, other = asked(model, "And", 2, adapters=(("unknown", 1.0),)), asked(model, "And", 2)

    def emit(event: object) -> None:
        assert isinstance(event, Failed)
        scheduler.submit(other.request)

    refused.request.emit = emit
    scheduler.submit(refused.request)
    text_of(other)
    assert not [seconds for seconds in sleeps if seconds is not None]


def test_a_time_limit(model: Model, scheduler: Scheduler) -> None:
    gate = Gate()
    made = asked(model, "And", 1000, timeout=0.05, constraint=lambda: gate)
    scheduler.submit(made.request)
    time.sleep(0.06)
    gate.opened.set()
    end = made.end()
    assert isinstance(end, Failed)
    assert isinstance(end.error, TimeLimitError)


def test_one_adapter_does_not_starve_another(model: Model, paths: dict[str, Path]) -> None:
    for scheduler in scheduled(model, paths, sequences=2, waiting=64):
        for name in ("one", "two"):
            scheduler.shelf.preload(name)
        ended: queue.SimpleQueue[str] = queue.SimpleQueue()

        def emit(name: str, event: object, ended: queue.SimpleQueue[str] = ended) -> None:
            if isinstance(event, Done):
                ended.put(name)

        for name in ["one"] * 40 + ["two"]:
            scheduler.submit(
                Request(
                    model.tokenize("And"),
                    emit=lambda event, name=name: emit(name, event),
                    adapters=((name, 1.0),),
                    max_tokens=3,
                    sampling=GREEDY,
                )
            )
        before = ended.qsize()  # what had ended when the last request came
        order = [ended.get(timeout=120) for _ in range(41)]
        assert order.index("two") <= before + 6


def test_adapters_that_do_not_fit_together_run_together(model: Model, paths: dict[str, Path]) -> None:
    """Each was dropped for the other while they were loaded, until the request's time was over."""
    size = model.program.adapter_bytes(load_adapter(paths["one"], model.source))
    shelf = Shelf(model.program, lambda path: load_adapter(path, model.source), most_bytes=size)
    for name, path in paths.items():
        shelf.register(name, path)
    scheduler = Scheduler(model.program, model.tokenizer, shelf, context=model.context_length)
    scheduler.start()
    all_three = tuple((name, 0.5) for name in paths)
    made = [asked(model, "And", 2, adapters=wanted) for wanted in (all_three, all_three[1:], all_three)]
    for each in made:
        scheduler.submit(each.request)
    assert all(isinstance(each.end(), Done) for each in made)
    scheduler.stop(0)
    assert shelf.bytes <= size
    for name in paths:
        shelf.unregister(name)


def test_several_replies_get_their_turn_beside_single_ones(model: Model, paths: dict[str, Path]) -> None:
    """They need several places at once, and single ones took each that became free."""
    for scheduler in scheduled(model, paths, sequences=2, waiting=64):
        scheduler.shelf.preload("one")
        ended: queue.SimpleQueue[int] = queue.SimpleQueue()
        made = [asked(model, "And", 40), asked(model, "And", 2, choices=2)]
        made += [asked(model, "And", 3, adapters=(("one", 1.0),)) for _ in range(40)]
        for number, each in enumerate(made):

            def emit(event: object, number: int = number, ended: queue.SimpleQueue[int] = ended) -> None:
                if isinstance(event, Done):
                    ended.put(number)

            each.request.emit = emit
            scheduler.submit(each.request)
        order = [ended.get(timeout=60) for _ in made]
        assert order.index(1) < len(made) - 10


def test_stopping_finishes_what_runs(model: Model) -> None:
    for scheduler in scheduled(model, {}):
        first, gate = held(model, scheduler, 20)
        made = [asked(model, "And the", 20) for _ in range(5)]
        for each in made:
            scheduler.submit(each.request)
        stopping = threading.Thread(target=scheduler.stop, args=(120,))
        stopping.start()
        while scheduler._state == "running":
            time.sleep(0.001)
        with pytest.raises(BusyError, match="stopping"):
            scheduler.submit(asked(model, "And").request)
        gate.opened.set()
        assert all(isinstance(each.end(), Done) for each in (first, *made))
        stopping.join()


@pytest.mark.parametrize("prompt", [[], [1] * 2000])
def test_prompts_that_cannot_be_continued(scheduler: Scheduler, prompt: list[int]) -> None:
    with pytest.raises(LoragraftError, match="prompt: "):
        scheduler.submit(Request(np.array(prompt, np.int32), emit=lambda event: None))


def test_a_broken_adapter_is_the_error_of_its_own_requests(
    model: Model, scheduler: Scheduler, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text("{")
    scheduler.shelf.register("broken", tmp_path)
    bad, good = asked(model, "And", 4, adapters=(("broken", 1.0),)), asked(model, "And", 4)
    scheduler.submit(bad.request)
    scheduler.submit(good.request)
    end = bad.end()
    assert isinstance(end, Failed)
    assert "adapter_config.json" in str(end.error)
    assert isinstance(good.end(), Done)
    scheduler.shelf.unregister("broken")


def test_adapters_that_do_not_run_together_are_the_error_of_their_request(
    model: Model, scheduler: Scheduler, tmp_path: Path
) -> None:
    """Factors of what enters a layer, and behind them a pair for that layer: not so in the other order."""
    config = {"peft_type": "IA3", "target_modules": ["down_proj"], "feedforward_modules": ["down_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "task_type": "CAUSAL_LM"}))
    width = model.source.tensors["blk.0.ffn_down.weight"].shape[1]
    name = "base_model.model.model.layers.0.mlp.down_proj.ia3_l"
    save_file({name: np.full((1, width), 1.5, np.float32)}, tmp_path / "adapter_model.safetensors")
    scheduler.shelf.register("factors", tmp_path)
    bad = asked(model, "And", 4, adapters=(("factors", 1.0), ("one", 1.0)))
    others = [asked(model, "And", 4, adapters=(("one", 1.0), ("factors", 1.0))), asked(model, "And", 4)]
    for each in (bad, *others):
        scheduler.submit(each.request)
    end = bad.end()
    assert isinstance(end, Failed)
    assert "name it last" in str(end.error)
    assert all(isinstance(other.end(), Done) for other in others)
    scheduler.shelf.unregister("factors")


@pytest.mark.parametrize(
    ("stops", "pieces", "shown"),
    [
        (["END"], ["abc EN", "D def"], "abc "),
        (["END"], ["abc E", "x", "EN"], "abc ExEN"),
        (["ab", "b"], ["aa", "b"], "a"),
        (["\n\n"], ["a\n", "b\n", "\n", "c"], "a\nb"),
        ([], ["x", "y"], "xy"),
    ],
)
def test_stop_texts(stops: list[str], pieces: list[str], shown: str) -> None:
    texts = StopTexts(stops)
    assert "".join([*(texts.push(piece) for piece in pieces), texts.finish()]) == shown


def test_prefixes_are_forgotten_oldest_first() -> None:
    closed: list[int] = []
    cache = PrefixCache(closed.append, most=2)
    ids = [np.array([n, n, n], np.int32) for n in range(4)]
    for number in range(3):
        cache.add((), ids[number], number)
    assert closed == [0]
    assert list(cache.longest((), ids[1])) == [(1, 3)]
    cache.add((), ids[3], 3)
    assert closed == [0, 2]
    cache.add((), np.array([1, 1, 1, 5], np.int32), 4)  # contains entry 1
    assert closed == [0, 2, 1]
    assert list(cache.longest((("sha", 1.0),), ids[3])) == []
    cache.clear()
    assert sorted(closed) == [0, 1, 2, 3, 4]


def test_states_that_cannot_be_taken_back_are_shared_where_they_end() -> None:
    closed: list[int] = []
    cache = PrefixCache(closed.append, rewinds=False)
    ids = np.arange(6, dtype=np.int32)
    for number, length in enumerate((4, 2, 4)):
        cache.add((), ids[:length], number)
    assert (closed, len(cache)) == ([2], 2)
    assert list(cache.longest((), ids)) == [(0, 4), (1, 2)]
    assert list(cache.longest((), ids[:3])) == [(1, 2)]
    assert list(cache.longest((), ids[:1])) == []


def test_a_conversation_with_a_recurrent_model(tmp_path: Path) -> None:
    """Its second turn goes on from where the first ended; the first prompt alone is read anew. Replies are those of the
    model itself, and nothing is guessed ahead, which could not be taken back."""
    record = records()["lfm2"]
    save_file(weights(record["shapes"], "lfm2"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(record["config"]))
    write_tokenizer(tmp_path)
    model = lg.load(tmp_path)
    prompt = np.tile(np.arange(10, 14, dtype=np.int32), 4)
    guessed: list[int] = []

    def reply(scheduler: Scheduler, ids: np.ndarray, choices: int = 1) -> tuple[int, list[str]]:
        made = Asked(ids, (), GREEDY, 6)
        made.request.choices = choices
        scheduler.submit(made.request)
        texts = [""] * choices
        while not isinstance(event := made.events.get(timeout=120), Done):
            assert not isinstance(event, Failed), event.error
            if isinstance(event, Piece):
                texts[event.choice] += event.text
        return event.cached_tokens, texts

    for scheduler in scheduled(model, {}):
        scheduler.telemetry.guesses = lambda count, right: guessed.append(count)  # type: ignore[method-assign]
        cached, [text] = reply(scheduler, prompt)
        first = "".join(model.generate(prompt, max_tokens=6, temperature=0))
        assert (cached, text) == (0, first)
        assert reply(scheduler, prompt, choices=2) == (0, [first, first])
        longer = np.concatenate([prompt, model.tokenize(text), prompt[:3]])
        cached, [text] = reply(scheduler, longer)
        assert cached == len(longer) - 4  # the last token of a reply is not read
        assert text == "".join(model.generate(longer, max_tokens=6, temperature=0))
    assert guessed == []


def test_a_broken_adapter_leaves_no_file_open(model: Model, tmp_path: Path) -> None:
    torn = scaled_adapter(tmp_path / "torn", 1.0, 1) / "adapter_model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1000])
    shelf = Shelf(model.program, lambda path: plain_only(load_adapter(path, model.source)))
    shelf.register("torn", torn.parent)
    gc.disable()
    try:
        for _ in range(4):
            with pytest.raises(LoragraftError, match="torn"):
                shelf.preload("torn")
            shelf.register("torn", torn.parent)
        assert str(torn) not in {
            os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")
        }
    finally:
        gc.enable()
        shelf.close()


def test_a_bug_that_comes_again_when_requests_are_ended_ends_no_thread(
    model: Model, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The scheduler's thread ended with it, and nobody had an answer from then on."""
    close = model.program.close_sequence

    def broken(sequence: int) -> None:
        raise RuntimeError("broken")

    def raising(*given: object) -> None:
        raise RuntimeError("first")

    with monkeypatch.context() as patched:
        patched.setattr(model.program, "close_sequence", broken)
        patched.setattr(scheduler, "_embed", raising)
        made = [asked(model, "And the king", 4) for _ in range(3)]
        for each in made:
            scheduler.submit(each.request)
        ends = [each.end() for each in made]
    assert all(isinstance(end, Failed) and "this is a bug" in str(end.error) for end in ends)
    assert model.program.close_sequence == close
    assert text_of(start(scheduler, asked(model, "And the king", 4)))


def test_a_bug_in_loading_is_its_own_request_s_error(model: Model) -> None:
    def broken(path: Path) -> None:
        raise ZeroDivisionError

    shelf = Shelf(model.program, broken)  # type: ignore[arg-type]
    shelf.register("odd", Path("odd"))
    scheduler = Scheduler(model.program, model.tokenizer, shelf, context=model.context_length)
    scheduler.start()
    good, bad = asked(model, "And", 30), asked(model, "And", 3)
    bad.request.adapters = (("odd", 1.0),)
    for each in (good, bad):
        scheduler.submit(each.request)
    assert isinstance(end := bad.end(), Failed)
    assert "cannot be loaded (ZeroDivisionError)" in str(end.error)
    assert isinstance(good.end(), Done)
    scheduler.stop(0)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_texts_are_embedded_without_logits(
    model: Model, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, pooling: Pooling
) -> None:
    """Short texts share a pass that is given up before the logits; what stands there is the same as beside them."""
    texts = [model.tokenize("the king of Judah " * count) for count in (1, 3, 7) * 15]
    expected = []
    for ids in texts:
        sequence = model.program.open_sequence()
        _, states = HiddenStates(model.program).beside([Rows(sequence, ids, (), "all")])
        model.program.close_sequence(sequence)
        wide = states.astype(np.float64)
        vector = wide.sum(axis=0) if pooling == "mean" else wide[-1]
        expected.append(vector / np.sqrt(np.square(vector).sum()))
    monkeypatch.setattr(HiddenStates, "beside", None)  # it would compute logits
    running = asked(model, "And", 40)
    scheduler.submit(running.request)
    made = [Asked(ids, (), GREEDY, 0) for ids in texts]
    for each in made:
        each.request.embed = pooling
        scheduler.submit(each.request)
    for each, vector in zip(made, expected, strict=True):
        while not isinstance(event := each.events.get(timeout=120), Embedded):
            assert not isinstance(event, Failed), event.error
        np.testing.assert_array_equal(event.vector, vector.astype(np.float32))
    assert isinstance(running.end(), Done)


def test_a_long_text_is_embedded_in_parts(model: Model, scheduler: Scheduler) -> None:
    ids = np.resize(model.tokenize("the king of Judah said unto his people"), LONGEST + 40).astype(np.int32)
    sequence = model.program.open_sequence()
    parts = [
        HiddenStates(model.program).beside([Rows(sequence, part, (), "all")])[1]
        for part in (ids[:LONGEST], ids[LONGEST:])
    ]
    model.program.close_sequence(sequence)
    made = Asked(ids, (), GREEDY, 0)
    made.request.embed = "last"
    scheduler.submit(made.request)
    while not isinstance(event := made.events.get(timeout=120), Embedded):
        assert not isinstance(event, Failed), event.error
    last = parts[1][-1].astype(np.float64)
    np.testing.assert_array_equal(event.vector, (last / np.sqrt(np.square(last).sum())).astype(np.float32))


@pytest.mark.parametrize(("pause", "fewest", "most"), [(0.0, 20, 30), (60.0, 2, 4)])
def test_pieces_are_gathered_but_the_first_and_the_last(
    model: Model, pause: float, fewest: int, most: int
) -> None:
    """The events after which listeners are woken, under a pause that no pass reaches, and under none."""
    shelf = Shelf(model.program, lambda path: plain_only(load_adapter(path, model.source)))
    scheduler = Scheduler(
        model.program, model.tokenizer, shelf, context=model.context_length, lookup=False, pause=pause
    )
    seen: list[list[str]] = [[]]
    scheduler.outbox.delivered = lambda: seen.append([])
    made = asked(model, "And the king", 24)
    emit = made.request.emit

    def noted(event: object) -> None:
        seen[-1].append(type(event).__name__)
        emit(event)  # type: ignore[arg-type]

    made.request.emit = noted
    scheduler.start()
    scheduler.submit(made.request)
    text = text_of(made)
    scheduler.stop(10)
    assert text == "".join(model.generate("And the king", max_tokens=24, temperature=0))
    turns = [turn for turn in seen if turn]
    assert fewest <= len(turns) <= most
    assert turns[0] == ["Started"]
    assert turns[1] == ["Piece"]  # as soon as it is made
    assert turns[-1][-2:] == ["Finished", "Done"]
    assert sum(turn.count("Piece") for turn in turns) > 20

"""Adapters by name: what they are told apart by, and files that change while they are read."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import loragraft as lg
from contamination import Asked
from loragraft.adapters.lora import Adapter
from loragraft.adapters.receipt import digest_of
from loragraft.errors import AdapterError, LoragraftError
from loragraft.inference.model import Model
from loragraft.inference.sampling import Sampling
from loragraft.inference.scheduler.loop import Scheduler
from loragraft.inference.scheduler.request import Done
from loragraft.inference.scheduler.shelf import Shelf
from loragraft.opening import load_adapter
from paths import data
from served import scaled_adapter

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def model() -> Model:
    return lg.load(data("llama-kjv"))


@pytest.fixture
def shelf(model: Model) -> Iterator[Shelf]:
    yield from shelved(model, lambda path: None)


def shelved(
    model: Model, then: Callable[[Path], object], *, most_bytes: int | None = None
) -> Iterator[Shelf]:
    """A shelf; `then` is called whenever an adapter's files have been opened."""

    def read(path: Path) -> Adapter:
        adapter = load_adapter(path, model.source)
        then(path)
        return adapter

    shelf = Shelf(model.program, read, most_bytes=most_bytes)
    yield shelf
    for one in shelf.listed():
        shelf.unregister(one.name)
    shelf.close()


def test_adapters_one_level_down_are_told_apart(model: Model, shelf: Shelf, tmp_path: Path) -> None:
    """Their folders hold no file of their own: they had one digest, and one began from the other's kept prompt."""
    prompt = model.tokenize("What say you, my lord, of bread and wine?")
    digests: dict[str, str] = {}
    logits: dict[str, list[str]] = {}
    scheduler = Scheduler(model.program, model.tokenizer, shelf, context=model.context_length)
    scheduler.start()
    for name, factor in (("one", 1.0), ("two", -2.0)):
        (tmp_path / name).mkdir()
        weights = scaled_adapter(tmp_path / name / "default", factor, 1) / WEIGHTS
        shelf.register(name, tmp_path / name)
        digests[name] = digest_of([weights])
        asked = Asked(prompt, ((name, 1.0),), Sampling(temperature=0), 2)
        scheduler.submit(asked.request)
        end = asked.end()
        assert isinstance(end, Done)
        assert end.cached_tokens == 0
        logits[name] = asked.recorder.digests
        assert shelf.preload(name).sha256 == digests[name]
    scheduler.stop(0)
    assert logits["one"] != logits["two"]


def test_contents_tell_adapters_apart_and_not_their_files(model: Model, shelf: Shelf, tmp_path: Path) -> None:
    """The same weights at another alpha are another adapter; a copy of one is the same."""
    first = scaled_adapter(tmp_path / "first", 1.0, 1)
    shutil.copytree(first, tmp_path / "copy")
    other = tmp_path / "other"
    shutil.copytree(first, other)
    config = other / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 16', '"lora_alpha": 32'))
    keys = {}
    for path in (first, tmp_path / "copy", other):
        shelf.register(path.name, path)
        shelf.preload(path.name)
        lease = shelf.lease([(path.name, 1.0)])
        assert lease is not None
        keys[path.name] = lease.key
        shelf.release(lease)
    assert keys["first"] == keys["copy"] != keys["other"]
    assert shelf.preload("first").sha256 == shelf.preload("other").sha256 == digest_of([first / WEIGHTS])


def test_a_file_that_changes_while_it_is_read_is_read_again(model: Model, tmp_path: Path) -> None:
    """Else the receipt names a file that is not what runs."""
    path = scaled_adapter(tmp_path / "one", 1.0, 1)
    new = scaled_adapter(tmp_path / "new", -2.0, 2) / WEIGHTS
    reads = []

    def replace(path: Path) -> None:
        if not reads:
            new.replace(path / WEIGHTS)
        reads.append(path)

    for shelf in shelved(model, replace):
        shelf.register("one", path)
        assert shelf.preload("one").sha256 == digest_of([path / WEIGHTS])
        shelf.register("again", path)
        assert shelf.lease([("again", 1.0)], load=False) is None
        shelf.preload("again")
        leases = [shelf.lease([(name, 1.0)]) for name in ("one", "again")]
        assert leases[0] is not None
        assert leases[1] is not None
        assert leases[0].key == leases[1].key
        for lease in leases:
            assert lease is not None
            shelf.release(lease)
    assert len(reads) == 3


def test_a_file_that_changes_all_the_time_is_refused(model: Model, tmp_path: Path) -> None:
    path = scaled_adapter(tmp_path / "one", 1.0, 1)
    config = path / "adapter_config.json"
    for shelf in shelved(model, lambda path: config.write_text(config.read_text() + " ")):
        shelf.register("one", path)
        with pytest.raises(AdapterError, match=r"changed while it was read.*ask again"):
            shelf.preload("one")


def test_numbers_of_adapters_stay_theirs(shelf: Shelf, tmp_path: Path) -> None:
    """A client that has a list of numbers must not get another adapter by one of them."""
    for name in "abc":
        shelf.register(name, tmp_path)
    shelf.unregister("a")
    shelf.register("b", tmp_path / "new")
    shelf.register("d", tmp_path)
    assert {one.name: one.number for one in shelf.listed()} == {"b": 1, "c": 2, "d": 3}


def test_what_is_over_the_bound_is_dropped_when_it_is_used_no_more(model: Model, tmp_path: Path) -> None:
    """They stayed until another was loaded."""
    path = scaled_adapter(tmp_path / "one", 1.0, 1)
    size = model.program.adapter_bytes(load_adapter(path, model.source))
    for shelf in shelved(model, lambda path: None, most_bytes=2 * size):
        leases = []
        for name in "abcd":
            shelf.register(name, path)
            shelf.preload(name)
            leases.append(shelf.lease([(name, 1.0)]))
        assert shelf.bytes == 4 * size
        for lease, left in zip(leases, (3, 2, 2, 2), strict=True):
            assert lease is not None
            shelf.release(lease)
            assert shelf.bytes == left * size
        assert {one.name for one in shelf.listed() if one.loaded} == {"c", "d"}


def test_what_is_being_tried_is_not_told(shelf: Shelf, tmp_path: Path) -> None:
    shelf.register(Shelf.trial_name("1/new"), tmp_path)
    shelf.register("old", tmp_path)
    with pytest.raises(AdapterError, match=r"expected one of old$"):
        shelf.lease([("gone", 1.0)])
    shelf.unregister(Shelf.trial_name("1/new"))


def test_what_is_asked_for_is_held_while_it_is_loaded(model: Model, tmp_path: Path) -> None:
    """It was dropped for the next that was loaded, before the request could begin."""
    paths = {name: scaled_adapter(tmp_path / name, 1.0, seed) for seed, name in enumerate("abc")}
    size = model.program.adapter_bytes(load_adapter(paths["a"], model.source))
    for shelf in shelved(model, lambda path: None, most_bytes=size):
        for name, path in paths.items():
            shelf.register(name, path)
        first = shelf.lease([("a", 1.0), ("b", 1.0)])
        assert first is not None
        for name in "abc":  # one thread loads them, in this order
            shelf.preload(name)
        assert shelf.ready(first)
        assert len(first.slots) == 2
        shelf.release(first)
        assert shelf.bytes == size


def test_an_adapter_that_failed_is_read_again(model: Model, tmp_path: Path) -> None:
    path = scaled_adapter(tmp_path / "one", 1.0, 1)
    (path / WEIGHTS).rename(tmp_path / "away")
    for shelf in shelved(model, lambda path: None):
        shelf.register("one", path)
        for _ in range(2):
            with pytest.raises(LoragraftError):
                shelf.preload("one")
        (tmp_path / "away").rename(path / WEIGHTS)
        assert shelf.preload("one").tensors

"""Adapters that come and go, on a server process."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import pytest

import loragraft as lg
from paths import data
from served import Served, chat_model, comes, http, refuses_to_start, scaled_adapter, serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    adapters = folder / "adapters"
    adapters.mkdir()
    scaled_adapter(adapters / "one", 1.0, 1)
    with serving(chat_model(folder), "--adapters-dir", adapters, "--adapter-memory", "6MB") as server:
        yield server


def complete(served: Served, model: str, **more: object) -> httpx.Response:
    body = {"model": model, "prompt": "What say you,", "max_tokens": 8, "temperature": 0, **more}
    return http.post(f"{served.url}/v1/completions", json=body)


def names(served: Served) -> list[str]:
    return [model["id"] for model in http.get(f"{served.url}/v1/models").json()["data"]]


def wait_until(seen: Callable[[], object]) -> None:
    """Until a change in the folder has been seen, once a second."""
    assert comes(seen)


def wait_for(served: Served, wanted: list[str]) -> None:
    wait_until(lambda: names(served) == wanted)


def text_of(served: Served, model: str) -> str | None:
    """Its reply, where there is one."""
    answer = complete(served, model)
    return str(answer.json()["choices"][0]["text"]) if answer.status_code == 200 else None


def test_a_watched_folder(served: Served, folder: Path) -> None:
    assert names(served) == ["kjv", "one"]
    first = complete(served, "one").json()
    scaled_adapter(folder / "two", 0.7, 2)
    shutil.move(folder / "two", folder / "adapters" / "two")
    wait_for(served, ["kjv", "one", "two"])
    assert complete(served, "two").json()["loragraft"]["adapters"][0]["name"] == "two"
    # Another adapter under the same name is another adapter.
    scaled_adapter(folder / "new-one", -1.0, 3)
    shutil.rmtree(folder / "adapters" / "one")
    wait_for(served, ["kjv", "two"])
    shutil.move(folder / "new-one", folder / "adapters" / "one")
    wait_for(served, ["kjv", "two", "one"])
    second = complete(served, "one").json()
    assert second["loragraft"]["adapters"][0]["sha256"] != first["loragraft"]["adapters"][0]["sha256"]
    assert second["choices"][0]["text"] != first["choices"][0]["text"]
    shutil.rmtree(folder / "adapters" / "two")
    wait_for(served, ["kjv", "one"])


def test_every_change_in_the_watched_folder_is_seen(served: Served, folder: Path) -> None:
    """One of the settings alone; other weights of the same size with the same time, as archives unpack them."""
    shutil.move(scaled_adapter(folder / "mine", 1.0, 5), folder / "adapters" / "mine")
    mine = folder / "adapters" / "mine"
    wait_until(lambda: text_of(served, "mine"))
    first = text_of(served, "mine")
    config = mine / "adapter_config.json"
    changed = config.read_text().replace('"lora_alpha": 16', '"lora_alpha": -16')
    (folder / "changed.json").write_text(changed)
    (folder / "changed.json").replace(config)
    wait_until(lambda: text_of(served, "mine") not in (None, first))
    second = text_of(served, "mine")
    weights, other = (
        path / "adapter_model.safetensors" for path in (mine, scaled_adapter(folder / "o", 2.0, 6))
    )
    os.utime(other, ns=(weights.stat().st_atime_ns, weights.stat().st_mtime_ns))
    other.replace(weights)
    wait_until(lambda: text_of(served, "mine") not in (None, second))
    shutil.rmtree(mine)


def test_names_of_the_watched_folder(tmp_path: Path) -> None:
    """Letters are composed in one way; a name that something else has is not taken from it; an adapter of mlx-lm is
    one, a folder of that suffix may be."""
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    peft = scaled_adapter(tmp_path / "peft", 1.0, 1)
    for name in ("poe\u0300te", "kjv", "given", " blank", "twice", "twice.gguf", "folder.gguf"):
        shutil.copytree(peft, adapters / name)
    lg.convert_adapter(peft, data("llama-kjv"), adapters / "mlx", to="mlx")
    with serving(chat_model(tmp_path), "--adapters-dir", adapters, "--lora", f"given={peft}") as served:
        assert sorted(names(served)) == ["folder", "given", "kjv", "mlx", "po\u00e8te", "twice"]
        assert complete(served, "po\u00e8te").status_code == 200
        assert complete(served, "mlx").json()["choices"] == complete(served, "given").json()["choices"]


def test_memory_for_adapters_is_bounded(served: Served, folder: Path) -> None:
    size = sum(f.stat().st_size for f in data("llama-kjv.shakespeare").glob("*.safetensors"))
    for number in range(6):
        scaled_adapter(folder / "many", 0.5, number)
        shutil.move(folder / "many", folder / "adapters" / f"m{number}")
    wait_for(served, ["kjv", "one", *(f"m{number}" for number in range(6))])
    texts = {n: complete(served, f"m{n}").json()["choices"][0]["text"] for n in range(6)}
    listed = http.get(f"{served.url}/lora-adapters").json()
    assert sum(one["bytes"] for one in listed) <= 6_000_000
    assert 0 < sum(one["loaded"] for one in listed) < 7
    assert size > 0
    for number, text in texts.items():  # dropped ones come back
        assert complete(served, f"m{number}").json()["choices"][0]["text"] == text


def test_loading_and_unloading(served: Served, folder: Path) -> None:
    def post(path: str, **body: object) -> httpx.Response:
        return http.post(f"{served.url}/v1/{path}", json=body)

    assert post("load_lora_adapter", lora_name="mine", lora_path="one").status_code == 200
    assert "mine" in names(served)
    assert complete(served, "mine").json()["choices"] == complete(served, "one").json()["choices"]
    again = post("load_lora_adapter", lora_name="mine", lora_path="one")
    assert again.status_code == 400
    assert "unload it first" in again.json()["error"]["message"]
    assert post("load_lora_adapter", lora_name="mine", lora_path="one", load_inplace=True).status_code == 200
    assert post("unload_lora_adapter", lora_name="mine").status_code == 200
    assert complete(served, "mine").status_code == 404
    assert post("unload_lora_adapter", lora_name="mine").status_code == 404


@pytest.mark.parametrize("name", ["kjv", " one", "one ", "   ", "poe\u0300te", "\u200bone", "one\n"])
def test_names_that_look_like_others(served: Served, name: str) -> None:
    answer = http.post(f"{served.url}/v1/load_lora_adapter", json={"lora_name": name, "lora_path": "one"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "lora_name"


def test_one_name_loaded_by_many_at_once(served: Served, folder: Path) -> None:
    """One of them gets it, and what it loaded is what has the name; the others are told."""
    for number in range(4):
        scaled_adapter(folder / f"r{number}", 0.5 + number, number)
        shutil.move(folder / f"r{number}", folder / "adapters" / f".r{number}")

    def load(number: int) -> httpx.Response:
        body = {"lora_name": "race", "lora_path": f".r{number % 4}"}
        return http.post(f"{served.url}/v1/load_lora_adapter", json=body)

    for _ in range(3):
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(load, range(8)))
        assert sorted(answer.status_code for answer in answers) == [200] + [400] * 7
        assert {a.json()["error"]["code"] for a in answers if a.status_code == 400} == {"adapter_exists"}
        won = next(number for number, answer in enumerate(answers) if answer.status_code == 200)
        ran = complete(served, "race").json()["loragraft"]["adapters"][0]
        weights = folder / "adapters" / f".r{won % 4}" / "adapter_model.safetensors"
        assert ran["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
        gone = http.post(f"{served.url}/v1/unload_lora_adapter", json={"lora_name": "race"})
        assert gone.status_code == 200
    assert "race" not in names(served)


@pytest.mark.parametrize("path", ["..", "../adapters", "/etc", ".", "nothing", "one/../../kjv", "a\0b"])
def test_paths_outside_of_the_folder(served: Served, path: str) -> None:
    answer = http.post(f"{served.url}/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": path})
    assert answer.status_code == 404
    assert (
        answer.json()["error"]["message"]
        == "lora_path: no such adapter in the folder given by --adapters-dir"
    )


def test_a_link_out_of_the_folder(served: Served, folder: Path) -> None:
    (folder / "adapters" / ".link").symlink_to(data("llama-kjv.shakespeare"))
    answer = http.post(f"{served.url}/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": ".link"})
    assert answer.status_code == 404


def test_a_broken_adapter_refuses_its_own_requests(served: Served, folder: Path) -> None:
    broken = scaled_adapter(folder / "broken", 1.0, 9)
    weights = broken / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    shutil.move(broken, folder / "adapters" / "broken")
    wait_until(lambda: "broken" in names(served))
    for _ in range(2):
        answer = complete(served, "broken")
        assert answer.status_code == 400
        assert "adapter_model.safetensors" in answer.json()["error"]["message"]
        assert complete(served, "one").status_code == 200
    stream = http.post(
        f"{served.url}/v1/completions", json={"model": "broken", "prompt": "a", "stream": True}
    )
    assert stream.status_code == 400
    shutil.rmtree(folder / "adapters" / "broken")


def test_the_api_key_guards_the_api_but_not_the_page(folder: Path) -> None:
    model = folder / "kjv"
    with serving(model, env={"LORAGRAFT_API_KEY": "sesame"}) as server:
        assert http.get(f"{server.url}/v1/models").status_code == 401
        assert (
            http.get(f"{server.url}/v1/models", headers={"authorization": "Bearer sesam"}).status_code == 401
        )
        assert (
            http.get(f"{server.url}/v1/models", headers={"authorization": "Bearer sesame"}).status_code == 200
        )
        assert http.get(f"{server.url}/v1/models", headers={"x-api-key": "sesame"}).status_code == 200
        assert http.get(f"{server.url}/health").status_code == 200
        assert http.get(server.url).status_code == 200
        loads = http.post(
            f"{server.url}/v1/load_lora_adapter",
            json={"lora_name": "x", "lora_path": "/etc"},
            headers={"x-api-key": "sesame"},
        )
        assert loads.status_code == 403
        assert server.stop() in (-signal.SIGTERM, 128 + signal.SIGTERM)


def test_an_open_address_needs_a_key(folder: Path) -> None:
    assert "pass --api-key KEY" in refuses_to_start(folder / "kjv", "--host", "0.0.0.0")


def test_a_wrong_adapter_at_the_start(folder: Path) -> None:
    assert "no such file" in refuses_to_start(folder / "kjv", "--lora", "x=/nowhere/at/all")


def test_memory_for_keys_and_values_is_bounded(folder: Path) -> None:
    """Where it is full, kept prompts are forgotten; a request that does not fit alone is refused, others go on."""
    with serving(chat_model(folder / "bounded"), "--kv-memory", "600kB") as server:

        def ask(words: int) -> httpx.Response:
            body = {"model": "kjv", "prompt": "king " * words, "max_tokens": 4, "temperature": 0}
            return http.post(f"{server.url}/v1/completions", json=body)

        assert [ask(60 + number).status_code for number in range(12)] == [200] * 12
        refused = ask(900)
        assert refused.status_code == 503, refused.text
        assert "keys and values" in refused.json()["error"]["message"]
        assert ask(60).status_code == 200

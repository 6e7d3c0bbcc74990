"""Models that lie elsewhere: the same bytes as from files on this disk, of no more bytes than are needed."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import loragraft as lg
from gguf_files import write_gguf
from loragraft.errors import LoragraftError
from loragraft.formats.gguf.model import open_gguf
from loragraft.formats.gguf.values import Value
from loragraft.opening import open_model
from loragraft.system.mapped import check_unchanged
from loragraft.system.remote import blocks
from loragraft.system.remote.paths import RemotePath, as_path, is_url
from loragraft.system.remote.stores import store_of
from paths import data
from remote_servers import COMMIT, FileServer, serving

BASE, ADAPTER = "acme/llama-kjv", "acme/llama-kjv.shakespeare"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FileServer]:
    """The hub, with the example's base and adapter, and an empty cache of blocks."""
    from loragraft.system.remote import stores

    stores._store.cache_clear()
    monkeypatch.setattr(blocks.BLOCKS, "_there", type(blocks.BLOCKS._there)())
    monkeypatch.setattr(blocks.BLOCKS, "_size", 0)
    models = {BASE: data("llama-kjv"), ADAPTER: data("llama-kjv.shakespeare"), "acme/more": tmp_path / "more"}
    with serving(models) as (address, server):
        monkeypatch.setenv("HF_ENDPOINT", address)
        server.address = address  # type: ignore[attr-defined]
        yield server


def test_a_url_is_a_path_that_says_what_it_is() -> None:
    path = as_path("hf://org/name@v1/sub/model.gguf")
    assert isinstance(path, RemotePath)
    assert str(path) == "hf://org/name@v1/sub/model.gguf"
    assert str(path.parent.parent) == "hf://org/name@v1"
    assert path.parent.parent.repository == "name"
    assert str(path.with_name("x")) == "hf://org/name@v1/sub/x"
    assert as_path(Path("s3://bucket/key")) == as_path("s3://bucket/key")  # Path has eaten a slash
    assert not any(map(is_url, ["model.gguf", "/s3/x", "c:/x", "hf:", "hf://", "file:///x", Path("x")]))


@pytest.mark.parametrize("kind", ["Q4_K_M", "F16"])
def test_a_merge_from_the_hub_has_the_bytes_of_one_from_files(
    hub: FileServer, tmp_path: Path, kind: str, summary: dict[str, str]
) -> None:
    base, adapter = data("llama-kjv"), data("llama-kjv.shakespeare")
    lg.merge(base, [adapter], tmp_path / "local.gguf", type=kind)
    assert hub.total == 0
    lg.merge(f"hf://{BASE}", [f"hf://{ADAPTER}"], tmp_path / "remote.gguf", type=kind)
    assert (tmp_path / "remote.gguf").read_bytes() == (tmp_path / "local.gguf").read_bytes()
    needed = sum(path.stat().st_size for path in [base / "model.safetensors", *adapter.glob("*.safetensors")])
    needed += sum(path.stat().st_size for folder in (base, adapter) for path in folder.glob("*.json"))
    summary[f"bytes read from a hub, merge to {kind}"] = f"{hub.total / needed:.4f} of those needed"
    assert hub.total <= 1.02 * needed


def test_inspecting_reads_the_header_alone(hub: FileServer) -> None:
    report = lg.inspect(f"hf://{BASE}@v1")
    assert report.as_json()["tensors"] == [
        {**entry} for entry in lg.inspect(data("llama-kjv")).as_json()["tensors"]
    ]
    size = (data("llama-kjv") / "model.safetensors").stat().st_size
    assert hub.sent["model.safetensors"] <= 2 * blocks.BLOCK < size // 10


def test_quantizing_and_converting_by_http(hub: FileServer, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    lg.convert(data("llama-kjv"), tmp_path / "more" / "model.gguf")
    url = f"{hub.address}/plain/acme/more/model.gguf"  # type: ignore[attr-defined]
    lg.quantize(tmp_path / "more" / "model.gguf", tmp_path / "local.gguf", "IQ4_XS")
    lg.quantize(url, tmp_path / "remote.gguf", "IQ4_XS")
    assert (tmp_path / "remote.gguf").read_bytes() == (tmp_path / "local.gguf").read_bytes()
    assert hub.total <= 1.02 * (tmp_path / "more" / "model.gguf").stat().st_size
    lg.convert(f"hf://{BASE}", tmp_path / "converted.gguf")
    assert (tmp_path / "converted.gguf").read_bytes() == (tmp_path / "more" / "model.gguf").read_bytes()


def test_a_split_model_is_read_from_a_folder_of_the_hub(hub: FileServer, tmp_path: Path) -> None:
    (tmp_path / "more" / "parts").mkdir(parents=True)
    lg.convert(data("llama-kjv"), tmp_path / "whole.gguf")
    from loragraft.formats.split import SplitLimits

    parts = lg.split(tmp_path / "whole.gguf", tmp_path / "more" / "parts" / "m", SplitLimits(max_tensors=9))
    assert len(parts) > 2
    lg.quantize(tmp_path / "whole.gguf", tmp_path / "local.gguf", "Q4_0")
    lg.quantize(f"hf://acme/more/parts/{parts[1].path.name}", tmp_path / "remote.gguf", "Q4_0")
    assert (tmp_path / "remote.gguf").read_bytes() == (tmp_path / "local.gguf").read_bytes()


def test_a_long_header_is_read_as_far_as_it_goes(hub: FileServer, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    tokens = [f"token {number} of many" for number in range(100_000)]
    metadata = {
        "general.architecture": Value.string("llama"),
        "tokenizer.ggml.tokens": Value.strings(tokens),
    }
    path = write_gguf(tmp_path / "more" / "big.gguf", metadata, {"x.weight": np.zeros((4096, 1024))})
    found = lg.inspect("hf://acme/more/big.gguf")
    assert [each.value for each in found.metadata if each.key == "tokenizer.ggml.tokens"] == [tokens]
    header = path.stat().st_size - 4096 * 1024 * 4
    assert header < hub.sent["big.gguf"] <= 1.25 * header + 3 * blocks.BLOCK


def test_a_file_of_this_disk_is_checked_whole_while_another_is_remote(
    hub: FileServer, tmp_path: Path
) -> None:
    far = open_model(as_path(f"hf://{BASE}"))
    near = tmp_path / "near.gguf"
    lg.convert(data("llama-kjv"), near, type="F16")
    tensor = open_gguf(near).tensors["blk.1.ffn_up.weight"]
    with near.open("r+b") as file:
        file.seek(tensor.offset)  # type: ignore[attr-defined]
        file.write(b"\0\x7e")
    with pytest.raises(LoragraftError, match="is not finite"):
        lg.check(near)
    assert far.tensors  # in use until here


def test_a_passing_failure_is_tried_again(hub: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import _http

    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    hub.failures = 2
    assert len(lg.inspect(f"hf://{BASE}").tensors) > 10
    assert hub.failures == 0


def test_a_connection_that_is_cut_is_made_again(
    hub: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loragraft.system.remote import http

    monkeypatch.setattr(http, "_PAUSE", 0.0)
    lg.convert(data("llama-kjv"), tmp_path / "local.gguf")
    hub.cuts = 3
    lg.convert(f"hf://{BASE}", tmp_path / "remote.gguf")
    assert hub.cuts == 0
    assert (tmp_path / "remote.gguf").read_bytes() == (tmp_path / "local.gguf").read_bytes()
    hub.cuts = 10**6
    monkeypatch.setattr(blocks.BLOCKS, "_there", type(blocks.BLOCKS._there)())
    with pytest.raises(lg.errors.LoragraftError, match="cut, and again 3 times") as raised:
        lg.convert(f"hf://{BASE}", tmp_path / "remote.gguf")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("whole", "does not answer range requests"),
        ("more", "sends more than it was asked for"),
        ("less", "cannot be reached|the answer ends early"),
        ("other", "answered with another range"),
        ("changed", "changed while it was in use"),
        ("shorter", "truncated"),
    ],
)
def test_a_server_that_misbehaves_is_one_line(hub: FileServer, tmp_path: Path, how: str, says: str) -> None:
    (tmp_path / "more").mkdir()
    write_gguf(
        tmp_path / "more" / "m.gguf",
        {"general.architecture": Value.string("llama")},
        {"blk.0.ffn_up.weight": np.ones((512, 1024))},
    )
    url = f"{hub.address}/plain/acme/more/m.gguf"  # type: ignore[attr-defined]
    hub.misbehave = how
    with pytest.raises(lg.errors.LoragraftError, match=says) as raised:
        lg.quantize(url, tmp_path / "out.gguf", "Q8_0")
    assert "\n" not in str(raised.value)
    assert url in str(raised.value)
    assert not (tmp_path / "out.gguf").exists()


def test_a_file_that_changes_meanwhile_is_not_merged(hub: FileServer, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    path = write_gguf(
        tmp_path / "more" / "m.gguf",
        {"general.architecture": Value.string("llama")},
        {"blk.0.ffn_up.weight": np.ones((512, 1024))},
    )
    url = f"{hub.address}/plain/acme/more/m.gguf"  # type: ignore[attr-defined]
    from loragraft.formats.gguf.model import open_gguf
    from loragraft.system.files import named_path

    model = open_gguf(named_path(url))
    content = path.read_bytes()
    path.write_bytes(content[:-4] + b"\0\0\0\1")
    with pytest.raises(lg.errors.FormatError, match="changed while it was in use"):
        lg.quantize(model, tmp_path / "out.gguf", "Q8_0")
    assert not (tmp_path / "out.gguf").exists()


def test_a_file_that_is_read_anew_is_not_held_to_what_it_was(hub: FileServer, tmp_path: Path) -> None:
    """Files of earlier runs may not have been collected yet."""
    (tmp_path / "more").mkdir()
    path = tmp_path / "more" / "model.gguf"
    lg.convert(data("llama-kjv"), path)
    url = f"{hub.address}/plain/acme/more/model.gguf"  # type: ignore[attr-defined]
    earlier = [open_gguf(RemotePath(url)) for _ in range(12)]
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    store_of(RemotePath(url)).forget()
    lg.quantize(url, tmp_path / "out.gguf", "Q8_0")
    lg.quantize(path, tmp_path / "local.gguf", "Q8_0")
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "local.gguf").read_bytes()
    with pytest.raises(lg.errors.FormatError, match="changed while it was in use"):
        lg.quantize(earlier[-1], tmp_path / "again.gguf", "Q8_0")


def test_a_file_that_nobody_holds_may_change(hub: FileServer, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    path = tmp_path / "more" / "model.gguf"
    path.write_bytes(b"one")
    url = RemotePath(f"{hub.address}/plain/acme/more/model.gguf")  # type: ignore[attr-defined]
    gc.disable()
    try:
        held: list[object] = [blocks.RemoteFile.of(url)]
        held.append(held)
        path.write_bytes(b"other")
        with pytest.raises(lg.errors.FormatError, match="changed while it was in use"):
            check_unchanged([url])
        del held
        check_unchanged([url])
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("hf://acme/nothing", "no such file or folder"),
        (f"hf://{BASE}@no-such-branch", "no such file or folder"),
        (f"hf://{BASE}/nothing.gguf", "no such file"),
        ("hf://datasets/acme", "is not a model repository"),
        ("hf://acme", "names no repository: expected hf://ORG/NAME"),
        ("ftp://host/model.gguf", "URLs of this kind are not read"),
        (Path("ftp://host/model.gguf"), "ftp://host/model.gguf: URLs of this kind are not read: expected hf"),
        ("s3://", "s3://: this URL names nothing: expected s3://BUCKET/KEY"),
        (Path("hf://"), "hf://: this URL names nothing: expected hf://ORG/NAME"),
        ("http://127.0.0.1:9/model.gguf", "cannot be reached"),
    ],
)
def test_what_is_not_there_is_one_line(
    hub: FileServer, url: str | Path, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.utils import _http

    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    with pytest.raises(lg.errors.LoragraftError, match=says) as raised:
        lg.inspect(url)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [
        ("s3://bucket/model.gguf", "s3fs", "hub"),
        ("gs://bucket/model.gguf", "gcsfs", "gs"),
        ("https://host/model.gguf", "huggingface_hub", "hub"),
    ],
)
def test_without_the_package_one_line_says_what_to_install(url: str, package: str, extra: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from loragraft.cli import app\n"
        f"app(['inspect', {url!r}], prog_name='loragraft')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"needs the package {package}; pip install 'loragraft[{extra}]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_token_that_the_hub_refuses_is_one_line(hub: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.refused = "hf_of_yesterday"
    monkeypatch.setenv("HF_TOKEN", hub.refused)
    with pytest.raises(lg.errors.LoragraftError, match="refuses the token; get another: hf auth login"):
        lg.inspect(f"hf://{BASE}")


def test_the_command_line_takes_urls(hub: FileServer, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "loragraft", "inspect", f"hf://{BASE}", "--json"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["path"] == f"hf://{BASE}"
    words = [*words[:3], "merge", f"hf://{BASE}", "--lora", f"hf://{ADAPTER}=0.5", "-o", tmp_path / "x.gguf"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lg.merge(data("llama-kjv"), [(data("llama-kjv.shakespeare"), 0.5)], tmp_path / "y.gguf")
    assert (tmp_path / "x.gguf").read_bytes() == (tmp_path / "y.gguf").read_bytes()


def test_what_the_hubs_cache_holds_is_read_from_there(
    hub: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    snapshot = tmp_path / "cache" / "models--acme--llama-kjv" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    shutil.copy(data("llama-kjv") / "model.safetensors", snapshot)
    lg.convert(f"hf://{BASE}", tmp_path / "out.gguf")
    assert hub.sent["model.safetensors"] == 0
    assert hub.sent["tokenizer.json"] > 0


def test_offline_the_cache_is_all_there_is(
    hub: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        LoragraftError, match=r"isn't in the cache.*unset HF_HUB_OFFLINE, or .*hf download acme"
    ):
        lg.inspect(f"hf://{BASE}")
    folder = tmp_path / "cache" / "models--acme--llama-kjv"
    shutil.copytree(data("llama-kjv"), folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    lg.convert(f"hf://{BASE}", tmp_path / "out.gguf")
    lg.convert(data("llama-kjv"), tmp_path / "local.gguf")
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "local.gguf").read_bytes()
    assert hub.total == 0

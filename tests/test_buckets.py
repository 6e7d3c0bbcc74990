"""Object stores, on moto's server: from s3:// the same bytes as from files on this disk, of no more than are needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import loragraft as lg
from loragraft.system.remote import blocks, stores
from paths import data

pytestmark = [pytest.mark.remote, pytest.mark.filterwarnings("ignore")]  # moto's and botocore's own


class Counting:
    """A WSGI application that counts the bytes that another sends for GET."""

    def __init__(self, app: Any) -> None:
        self.app, self.sent, self.paths = app, 0, list[str]()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        is_get = environ["REQUEST_METHOD"] == "GET" and environ.get("HTTP_RANGE")
        for piece in self.app(environ, start):
            if is_get:
                self.sent += len(piece)
            yield piece


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    server = pytest.importorskip("moto.server", reason="moto is not installed: make test-remote")
    from werkzeug.serving import make_server

    counting = Counting(server.DomainDispatcherApplication(server.create_backend_app))
    http = make_server("127.0.0.1", 0, counting, threaded=True)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{http.server_port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    stores._store.cache_clear()
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setattr(blocks.BLOCKS, "_there", type(blocks.BLOCKS._there)())
    monkeypatch.setattr(blocks.BLOCKS, "_size", 0)
    client().create_bucket(Bucket="models")
    yield counting
    http.shutdown()
    thread.join()


def client() -> Any:
    import boto3

    return boto3.client("s3")


def put(folder: Path, name: str) -> int:
    """The files of `folder` in the bucket; their bytes."""
    total = 0
    for path in folder.iterdir():
        client().put_object(Bucket="models", Key=f"{name}/{path.name}", Body=path.read_bytes())
        total += path.stat().st_size
    return total


def test_a_merge_from_a_bucket(s3: Counting, tmp_path: Path, summary: dict[str, str]) -> None:
    base, adapter = data("llama-kjv"), data("llama-kjv.shakespeare")
    needed = put(base, "base") + put(adapter, "adapter/v1")
    lg.merge(base, [adapter], tmp_path / "local.gguf", type="Q4_K_M")
    # The folder's name becomes general.name: so both must be called the same.
    put(base, "llama-kjv")
    put(adapter, "llama-kjv.shakespeare")
    s3.sent = 0
    lg.merge(
        "s3://models/llama-kjv",
        ["s3://models/llama-kjv.shakespeare"],
        tmp_path / "remote.gguf",
        type="Q4_K_M",
    )
    assert (tmp_path / "remote.gguf").read_bytes() == (tmp_path / "local.gguf").read_bytes()
    summary["bytes read from s3, merge to Q4_K_M"] = f"{s3.sent / needed:.4f} of those needed"
    assert s3.sent <= 1.02 * needed


def test_inspecting_reads_the_header_alone(s3: Counting, tmp_path: Path) -> None:
    lg.convert(data("llama-kjv"), tmp_path / "model.gguf")
    client().put_object(Bucket="models", Key="m/model.gguf", Body=(tmp_path / "model.gguf").read_bytes())
    remote, local = lg.inspect("s3://models/m/model.gguf"), lg.inspect(tmp_path / "model.gguf")
    assert remote.as_json()["tensors"] == local.as_json()["tensors"]
    assert s3.sent < (tmp_path / "model.gguf").stat().st_size // 4


@pytest.mark.parametrize("url", ["s3://models/none.gguf", "s3://no-such-bucket/model.gguf"])
def test_what_is_not_there_is_one_line(s3: Counting, url: str) -> None:
    with pytest.raises(lg.errors.LoragraftError) as raised:
        lg.inspect(url)
    assert "\n" not in str(raised.value)
    assert url in str(raised.value)


def test_an_object_that_changes_is_not_merged(s3: Counting, tmp_path: Path) -> None:
    from loragraft.formats.gguf.model import open_gguf
    from loragraft.system.files import named_path

    lg.convert(data("llama-kjv"), tmp_path / "model.gguf")
    content = (tmp_path / "model.gguf").read_bytes()
    client().put_object(Bucket="models", Key="m.gguf", Body=content)
    model = open_gguf(named_path("s3://models/m.gguf"))
    client().put_object(Bucket="models", Key="m.gguf", Body=content[:-1] + b"\1")
    with pytest.raises(lg.errors.FormatError, match="changed"):
        lg.quantize(model, tmp_path / "out.gguf", "Q8_0")
    assert not (tmp_path / "out.gguf").exists()

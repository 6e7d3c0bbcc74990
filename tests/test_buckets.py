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
        self.port = 0
        self._server: tuple[Any, threading.Thread] | None = None

    def start(self) -> None:
        """On any port; later ones on the same."""
        from werkzeug.serving import make_server

        http = make_server("127.0.0.1", self.port, self, threaded=True)
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        self.port, self._server = http.server_port, (http, thread)

    def stop(self) -> None:
        assert self._server is not None
        http, thread = self._server
        http.shutdown()
        thread.join()
        http.server_close()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        is_get = environ["REQUEST_METHOD"] == "GET" and environ.get("HTTP_RANGE")
        for piece in self.app(environ, start):
            if is_get:
                self.sent += len(piece)
            yield piece


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    server = pytest.importorskip("moto.server", reason="moto is not installed: make test-remote")
    counting = Counting(server.DomainDispatcherApplication(server.create_backend_app))
    counting.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{counting.port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    stores._store.cache_clear()
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setattr(blocks.BLOCKS, "_there", type(blocks.BLOCKS._there)())
    monkeypatch.setattr(blocks.BLOCKS, "_size", 0)
    import urllib.request

    urllib.request.urlopen(
        urllib.request.Request(f"http://127.0.0.1:{counting.port}/moto-api/reset", method="POST")
    ).close()
    client().create_bucket(Bucket="models")
    yield counting
    counting.stop()


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


def test_without_keys_one_line_says_which(
    s3: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(data("llama-kjv"), "base")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(lg.errors.LoragraftError, match="credentials; set AWS_PROFILE, or AWS_ACCESS_KEY_ID"):
        lg.inspect("s3://models/base")


def test_an_object_that_vanishes_is_not_merged(s3: Counting, tmp_path: Path) -> None:
    from loragraft.formats.gguf.model import open_gguf
    from loragraft.system.files import named_path

    lg.convert(data("llama-kjv"), tmp_path / "model.gguf")
    client().put_object(Bucket="models", Key="m.gguf", Body=(tmp_path / "model.gguf").read_bytes())
    model = open_gguf(named_path("s3://models/m.gguf"))
    client().delete_object(Bucket="models", Key="m.gguf")
    with pytest.raises(lg.errors.FormatError, match=r"s3://models/m.gguf: vanished while it was in use"):
        lg.quantize(model, tmp_path / "out.gguf", "Q8_0")
    assert not (tmp_path / "out.gguf").exists()


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


def keys() -> list[str]:
    return [each["Key"] for each in client().list_objects_v2(Bucket="models").get("Contents", [])]


def content(key: str) -> bytes:
    body: bytes = client().get_object(Bucket="models", Key=key)["Body"].read()
    return body


def unfinished() -> int:
    return len(client().list_multipart_uploads(Bucket="models").get("Uploads", []))


@pytest.mark.parametrize("threads", [1, 8])
def test_a_merge_from_a_bucket_to_a_bucket(
    s3: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    from loragraft.streaming import steps
    from loragraft.system.remote import output

    monkeypatch.setattr(output, "PART", 5 << 20)  # S3's least
    monkeypatch.setattr(steps, "CHUNK_WEIGHTS", 1 << 14)
    base, adapter = data("llama-kjv"), data("llama-kjv.shakespeare")
    put(base, "llama-kjv")
    put(adapter, "llama-kjv.shakespeare")
    lg.merge(base, [adapter], tmp_path / "local.gguf")
    report = lg.merge(
        "s3://models/llama-kjv",
        ["s3://models/llama-kjv.shakespeare"],
        "s3://models/out/tuned.gguf",
        options=lg.QuantizeOptions(verify=True),
        threads=threads,
    )
    assert content("out/tuned.gguf") == (tmp_path / "local.gguf").read_bytes()
    assert len(content("out/tuned.gguf")) > 5 << 20  # so there were several parts
    assert str(report.paths[0]) == "s3://models/out/tuned.gguf"
    assert len(report.errors) > 10
    assert unfinished() == 0


def test_several_files_appear_together(s3: Counting, tmp_path: Path) -> None:
    from loragraft.formats.split import SplitLimits

    options = lg.QuantizeOptions(split=SplitLimits(max_tensors=12))
    lg.merge(data("llama-kjv"), [], tmp_path / "m", type="Q8_0", options=options)
    lg.merge(data("llama-kjv"), [], "s3://models/m", type="Q8_0", options=options)
    local = sorted(tmp_path.glob("m-*.gguf"))
    assert keys() == [path.name for path in local]
    assert [content(path.name) for path in local] == [path.read_bytes() for path in local]


def test_a_run_that_fails_leaves_nothing(s3: Counting, tmp_path: Path) -> None:
    import numpy as np

    from gguf_files import write_gguf
    from loragraft.formats.gguf.values import Value

    values = np.ones((8192, 1024), np.float32)
    values[-1, -1] = np.nan
    metadata = {"general.architecture": Value.string("llama")}
    write_gguf(tmp_path / "bad.gguf", metadata, {"blk.0.ffn_up.weight": values})
    with pytest.raises(lg.errors.QuantizeError, match="not finite"):
        lg.quantize(tmp_path / "bad.gguf", "s3://models/out.gguf", "Q8_0")
    assert keys() == []
    assert unfinished() == 0


def test_a_killed_run_leaves_no_object(s3: Counting, tmp_path: Path) -> None:
    import signal
    import subprocess
    import sys

    code = (
        "import os, signal, sys, loragraft as lg\n"
        "from loragraft.system.remote.output import RemoteOutput\n"
        "RemoteOutput.commit = lambda self: os.kill(os.getpid(), signal.SIGKILL)\n"
        "lg.convert(sys.argv[1], 's3://models/out.gguf')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(data("llama-kjv"))])
    assert done.returncode == -signal.SIGKILL
    assert keys() == []
    lg.convert(data("llama-kjv"), "s3://models/out.gguf")
    assert keys() == ["out.gguf"]


def test_what_comes_early_waits_for_its_turn(
    s3: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    from loragraft.system.remote import output
    from loragraft.system.remote.output import RemoteOutput
    from loragraft.system.remote.paths import RemotePath

    monkeypatch.setattr(output, "WAITING", 1 << 20)  # most of it goes to the disk
    bytes_ = np.random.default_rng(0).integers(0, 256, 12 << 20, dtype=np.uint8).tobytes()
    places = list(range(0, len(bytes_), 100_000))
    np.random.default_rng(1).shuffle(places)
    with RemoteOutput(RemotePath("s3://models/early"), len(bytes_)) as file:
        for place in places:
            file.write_at(place, bytes_[place : place + 100_000])
    assert content("early") == bytes_


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("s3://no-such-bucket/out.gguf", "cannot be written"),
        ("s3://models", "names no object"),
        ("https://host/out.gguf", "cannot be written piece by piece"),
        ("hf://acme/out/out.gguf", "--push hf://acme/out"),
        ("s3://models/there", "is a folder: .* -o s3://models/there/model.gguf"),
    ],
)
def test_what_cannot_be_written_is_one_line(s3: Counting, output: str, says: str) -> None:
    client().put_object(Bucket="models", Key="there/config.json", Body=b"{}")
    with pytest.raises(lg.errors.OutputError, match=says) as raised:
        lg.convert(data("llama-kjv"), output)
    assert "\n" not in str(raised.value)


def test_an_output_is_no_input(s3: Counting, tmp_path: Path) -> None:
    lg.convert(data("llama-kjv"), "s3://models/m.gguf")
    with pytest.raises(lg.errors.OutputError, match="also an input"):
        lg.quantize("s3://models/m.gguf", "s3://models/m.gguf", "Q8_0")
    with pytest.raises(lg.errors.OutputError, match="cannot be continued"):
        lg.quantize(
            "s3://models/m.gguf", "s3://models/q.gguf", "Q8_0", options=lg.QuantizeOptions(resume=True)
        )


def test_workers_between_buckets(s3: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from loragraft.streaming import spreading

    monkeypatch.setattr(spreading, "PART_WEIGHTS", 1 << 18)
    put(data("llama-kjv"), "llama-kjv")
    lg.merge(data("llama-kjv"), [data("llama-kjv.shakespeare")], tmp_path / "local.gguf", type="Q4_K_M")
    lg.merge(
        "s3://models/llama-kjv",
        [data("llama-kjv.shakespeare")],
        "s3://models/out.gguf",
        type="Q4_K_M",
        workers=2,
    )
    assert content("out.gguf") == (tmp_path / "local.gguf").read_bytes()
    assert unfinished() == 0


def test_a_store_that_is_away_for_a_while_is_asked_again(
    s3: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loragraft.system.remote import buckets
    from loragraft.system.remote.urls import Url

    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # botocore's own take seconds
    client().put_object(Bucket="models", Key="m.gguf", Body=bytes(range(200)))
    store, path = buckets.BucketStore("s3"), Url("s3://models/m.gguf")
    facts = store.facts(path)
    assert facts is not None
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            s3.start()

    monkeypatch.setattr(buckets, "sleep", pause)
    s3.stop()
    assert store.read(path, facts, 3, 90) == bytes(range(3, 90))
    assert pauses == [2.0, 8.0]
    s3.stop()
    pauses[:] = [0.0, 0.0]
    with pytest.raises(lg.LoragraftError, match=r"m\.gguf: cannot be reached"):
        store.now(path)
    assert pauses[2:] == [2.0, 8.0, 30.0]
    with pytest.raises(lg.LoragraftError, match="cannot be reached"):
        buckets.BucketStore("s3").facts(path)  # one that never answered
    assert len(pauses) == 5
    s3.start()

"""A file that appears whole or not at all, whatever happens."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from loragraft import _native
from loragraft.errors import OutputError
from loragraft.system.output import OutputFile


def names(folder: Path) -> list[str]:
    """What lies there, without the part of a temporary name that cannot be foreseen."""
    return sorted(re.sub(r"\.[0-9a-f]{16}\.partial", ".partial", path.name) for path in folder.iterdir())


def test_nothing_is_seen_before_the_end(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"old")
    with OutputFile(target, 6) as output:
        output.write_at(3, b"def")
        output.write_at(0, memoryview(b"abc"))
        assert target.read_bytes() == b"old"
        assert names(tmp_path) == [".out.partial", "out"]
    assert target.read_bytes() == b"abcdef"
    assert names(tmp_path) == ["out"]


def test_what_is_not_written_is_zero(tmp_path: Path) -> None:
    with OutputFile(tmp_path / "out", 5) as output:
        output.write_at(2, b"x")
    assert (tmp_path / "out").read_bytes() == b"\0\0x\0\0"


def test_space_is_set_aside_before_writing(tmp_path: Path) -> None:
    probe = os.open(tmp_path / "probe", os.O_RDWR | os.O_CREAT)
    if _native.reserve(probe, 1):
        pytest.skip("this file system sets nothing aside")
    with OutputFile(tmp_path / "out", 1 << 20) as output:
        assert output.partial.stat().st_blocks * 512 >= 1 << 20
    assert _native.reserve(probe, 1 << 62) in (errno.ENOSPC, errno.EFBIG)
    os.close(probe)


def write_and_raise(target: Path, error: type[BaseException], sealed: bool) -> None:
    with OutputFile(target, 3) as output:
        output.journal.write_text("notes")
        output.write_at(0, b"new")
        if sealed:
            output.seal()
        raise error


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file(tmp_path: Path, error: type[BaseException], sealed: bool) -> None:
    (tmp_path / "out").write_bytes(b"old")
    with pytest.raises(error):
        write_and_raise(tmp_path / "out", error, sealed)
    assert (tmp_path / "out").read_bytes() == b"old"
    assert names(tmp_path) == ["out"]


def test_parts_from_many_threads(tmp_path: Path) -> None:
    with OutputFile(tmp_path / "out", 1000) as output:

        def write(start: int) -> None:
            for offset in range(start, 1000, 8):
                output.write_at(offset, bytes([offset % 251]))

        threads = [threading.Thread(target=write, args=(start,)) for start in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (tmp_path / "out").read_bytes() == bytes(offset % 251 for offset in range(1000))


def test_writing_outside_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="of a file of 4"), OutputFile(tmp_path / "out", 4) as output:
        output.write_at(2, b"abc")
    assert names(tmp_path) == []


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        with OutputFile(tmp_path / "out", 0):
            pass
    finally:
        os.umask(umask)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o640


def test_a_replaced_file_keeps_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "out").touch(0o600)
    with OutputFile(tmp_path / "out", 0):
        pass
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o600


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("folder/real")
    with OutputFile(tmp_path / "link", 3) as output:
        output.write_at(0, b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "real").read_bytes() == b"new"


# ---- refused targets ----


def refused(path: Path, problem: str, size: int = 1, **options: object) -> None:
    before = names(path.parent) if path.parent.is_dir() else None
    with pytest.raises(OutputError, match=problem) as error:
        OutputFile(path, size, **options)  # type: ignore[arg-type]
    assert str(error.value).startswith(f"{path}: ")
    if before is not None:
        assert names(path.parent) == before


def test_an_input_by_any_name(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.write_bytes(b"precious")
    os.link(source, tmp_path / "hard")
    (tmp_path / "soft").symlink_to("in")
    (tmp_path / "folder").mkdir()
    for path in (source, tmp_path / "hard", tmp_path / "soft", tmp_path / "folder" / ".." / "in"):
        refused(path, "the output is also an input: found .*; choose another name", inputs=[source])
    assert source.read_bytes() == b"precious"


def test_a_folder_or_a_device(tmp_path: Path) -> None:
    refused(tmp_path, "is a folder")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "is not a regular file")
    refused(Path("/dev/null"), "is not a regular file|read-only")


def test_no_folder(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere" / "out", "its folder does not exist: found .*nowhere")


def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        refused(tmp_path / "out", "its folder is read-only")
    finally:
        tmp_path.chmod(0o755)


def test_a_read_only_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    (tmp_path / "out").chmod(0o444)
    refused(tmp_path / "out", "the existing file is read-only")
    assert (tmp_path / "out").read_bytes() == b"old"


@pytest.mark.parametrize("name", ["x" * 255, "x" * 216, "é" * 127, "a\nb", "\udcff"])
def test_any_name_that_the_system_allows(tmp_path: Path, name: str) -> None:
    for text in (b"1", b"2"):
        with OutputFile(tmp_path / name, 1) as output:
            output.journal.write_text("notes")
            output.write_at(0, text)
            assert len(os.fsencode(output.journal.name)) <= 255
    assert (tmp_path / name).read_bytes() == b"2"
    assert names(tmp_path) == [name]


def test_a_name_too_long(tmp_path: Path) -> None:
    refused(tmp_path / ("x" * 256), "cannot be written: File name too long")


# ---- what others put there ----


def planted(target: Path, **more: object) -> Path:
    return target.with_name(f".{target.name}.0123456789abcdef.partial")


def test_a_file_with_the_old_temporary_name_stays(tmp_path: Path) -> None:
    (tmp_path / ".out.partial").write_bytes(b"precious")
    (tmp_path / ".out.partial.journal").write_bytes(b"precious")
    with OutputFile(tmp_path / "out", 1, inputs=[tmp_path / ".out.partial"]):
        pass
    assert (tmp_path / ".out.partial").read_bytes() == b"precious"
    assert (tmp_path / ".out.partial.journal").read_bytes() == b"precious"


@pytest.mark.parametrize("resume", [False, True])
def test_an_input_that_looks_like_our_leavings_stays(tmp_path: Path, resume: bool) -> None:
    source = planted(tmp_path / "out")
    source.write_bytes(b"precious")
    with OutputFile(tmp_path / "out", 8, inputs=[source], resume=resume) as output:
        assert not output.resumed
    assert source.read_bytes() == b"precious"


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("kind", ["another's", "link", "second name", "folder", "pipe", "open journal"])
def test_what_was_planted_is_neither_taken_up_nor_touched(tmp_path: Path, resume: bool, kind: str) -> None:
    bait, secret = planted(tmp_path / "out"), tmp_path / "secret"
    secret.write_bytes(b"secret")
    match kind:
        case "another's":
            if os.geteuid():
                pytest.skip("only root can make another user's file")
            bait.write_bytes(b"secret")
            os.chown(bait, 12345, 12345)
        case "link":
            bait.symlink_to(secret)
        case "second name":
            os.link(secret, bait)
        case "folder":
            bait.mkdir()
        case "pipe":
            os.mkfifo(bait)
        case "open journal":
            bait.write_bytes(b"secret")
            bait.with_name(f"{bait.name}.journal").symlink_to(secret)
    with OutputFile(tmp_path / "out", 6, resume=resume) as output:
        assert not output.resumed
        assert output.partial != bait
        output.write_at(0, b"result")
    assert secret.read_bytes() == b"secret"
    assert (tmp_path / "out").read_bytes() == b"result"
    found = (tmp_path / "out").stat()
    assert (found.st_uid, found.st_nlink) == (os.geteuid(), 1)
    assert kind == "open journal" or os.path.lexists(bait)


def test_a_lock_on_the_folder_does_not_stop_anybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loragraft.system.output._PATIENCE", 0.1)
    holder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with OutputFile(tmp_path / "out", 1):
        pass
    os.close(holder)
    assert names(tmp_path) == ["out"]


def test_the_renaming_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = []
    fsync = os.fsync

    def record(fd: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", record)
    with OutputFile(tmp_path / "out", 1) as output:
        pass
    assert flushed == [str(output.partial), str(tmp_path)]


def test_not_enough_space(tmp_path: Path) -> None:
    refused(
        tmp_path / "out",
        r"not enough space on the disk: found [\d.]+ \wB free, expected 1152921.5 TB; free some, or write elsewhere",
        1 << 60,
    )


def test_a_disk_that_becomes_full(tmp_path: Path) -> None:
    def fill() -> None:
        with OutputFile(tmp_path / "out", 4) as output, open("/dev/full", "wb") as full:
            os.dup2(full.fileno(), output.fileno())
            output.write_at(0, b"full")

    with pytest.raises(OutputError, match="not enough space on the disk"):
        fill()
    assert names(tmp_path) == []


def test_two_runs_at_once(tmp_path: Path) -> None:
    with OutputFile(tmp_path / "out", 1) as first:
        refused(tmp_path / "out", "another run is writing it")
        first.write_at(0, b"1")
    assert (tmp_path / "out").read_bytes() == b"1"


# ---- killed runs ----

WRITE = """
import sys, time
from loragraft.system.output import OutputFile
with OutputFile(sys.argv[1], 6) as output:
    output.write_at(0, b"abc")
    output.journal.write_text("3")
    print("ready", flush=True)
    time.sleep(60)
"""


def killed(target: Path, with_signal: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITE, target], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(with_signal)


def test_a_killed_run_can_be_resumed(tmp_path: Path) -> None:
    killed(tmp_path / "out", signal.SIGKILL)
    assert names(tmp_path) == [".out.partial", ".out.partial.journal"]
    with OutputFile(tmp_path / "out", 6, resume=True) as output:
        assert output.resumed
        assert output.journal.read_text() == "3"
        output.write_at(3, b"def")
    assert (tmp_path / "out").read_bytes() == b"abcdef"
    assert names(tmp_path) == ["out"]


def test_without_resume_a_killed_run_is_forgotten(tmp_path: Path) -> None:
    killed(tmp_path / "out", signal.SIGKILL)
    with OutputFile(tmp_path / "out", 6) as output:
        assert not output.resumed
        assert not output.journal.exists()
    assert (tmp_path / "out").read_bytes() == bytes(6)


def test_a_partial_file_of_another_size_is_not_resumed(tmp_path: Path) -> None:
    killed(tmp_path / "out", signal.SIGKILL)
    with OutputFile(tmp_path / "out", 7, resume=True) as output:
        assert not output.resumed
        assert not output.journal.exists()


def test_control_c_leaves_nothing(tmp_path: Path) -> None:
    killed(tmp_path / "out", signal.SIGINT)
    assert names(tmp_path) == []


def test_sealed_files_appear_on_commit(tmp_path: Path) -> None:
    with OutputFile(tmp_path / "out", 3) as output:
        output.write_at(0, b"abc")
        output.seal()
        assert names(tmp_path) == [".out.partial"]
    assert (tmp_path / "out").read_bytes() == b"abc"

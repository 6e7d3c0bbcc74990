"""Exit codes and messages, for a command that fails in every way one can."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from loragraft import __version__

TOY = """
import errno, sys, time
from pathlib import Path
from loragraft.cli import app, console
from loragraft.cli.command import argument, command
from loragraft.cli.options import LORA
from loragraft.cli.progress import progress
from loragraft.errors import GGUFError

@command("loragraft toy domain")
@argument("how", help="How to fail.")
@LORA
def toy(how, lora):
    if how == "domain": raise GGUFError("x.gguf", "bad magic", found="b'ABCD'", expected="b'GGUF'")
    if how == "newline": raise GGUFError("x\\ny", "bad")
    if how == "enospc": raise OSError(errno.ENOSPC, "No space left on device", "out.gguf")
    if how == "missing": open("/nowhere/at/all")
    if how == "memory": raise MemoryError
    if how == "bug": raise ZeroDivisionError("oops")
    if how == "sleep":
        try:
            print("ready", flush=True); time.sleep(60)
        finally:
            print("cleaned", file=sys.stderr)
    if how == "pipe":
        for i in range(100000): print(i)
    if how == "lora": print([(str(path), scale) for path, scale in lora])
    if how == "say":
        console.info("info"); console.detail("detail"); console.result("result")
        with progress() as bars: bars.note("note")

app.get_command = lambda context, name: toy
app(prog_name="loragraft")
"""


def start(*args: str, **options: object) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", TOY, "toy", *args], stdout=pipe, stderr=pipe, text=True, **options
    )


def toy(*args: str) -> tuple[int, str, str]:
    process = start(*args)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("domain", "loragraft: error: x.gguf: bad magic: found b'ABCD', expected b'GGUF'\n"),
        ("newline", "loragraft: error: x\\ny: bad\n"),
        ("enospc", "loragraft: error: out.gguf: no space left on the device; free some or write elsewhere\n"),
        ("missing", "loragraft: error: /nowhere/at/all: no such file or folder\n"),
        ("memory", "loragraft: error: out of memory; fewer --threads or a smaller --max-memory may help\n"),
    ],
)
def test_errors_are_one_line_and_exit_1(how: str, line: str) -> None:
    assert toy(how) == (1, "", line)


def test_a_bug_is_not_mistaken_for_bad_input() -> None:
    code, _, err = toy("bug")
    assert code == 70
    assert err.count("\n") == 1
    assert "ZeroDivisionError: oops" in err
    assert "Traceback" in toy("bug", "--verbose")[2]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["domain", "--nonsense"], "no such option"),
        (["lora", "--lora", "a=b"], "'b' is not a number"),
        (["domain", "extra"], "unexpected extra argument (extra)"),
        (["-q"], "missing argument 'HOW'"),
    ],
)
def test_wrong_usage_is_one_line_and_exits_2(args: list[str], says: str) -> None:
    code, out, err = toy(*args)
    assert (code, out) == (2, "")
    assert err.startswith("loragraft: error: ")
    assert says in err
    assert err.endswith("see loragraft toy --help\n")
    assert err.count("\n") == 1


def test_a_command_without_arguments_explains_itself() -> None:
    code, out, err = toy()
    assert (code, out) == (2, "")
    assert err.startswith("Usage: loragraft toy [OPTIONS] HOW\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130)])
def test_ctrl_c_unwinds(number: signal.Signals, code: int) -> None:
    process = start("sleep")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code
    assert err == "cleaned\nloragraft: interrupted\n"


def test_a_closed_pipe_is_no_error() -> None:
    process = start("pipe")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    process.wait(timeout=120)


def test_quiet_and_verbose() -> None:
    assert toy("say") == (0, "result\n", "info\nnote\n")
    assert toy("say", "--verbose") == (0, "result\n", "info\ndetail\nnote\n")
    assert toy("say", "-q") == (0, "result\n", "")


def test_lora_scale(tmp_path: Path) -> None:
    odd = tmp_path / "a=2"
    odd.mkdir()
    _, out, _ = toy("lora", "--lora", "x", "--lora", "dir/y=0.5", "--lora", str(odd))
    assert out == f"[('x', 1.0), ('dir/y', 0.5), ('{odd}', 1.0)]\n"


def test_version_and_help_go_to_stdout() -> None:
    assert loragraft("--version", env={}).stdout == f"loragraft {__version__}\n"
    done = loragraft("--help", env={})
    assert done.stdout.startswith("Usage: loragraft [OPTIONS] COMMAND")
    assert done.stderr == ""


def completions(words: str) -> list[str]:
    """What the shell is offered for the last of `words`."""
    count = len(words.split(" ")) - 1
    asked = {"_LORAGRAFT_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(count)}
    return loragraft(env=asked).stdout.split()


def loragraft(*args: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **env}
    return subprocess.run(
        [sys.executable, "-m", "loragraft", *args],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )


def test_completion() -> None:
    assert completions("loragraft me") == ["plain,merge"]
    assert completions("loragraft merge --verb") == ["plain,--verbose"]
    assert completions("loragraft run --backend n") == ["plain,native"]
    assert completions("loragraft merge base --lora ada") == ["file,ada"]
    assert "_LORAGRAFT_COMPLETE=zsh_complete loragraft" in loragraft("completion", "zsh", env={}).stdout


def test_colours_when_asked_for() -> None:
    assert "\033[1mExamples" in loragraft("merge", "--help", env={"FORCE_COLOR": "1", "NO_COLOR": ""}).stdout
    assert "\033" not in loragraft("merge", "--help", env={"FORCE_COLOR": "1", "NO_COLOR": "1"}).stdout

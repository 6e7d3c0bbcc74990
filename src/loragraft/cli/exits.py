"""How a run that fails ends: one line on stderr and an exit code; never a traceback for bad input."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from loragraft.cli import console
from loragraft.errors import LoragraftError

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERNAL = 70  # EX_SOFTWARE of sysexits.h
EXIT_INTERRUPTED = 130


@contextmanager
def reported() -> Iterator[None]:
    """Turns what goes wrong inside into a line on stderr and SystemExit."""
    try:
        yield
        if mapped := sys.modules.get("loragraft.system.mapped"):
            mapped.check_intact()
    except LoragraftError as error:
        raise _exit(str(error), EXIT_ERROR) from None
    except click.UsageError as error:
        raise _exit(_usage_error(error), EXIT_USAGE) from None
    except BrokenPipeError:
        # The reader of our output has left (`| head`). Python would complain once more when it flushes at exit.
        _silence_stdout()
        raise SystemExit(EXIT_ERROR) from None
    except (KeyboardInterrupt, click.Abort):
        raise _exit("interrupted", EXIT_INTERRUPTED, label="") from None
    except OSError as error:
        if error.filename is None:
            _silence_stdout()
        raise _exit(_system_error(error), EXIT_ERROR) from None
    except RecursionError:
        raise _exit("a file is nested too deeply", EXIT_ERROR) from None
    except MemoryError:
        raise _exit("out of memory; fewer --threads or a smaller --max-memory may help", EXIT_ERROR) from None
    except (SystemExit, click.exceptions.Exit):
        raise
    except Exception as error:
        if console.is_verbose():
            import traceback

            traceback.print_exc()
        line = f"{type(error).__name__}: {error}".replace("\n", "\\n")
        raise _exit(
            f"internal: {line}; this is a bug in loragraft, --verbose shows where", EXIT_INTERNAL
        ) from None


def _silence_stdout() -> None:
    """Python flushes what is left at its end, and would complain once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _exit(message: str, code: int, label: str = "error: ") -> SystemExit:
    console.error(f"loragraft: {label}{message}")
    return SystemExit(code)


def _usage_error(error: click.UsageError) -> str:
    message = " ".join(error.format_message().split()).rstrip(".")
    message = message[:1].lower() + message[1:]
    link = " See" if message.endswith("?") else "; see"
    command = error.ctx.command_path if error.ctx else "loragraft"
    return f"{message}{link} {command} --help"


_SYSTEM_HINTS = {
    errno.ENOSPC: "no space left on the device; free some or write elsewhere",
    errno.EDQUOT: "disk quota exceeded; free some or write elsewhere",
    errno.EROFS: "the file system is read-only; write elsewhere",
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
    errno.EBADF: "a standard stream is closed",
    errno.ENOENT: "no such file or folder",
    errno.EISDIR: "is a folder, expected a file",
    errno.ENOTDIR: "is not a folder",
    errno.EMFILE: "too many open files; raise `ulimit -n`",
}


def _system_error(error: OSError) -> str:
    reason = _SYSTEM_HINTS.get(error.errno or 0) or error.strerror or str(error)
    place = error.filename2 or error.filename
    return f"{os.fsdecode(place)}: {reason}" if place is not None else reason

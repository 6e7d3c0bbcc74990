"""What all commands share: --quiet and --verbose, examples in the help, and how errors end a run.

A command is a module `cli/<name>.py` with a function `command` (its parameters are the options, its docstring the
help) and `EXAMPLES`, command lines shown under the help. The body imports what it needs, so that `--help` is quick.
"""

from __future__ import annotations

import errno
import functools
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from loragraft.cli import console
from loragraft.errors import LoragraftError

EXIT_ERROR = 1
EXIT_INTERNAL = 70  # EX_SOFTWARE of sysexits.h
EXIT_INTERRUPTED = 130

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more; tracebacks for internal errors.")]


def add(app: typer.Typer, name: str, panel: str) -> None:
    """Register `loragraft.cli.<name>` as the command `name` under `panel` of the overview."""
    module = importlib.import_module(f"loragraft.cli.{name}")
    run = with_common_options(module.command)
    app.command(
        name,
        help=_reflowed(inspect.getdoc(module.command) or ""),
        epilog=_examples(module.EXAMPLES),
        rich_help_panel=panel,
        no_args_is_help=True,
    )(run)


def _reflowed(text: str) -> str:
    """Paragraphs without the source's line breaks, for the terminal to break."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _examples(lines: Sequence[str]) -> str:
    shown = "\n".join(f"  {line}" for line in lines).replace("[", r"\[")
    return f"[bold]Examples[/bold]\n\n{shown}"


def with_common_options(function: Callable[..., None]) -> Callable[..., None]:
    """`function` with two more options, and its errors reported as `reported` does."""
    extra = {"quiet": Quiet, "verbose": Verbose}
    signature = inspect.signature(function, eval_str=True)

    @functools.wraps(function)
    def run(*args: Any, quiet: bool, verbose: bool, **kwargs: Any) -> None:
        console.configure(quiet=quiet, verbose=verbose)
        with reported():
            function(*args, **kwargs)

    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=False)
        for name, kind in extra.items()
    ]
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *options])  # type: ignore[attr-defined]
    run.__annotations__ = {**inspect.get_annotations(function, eval_str=True), **extra}
    return run


@contextmanager
def reported() -> Iterator[None]:
    """Turns what goes wrong inside into one line on stderr and an exit code; never a traceback for bad input."""
    try:
        yield
    except LoragraftError as error:
        raise _exit(str(error), EXIT_ERROR) from None
    except BrokenPipeError:
        # The reader of our output has left (`| head`). Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(EXIT_ERROR) from None
    except KeyboardInterrupt:
        raise _exit("interrupted", EXIT_INTERRUPTED, label="") from None
    except OSError as error:
        raise _exit(_system_error(error), EXIT_ERROR) from None
    except MemoryError:
        raise _exit("out of memory; fewer --threads or a smaller --max-memory may help", EXIT_ERROR) from None
    except (SystemExit, typer.Exit, typer.Abort):
        raise
    except Exception as error:
        if _is_usage_error(error):
            raise
        if console.is_verbose():
            traceback.print_exc()
        line = f"{type(error).__name__}: {error}".replace("\n", "\\n")
        raise _exit(
            f"internal: {line}; this is a bug in loragraft, --verbose shows where", EXIT_INTERNAL
        ) from None


def _is_usage_error(error: Exception) -> bool:
    return any(kind.__name__ == "UsageError" for kind in type(error).__mro__)


def _exit(message: str, code: int, label: str = "error: ") -> SystemExit:
    console.error(f"loragraft: {label}{message}")
    return SystemExit(code)


_SYSTEM_HINTS = {
    errno.ENOSPC: "no space left on the device; free some or write elsewhere",
    errno.EDQUOT: "disk quota exceeded; free some or write elsewhere",
    errno.EROFS: "the file system is read-only; write elsewhere",
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
    errno.ENOENT: "no such file or folder",
    errno.EISDIR: "is a folder, expected a file",
    errno.ENOTDIR: "is not a folder",
    errno.EMFILE: "too many open files; raise `ulimit -n`",
}


def _system_error(error: OSError) -> str:
    reason = _SYSTEM_HINTS.get(error.errno or 0) or error.strerror or str(error)
    place = error.filename2 or error.filename
    return f"{os.fsdecode(place)}: {reason}" if place is not None else reason

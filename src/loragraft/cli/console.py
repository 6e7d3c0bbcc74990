"""Where the commands print: results on stdout, everything else on stderr, in colour only on a terminal."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_quiet = False
_verbose = False


def configure(*, quiet: bool, verbose: bool) -> None:
    global _quiet, _verbose
    _quiet, _verbose = quiet, verbose and not quiet


def silence_libraries() -> None:
    """What libraries log and warn of is not for the user: what is, a command says itself."""
    import logging
    import warnings

    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # it says each time that it tries again
    logging.getLogger().addHandler(logging.NullHandler())  # without any, Python prints warnings to stderr
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def is_quiet() -> bool:
    return _quiet


def is_verbose() -> bool:
    return _verbose


def colours(stream: object) -> bool:
    """NO_COLOR (no-color.org) and TERM=dumb turn colours off, FORCE_COLOR on; else a terminal has them."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool(os.environ.get("FORCE_COLOR")) or bool(getattr(stream, "isatty", lambda: False)())


def stdout() -> Console:
    from rich.console import Console

    wide = None if sys.stdout.isatty() else 160  # tables in a pipe are not cut to 80 columns
    return Console(highlight=False, no_color=not colours(sys.stdout), width=wide)


def stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False, no_color=not colours(sys.stderr))


#: What a terminal obeys, or what makes a line look like another: control characters, line breaks but the usual one,
#: changes of direction, and halves of surrogate pairs.
_OBEYED = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def safe(text: str) -> str:
    """`text`, a stranger's perhaps, with what a terminal would obey as escapes, which JSON reads too."""
    return _OBEYED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def cell(text: str) -> Text:
    """A stranger's text, in a table: no markup, in one line."""
    from rich.text import Text

    return Text(one_line(text))


def one_line(text: str) -> str:
    """The same, line breaks too."""
    return safe(text).replace("\n", "\\n")


def result(text: str = "") -> None:
    """Lines of the result, which --quiet does not silence."""
    print(safe(text), flush=True)


def write(text: str) -> None:
    """A part of a line of the result, at once; as it is, but on a terminal."""
    sys.stdout.write(safe(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def sentences(text: str) -> None:
    """Sentences of the result; on a terminal their lines end between words."""
    if not sys.stdout.isatty():
        result(text)
        return
    width = shutil.get_terminal_size().columns
    for line in text.split("\n"):
        result(textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False))


def table(*headings: str, names: bool = True) -> Table:
    """An empty table without lines. A heading with `>` before it is that of numbers, which stand to the right. If there
    are `names` in the first column, they stay whole as long as they can."""
    from rich.table import Table

    empty = Table(box=None, pad_edge=False, header_style="bold")
    for index, heading in enumerate(headings):
        side: Literal["left", "right"] = "right" if heading.startswith(">") else "left"
        whole = names and not index
        empty.add_column(heading.lstrip(">"), justify=side, overflow="fold", no_wrap=whole)
    return empty


#: Rows from which on a table is laid out here: rich takes a millisecond for each.
_MANY = 500


def show(what: Table) -> None:
    """A table on stdout, part of the result."""
    if what.row_count > _MANY:
        _show_many(what)
        return
    console = stdout()
    with console.capture() as lines:
        console.print(what)
    for line in lines.get().strip("\n").split("\n"):
        result(line.rstrip())  # rich fills lines up to the width


def _show_many(table: Table) -> None:
    """The same columns, no line ever cut."""
    from rich.cells import cell_len

    columns = [[str(column.header), *map(str, column.cells)] for column in table.columns]
    widths = [max(map(cell_len, column)) for column in columns]
    sides = [column.justify == "right" for column in table.columns]
    for row in zip(*columns, strict=True):
        cells = []
        for cell, width, right in zip(row, widths, sides, strict=True):
            space = " " * (width - cell_len(cell))
            cells.append(space + cell if right else cell + space)
        print(safe("  ".join(cells).rstrip()))
    sys.stdout.flush()


def info(message: str) -> None:
    """A line about the run (what was written, how long it took); --quiet silences it."""
    if not _quiet:
        print(one_line(message), file=sys.stderr, flush=True)


def aside(message: str) -> None:
    """The same, where there are colours less bright."""
    if not _quiet:
        line = one_line(message)
        print(f"\033[2m{line}\033[0m" if colours(sys.stderr) else line, file=sys.stderr, flush=True)


def detail(message: str) -> None:
    """A line that only --verbose shows."""
    if _verbose:
        info(message)


def error(message: str) -> None:
    message = one_line(message)
    if colours(sys.stderr):
        message = f"\033[31m{message}\033[0m"
    print(message, file=sys.stderr, flush=True)

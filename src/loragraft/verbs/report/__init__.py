"""A result as one HTML file to read and to pass on: no network, light and dark, readable on a phone."""

from __future__ import annotations

from os import PathLike

from loragraft.errors import LoragraftError, OutputError
from loragraft.streaming.report import WriteReport
from loragraft.system.files import named_path
from loragraft.system.output import OutputFile, open_output
from loragraft.system.remote.paths import as_path
from loragraft.verbs.budget import Budget
from loragraft.verbs.check import Conformance
from loragraft.verbs.compare import Comparison
from loragraft.verbs.inspect import FileReport
from loragraft.verbs.report import sections
from loragraft.verbs.report.page import Page

Reportable = Comparison | Budget | Conformance | FileReport | WriteReport
"""What `compare`, `budget`, `check`, `inspect`, and `merge`, `quantize` or `convert` return."""


def report(result: Reportable, output: str | PathLike[str] | None = None, *, title: str | None = None) -> str:
    """The HTML text of `result`, also written to `output` if that is given.

    `title`: the heading, if the result's own is not wanted. Raises LoragraftError for what is none of these results,
    OutputError.
    """
    match result:
        case Comparison():
            page = sections.comparison(result)
        case Budget():
            page = sections.budget(result)
        case Conformance():
            page = sections.conformance(result)
        case FileReport():
            page = sections.inspection(result)
        case WriteReport():
            page = sections.receipt(result)
        case _:
            raise LoragraftError(
                "result",
                "there is no report of it",
                found=type(result).__name__,
                expected="what compare, budget, check, inspect, merge or quantize returned",
            )
    text = Page(title or page.title, page.lead, page.parts).html()
    if output is not None:
        data = text.encode("utf-8", "replace")
        with open_output(named_path(output, OutputError), len(data)) as file:
            file.write_at(0, data)
    return text


def check_report(output: str | PathLike[str]) -> None:
    """Raises OutputError if no report can be written at `output`: worth asking before long measurements."""
    path = as_path(output)
    if path.is_dir():
        raise OutputError(
            path, "is a folder", expected="the name of a page", hint=f"name one in it: {path / 'report.html'}"
        )
    OutputFile.probe(path, ())

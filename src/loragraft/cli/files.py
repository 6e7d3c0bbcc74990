"""Parameters that name files: those that a command reads, and those that it writes, which must be others."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from loragraft.errors import OutputError
from loragraft.system.files import files_of
from loragraft.system.remote.paths import RemotePath, as_path, is_url


class Place(click.Path):
    """A path, or a URL."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return as_path(value) if is_url(value) else super().convert(value, param, ctx)


class Input(Place):
    """What is read: a file, or a folder whose files are."""


class Output(Place):
    """What is written, or replaced."""


FILE = Input(path_type=Path)
OUTPUT = Output(path_type=Path)
#: A folder to work in, or the beginning of names: neither is itself read or replaced.
PLACE = click.Path(path_type=Path)

_SHARD = re.compile(r"(?P<prefix>.*)-\d{5}(?P<count>-of-\d{5}\.gguf)")


def refuse_inputs(
    parameters: Sequence[click.Parameter], values: Mapping[str, Any], also: Sequence[Path] = ()
) -> None:
    """Raises OutputError if a file that is to be written is one that is to be read, or would be written twice, by
    whatever name: before anything is opened. `also`: outputs that no parameter of type `Output` names."""
    outputs: dict[tuple[int, int] | Path, str] = {}
    named = [
        values.get(parameter.name or "") for parameter in parameters if isinstance(parameter.type, Output)
    ]
    for path in _paths([*named, *also]):
        key = _identity(path) or (path if isinstance(path, RemotePath) else Path(os.path.realpath(path)))
        if key in outputs:
            raise OutputError(path, "would be written twice", found=outputs[key], hint="choose another name")
        outputs[key] = str(path)
    for parameter in parameters:
        if not outputs or isinstance(parameter.type, Output) or parameter.type is PLACE:
            continue
        for path in _paths(values.get(parameter.name or "")):
            for file in _files_of(path):
                written = outputs.get(_identity(file) or (file if isinstance(file, RemotePath) else Path()))
                if written is not None:
                    raise OutputError(
                        written, "the output is also an input", found=str(file), hint="choose another name"
                    )


def _files_of(path: Path) -> list[Path]:
    """The files that reading `path` reads: those in a folder, all of a split model, or itself."""
    try:
        if shard := _SHARD.fullmatch(path.name):
            start, end = shard["prefix"] + "-", shard["count"]
            names = [
                name for name in os.listdir(path.parent) if name.startswith(start) and name.endswith(end)
            ]
            return [path, *(path.with_name(name) for name in names)]
        return files_of(path)
    except (OSError, ValueError):
        return [path]


def _paths(value: Any) -> Iterator[Path]:
    """The paths in a parameter's value."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _paths(item)


def _identity(path: Path) -> tuple[int, int] | None:
    """The same for two names of one file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino

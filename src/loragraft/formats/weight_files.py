"""Which of a folder's files hold its weights, by the names that transformers, PEFT and torchtune give them.

As in transformers, one whole file goes before an index, and safetensors go before pickles.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from loragraft.errors import CheckpointError
from loragraft.formats.jsonfile import load_json
from loragraft.formats.safetensors import SafetensorsFile
from loragraft.formats.torch_file import read_torch_file
from loragraft.system.files import named_path

MODEL, ADAPTER = "model", "adapter_model"
"""How the names of a model's files begin, and those of an adapter's."""

_PICKLED = {MODEL: "pytorch_model", ADAPTER: ADAPTER}
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{1,5})-of-(?P<count>\d{1,5})\.(?:safetensors|bin)")
_PICKLES = ("*.bin", "*.pt", "*.pth")
#: Pickles that trainers leave beside weights, and that are none.
_NO_WEIGHTS = ("training_args.bin", "optimizer.", "scheduler.", "rng_state", "scaler.")
_WHOLE_FOLDER = "copy the whole folder, or download it again: hf download REPOSITORY --local-dir FOLDER"
ALLOW_PICKLE = "add --allow-pickle to read it by torch's weights-only rules, which run nothing of it"


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The files in `folder` that are weights of a model or an adapter (`stem`), safetensors or pickled; none if it
    holds none. Names only: nothing is opened."""
    found = sorted(folder.glob("*.safetensors"))
    if stem == ADAPTER:
        found = [path for path in found if path.name.startswith(ADAPTER)]
    else:
        found = [path for path in found if not path.name.startswith("adapter")]
    return found or _pickled(folder, stem)


def open_weights(
    folder: Path, stem: str, notes: list[str], *, allow_pickle: bool = False
) -> list[SafetensorsFile]:
    """Those files, opened. Of two sets of weights in one folder the one that transformers takes, with a note.

    `allow_pickle`: read pickled weights (`formats.torch_file`). Raises CheckpointError for what is missing or broken.
    """
    whole, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if whole.exists():
        shards = [path.name for path in weight_files(folder, stem) if _is_shard(path, stem)]
        others = [index.name] if index.exists() else shards
        if others:
            notes.append(
                f"{folder}: holds two sets of weights, {whole.name} and {others[0]}: the first is read, as in "
                "transformers"
            )
        return [SafetensorsFile.open(whole)]
    if index.exists():
        return _indexed(index, SafetensorsFile.open)
    files = weight_files(folder, stem)
    if not files:
        expected = f"{whole.name} or {index.name}" if stem == MODEL else whole.name
        raise CheckpointError(folder, "holds no weights", expected=expected)
    if files[0].suffix == ".safetensors":
        return [SafetensorsFile.open(path) for path in _complete(folder, files)]
    if not allow_pickle:
        raise CheckpointError(
            folder,
            "its weights are pickled, which is not safe to read",
            found=files[0].name,
            expected=whole.name,
            hint=ALLOW_PICKLE,
        )
    index, whole = folder / f"{_PICKLED[stem]}.bin.index.json", folder / f"{_PICKLED[stem]}.bin"
    if whole.exists():
        return [_open_pickled(whole)]
    if index.exists():
        return _indexed(index, _open_pickled)
    return [_open_pickled(path) for path in _complete(folder, files)]


def _open_pickled(path: Path) -> SafetensorsFile:
    return SafetensorsFile(path, {}, read_torch_file(path))


def _pickled(folder: Path, stem: str) -> list[Path]:
    found = sorted(path for pattern in _PICKLES for path in folder.glob(pattern))
    if stem == ADAPTER:
        return [path for path in found if path.name.startswith(ADAPTER)]
    return [path for path in found if not path.name.startswith((*_NO_WEIGHTS, "adapter"))]


def _is_shard(path: Path, stem: str) -> bool:
    match = _SHARD.fullmatch(path.name)
    return match is not None and match["stem"] == stem


def _complete(folder: Path, files: list[Path]) -> list[Path]:
    """`files`, of which those that are numbered must all be there."""
    numbered = [match for path in files if (match := _SHARD.fullmatch(path.name))]
    for stem, count in {(match["stem"], int(match["count"])) for match in numbered}:
        there = {int(match["number"]) for match in numbered if match["stem"] == stem}
        first = 0 if 0 in there else 1
        missing = set(range(first, first + min(count, len(files) + 1))) - there
        if missing:
            raise CheckpointError(
                folder,
                f"some of its files {stem}-*-of-{count} are missing",
                found=f"{len(there)} of {count}",
                expected=f"also number {min(missing)}",
                hint=_WHOLE_FOLDER,
            )
    return files


def _indexed(index: Path, read: Callable[[Path], SafetensorsFile]) -> list[SafetensorsFile]:
    """The files that the index names. Every tensor must be in the file where the index says it is."""
    folder = index.parent
    where = load_json(index, CheckpointError).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise CheckpointError(index, "weight_map is not a map of tensor names to file names")
    names = sorted(set(where.values()))
    for name in names:
        if name in ("", ".", "..") or Path(name).name != name or "\\" in name:
            raise CheckpointError(index, "a shard lies outside the folder", found=repr(name))
    # Each name is checked before one of them is asked for: a name can be longer than a file's may be.
    paths = {name: named_path(folder / name, CheckpointError) for name in names}
    missing = [name for name in names if not paths[name].exists()]
    if missing:
        raise CheckpointError(
            paths[missing[0]],
            "a shard that the index names is missing",
            found=f"{len(names) - len(missing)} of {len(names)} files",
            expected=f"it in {folder}",
            hint=_WHOLE_FOLDER,
        )
    files = {name: read(path) for name, path in paths.items()}
    for tensor, name in where.items():
        if tensor not in files[name].tensors:
            raise CheckpointError(
                folder / name,
                f"tensor {tensor!r} is not in it, although the index says so",
                found=index.name,
                hint=_WHOLE_FOLDER,
            )
    return list(files.values())

"""What a path holds: a model, an adapter, or something else; said once, for every verb alike.

Trainers, the hub's cache and people leave adapters in folders within folders, beside the base's files, or in shards
that were never gathered. `recognise` finds what is meant where there is one meaning, with a note. Where there is none,
or more than one, it names what is there and the next command.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import islice
from pathlib import Path, PurePath

from loragraft.errors import AdapterError, CheckpointError, FormatError, LoragraftError
from loragraft.formats import peft
from loragraft.formats.gguf.reader import GGUFFile
from loragraft.formats.impostors import HEAD, is_torch_archive, refuse_impostor
from loragraft.formats.jsonfile import load_json
from loragraft.formats.weight_files import ADAPTER, MODEL, weight_files
from loragraft.huggingface.leftovers import leftover_in
from loragraft.huggingface.mlx import MLX_WEIGHTS, is_mlx_adapter
from loragraft.system.mapped import map_file
from loragraft.system.remote.paths import RemotePath

MODEL_CONFIG = "config.json"


class Kind(StrEnum):
    """What was recognised."""

    GGUF_MODEL = "GGUF model"
    GGUF_ADAPTER = "GGUF adapter"
    GGUF_IMATRIX = "GGUF importance matrix"
    GGUF_OTHER = "GGUF file"
    LEGACY_IMATRIX = "legacy importance matrix"
    CHECKPOINT = "Hugging Face checkpoint"
    PEFT_ADAPTER = "PEFT adapter"
    MLX_ADAPTER = "mlx-lm adapter"
    SAFETENSORS = "safetensors file"


class Role(StrEnum):
    """What a verb wants of a path."""

    ANY = "a model or an adapter"
    MODEL = "a model"
    ADAPTER = "an adapter"


MODELS = frozenset([Kind.GGUF_MODEL, Kind.CHECKPOINT])
ADAPTERS = frozenset([Kind.GGUF_ADAPTER, Kind.PEFT_ADAPTER, Kind.MLX_ADAPTER])
_ROLES = {Role.ANY: frozenset(Kind), Role.MODEL: MODELS, Role.ADAPTER: ADAPTERS}

_MAX_FOLDERS = 1000
_HUB_FOLDER = re.compile(r"(?:models|datasets|spaces)--(?P<owner>.+?)--(?P<name>.+)")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_SPLIT = re.compile(r"-(\d{5})-of-\d{5}\.gguf$")
_STEP = re.compile(r"\D*(\d+)\D*")


@dataclass(frozen=True, slots=True)
class Found:
    """`path` is the file, or the folder that the configuration lies in, which may be below the one that was named."""

    kind: Kind
    path: Path
    notes: tuple[str, ...] = ()
    """How it was found, where the path does not say."""


def recognise(path: Path, role: Role = Role.ANY) -> Found:
    """What `path` holds, as far as `role` may take it.

    Raises FormatError for nothing that is known, CheckpointError or AdapterError for what cannot play the role, or for
    several that can, always with what is there and the next command.
    """
    found = _folder(path, role) if path.is_dir() else _file(path, role)
    if found.kind not in _ROLES[role]:
        raise _wrong(path, found.kind, role)
    return found


def repository_name(folder: Path) -> str:
    """What to call the model or adapter in `folder`: on the hub or in its cache the repository's name, else the
    folder's."""
    if isinstance(folder, RemotePath):
        return folder.repository
    if folder.parent.name == "snapshots" and (match := _HUB_FOLDER.fullmatch(folder.parent.parent.name)):
        return match["name"]
    return folder.name


# ---- folders ----


def _folder(path: Path, role: Role) -> Found:
    if found := _direct(path, role):
        return found
    if (path / "snapshots").is_dir() or (path / "refs").is_dir():
        return _snapshot(path, role)
    if (cached := [child.name for child in _children(path) if _HUB_FOLDER.fullmatch(child.name)]) and not (
        path / MODEL_CONFIG
    ).is_file():
        raise _error(role)(
            path,
            "is the hub's cache of several repositories" if len(cached) > 1 else "is the hub's cache",
            found=_listed(sorted(cached)),
            expected="one of them",
            hint=f"name it: {path / sorted(cached)[-1]}",
        )
    ggufs = list(_ggufs(path, role))
    inside = ggufs or list(_inside(path, role))
    if len(inside) == 1:
        only = inside[0]
        where = f"{only.path.relative_to(path)}" + ("" if ggufs else "/")
        verb = "is" if ggufs else "holds"
        return replace(
            only, notes=(f"{path}: {where} in it {verb} the {_word(only.kind)}: taken", *only.notes)
        )
    if inside:
        names = [str(each.path.relative_to(path)) for each in inside]
        best = _best(path, inside)
        raise _error(role)(
            path,
            f"holds several {' and '.join(sorted({_word(each.kind) + 's' for each in inside}))}",
            found=_listed(names) + (f"; trainer_state.json says that {best} was the best" if best else ""),
            expected="one",
            hint=f"name it: {path / (best or names[-1])}",
        )
    raise _nothing(path, role)


def _ggufs(path: Path, role: Role) -> Iterator[Found]:
    """The GGUF files in the folder that play the role; of a split one the first stands for all."""
    for file in islice(sorted(path.glob("*.gguf")), _MAX_FOLDERS):
        match = _SPLIT.search(file.name)
        if (match is None or int(match[1]) == 1) and file.is_file():
            kind = _gguf_kind(file)
            if kind in _ROLES[role] & (MODELS | ADAPTERS):
                yield Found(kind, file)


def _direct(path: Path, role: Role) -> Found | None:
    """What lies in the folder itself; if that is both a model and an adapter, as the role wants it."""
    adapter = _adapter_kind(path)
    model = (path / MODEL_CONFIG).is_file() and bool(weight_files(path, MODEL))
    if adapter and model and role is not Role.ADAPTER:
        note = f"{path}: holds an adapter too, which is not merged: name the folder with --lora for that"
        return Found(Kind.CHECKPOINT, path, (note,))
    if adapter:
        return Found(adapter, path)
    return Found(Kind.CHECKPOINT, path) if model else None


def _adapter_kind(path: Path) -> Kind | None:
    if (path / MLX_WEIGHTS).is_file():
        return Kind.MLX_ADAPTER
    if (path / peft.CONFIG).is_file() and weight_files(path, ADAPTER):
        config = load_json(path / peft.CONFIG, CheckpointError)
        return Kind.MLX_ADAPTER if is_mlx_adapter(config) else Kind.PEFT_ADAPTER
    return None


def _inside(path: Path, role: Role) -> Iterator[Found]:
    """What plays the role one folder down, or two, in the order of their numbers."""
    own = {child for child in _children(path) if not child.is_symlink()}
    for child in sorted(_children(path), key=_step):
        if child.is_symlink() and child.resolve() in {other.resolve() for other in own}:
            continue  # `latest`, a second name
        for folder in [child, *sorted(_children(child), key=_step)]:
            found = _direct(folder, role)
            if found is not None and found.kind in _ROLES[role]:
                yield found
                break


def _children(path: Path) -> list[Path]:
    try:
        return [
            child for child in islice(path.iterdir(), _MAX_FOLDERS) if child.is_dir() and child.name[0] != "."
        ]
    except OSError:
        return []


def _step(path: Path) -> tuple[int, str]:
    match = _STEP.fullmatch(path.name)
    return int(match[1]) if match and len(match[1]) < 16 else -1, path.name


def _best(path: Path, inside: list[Found]) -> str | None:
    """The checkpoint that the trainer says was the best, if it is one of them."""
    state = inside[-1].path / "trainer_state.json"
    if not state.is_file():
        return None
    try:
        named = load_json(state, CheckpointError).get("best_model_checkpoint")
    except FormatError:
        return None
    best = PurePath(str(named)).name
    return best if any(each.path == path / best for each in inside) else None


def _snapshot(path: Path, role: Role) -> Found:
    """Of a repository in the hub's cache, the revision that `main` is, or the only one."""
    match, main = _HUB_FOLDER.fullmatch(path.name), path / "refs" / "main"
    revisions = sorted(_children(path / "snapshots"))
    if main.is_file() and main.stat().st_size < 100:
        named = path / "snapshots" / main.read_text("utf-8", "replace").strip()
        revisions = [named] if named in revisions else revisions
    repository = f"{match['owner']}/{match['name']}" if match else path.name
    if not revisions:
        raise _error(role)(
            path,
            f"is the hub's cache of {repository}, without any file of it",
            found="no snapshot",
            expected=role,
            hint=f"download it again: hf download {repository}",
        )
    if len(revisions) != 1:
        found = _listed([revision.name for revision in revisions])
        raise _error(role)(
            path,
            f"is the hub's cache of {repository}, and it is not clear which revision is meant",
            found=f"snapshots {found}",
            hint=f"name one, {path / 'snapshots' / revisions[-1].name}, or download it again: "
            f"hf download {repository}",
        )
    found_there = _folder(revisions[0], role)
    note = f"{path}: snapshots/{revisions[0].name} of the hub's cache of {repository}: taken"
    return replace(found_there, notes=(note, *found_there.notes))


def _nothing(path: Path, role: Role, deep: bool = True) -> LoragraftError:
    """The error for a folder in which nothing plays the role: what there is instead, and what to do. `deep`: also in
    the folders in it."""
    above = path.parent / peft.CONFIG
    source = above if above.is_file() else f"THERE/{peft.CONFIG}"
    if weights := weight_files(path, ADAPTER):
        return _error(role)(
            path,
            f"holds an adapter's weights without {peft.CONFIG}, which says their scale",
            found=weights[0].name,
            expected=f"{peft.CONFIG} beside it",
            hint=f"copy it from where the adapter was trained: cp {source} {path}/",
        )
    if left := leftover_in(path, deep):
        return _error(role)(
            left.path, f"holds {left.what}", found=left.found, expected=role, hint=left.advice
        )
    if role is Role.MODEL and (kind := _adapter_kind(path)):
        return _wrong(path, kind, role)
    if other := next(_ggufs(path, Role.ANY), None):
        return _wrong(other.path, other.kind, role)
    if (path / peft.CONFIG).is_file() and role is not Role.MODEL:
        return _error(role)(
            path,
            "holds an adapter's configuration without its weights",
            found=peft.CONFIG,
            expected=f"{peft.WEIGHTS} beside it",
            hint=f"put it beside its weights: cp {path / peft.CONFIG} {below[0].parent}/"
            if (below := sorted(path.glob(f"*/{ADAPTER}*")))
            else "copy the whole folder, or save it again with peft (save_pretrained)",
        )
    config, weights = (path / MODEL_CONFIG).is_file(), weight_files(path, MODEL)
    if config or weights:
        return _error(role)(
            path,
            "is not a complete Hugging Face model" if role is not Role.ADAPTER else "holds no adapter",
            found=f"{MODEL_CONFIG} without weights"
            if config
            else f"{weights[0].name} without {peft.CONFIG if role is Role.ADAPTER else MODEL_CONFIG}",
            expected=f"{MODEL_CONFIG} and model.safetensors" if role is not Role.ADAPTER else _ADAPTER_FILES,
            hint=f"list what is there: ls {path}",
        )
    return _error(role)(
        path,
        {
            Role.ANY: "the folder holds neither a checkpoint nor an adapter",
            Role.MODEL: f"is not a Hugging Face model: no {MODEL_CONFIG}",
            Role.ADAPTER: f"is not an adapter: no {peft.CONFIG}",
        }[role],
        found=_listed(sorted(file.name for file in islice(path.iterdir(), _MAX_FOLDERS)))
        or "an empty folder",
        expected={
            Role.ANY: f"{MODEL_CONFIG} or {peft.CONFIG} in it",
            Role.MODEL: f"{MODEL_CONFIG} and weights",
            Role.ADAPTER: _ADAPTER_FILES,
        }[role],
        hint=f"list what is there: ls {path}",
    )


_ADAPTER_FILES = f"{peft.CONFIG} and {peft.WEIGHTS}"


# ---- files ----


def _file(path: Path, role: Role) -> Found:
    if not path.exists():
        raise _missing(path, role)
    folder_of = {
        peft.CONFIG: Role.ADAPTER,
        MLX_WEIGHTS: Role.ADAPTER,
        MODEL_CONFIG: Role.MODEL,
    }
    own = folder_of.get(path.name)
    if own is None and path.name.startswith(f"{ADAPTER}."):
        own = Role.ADAPTER
    if path.name.endswith(".safetensors.index.json"):
        own = Role.ADAPTER if path.name.startswith(ADAPTER) else Role.MODEL
    if own is None and role is not Role.ANY and path.suffix == ".safetensors":
        own = role
    if own is not None and (role is not Role.ANY or path.suffix == ".json"):
        return _beside(path, own if role is Role.ANY else role)
    with map_file(path, FormatError) as mapping:
        start = mapping[:HEAD]
    refuse_impostor(path, start)
    if start[:4] == b"GGUF":
        return Found(_gguf_kind(path), path)
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return Found(Kind.SAFETENSORS, path)
    if path.suffix == ".dat":
        return Found(Kind.LEGACY_IMATRIX, path)
    if is_torch_archive(start) or path.suffix in (".pt", ".pth", ".ckpt", ".bin"):
        raise FormatError(
            path,
            "is a torch checkpoint, which does not say what its tensors are for",
            found="a file alone",
            expected="a folder with a configuration: a checkpoint or an adapter",
            hint="save it where it was trained with save_pretrained, or name the folder that it belongs to",
        )
    raise FormatError(
        path,
        "is not a kind of file that loragraft knows",
        found=f"a file that begins with {start[:8]!r}",
        expected="a GGUF or safetensors file, an importance matrix, or a folder with a checkpoint or an adapter",
        hint=f"if it is a part of a model's folder, name the folder: {path.parent}",
    )


def _beside(path: Path, role: Role) -> Found:
    """What the folder of `path`, a part of it, holds; not what lies deeper, and not other weights than those named."""
    found = _direct(path.parent, role)
    if found is None or found.kind not in _ROLES[role]:
        raise _nothing(path.parent, role, deep=False)
    stem = ADAPTER if found.kind in ADAPTERS else MODEL
    own = [*weight_files(path.parent, stem), path.parent / MLX_WEIGHTS]
    if path.suffix in (".safetensors", ".bin") and path not in own:
        raise _error(role)(
            path,
            f"is not a part of the {found.kind} that lies beside it",
            found=f"{_listed([file.name for file in own if file.exists()])} there",
            expected="the folder, or a file of it",
            hint=f"name {path.parent} for that one, or put this file into a folder with its own configuration",
        )
    return found


def _gguf_kind(path: Path) -> Kind:
    kinds = {"adapter": Kind.GGUF_ADAPTER, "imatrix": Kind.GGUF_IMATRIX, "model": Kind.GGUF_MODEL}
    return kinds.get(GGUFFile.kind(path), Kind.GGUF_OTHER)


def _missing(path: Path, role: Role) -> LoragraftError:
    error, text = _error(role), str(path)
    if isinstance(path, RemotePath):
        inside = path.scheme in ("s3", "gs") or len(path.parts) > 3
        names = sorted(child.name for child in islice(path.parent.iterdir(), _MAX_FOLDERS)) if inside else []
        return error(
            path,
            "no such file or folder",
            found=f"{_listed(names)} in {path.parent}" if names else None,
            hint="is the name right, and may you read it (hf auth login)?" if path.scheme == "hf" else None,
        )
    if _HUB_ID.fullmatch(text) and not path.parent.exists():
        return error(
            path,
            "no such file or folder; it looks like the name of a repository",
            expected=f"{role} on this machine",
            hint=f"on the hub it is hf://{text}; or download it first: hf download {text} --local-dir {path.name}",
        )
    parent = path.parent
    near = sorted(child.name for child in islice(parent.iterdir(), _MAX_FOLDERS)) if parent.is_dir() else []
    return error(
        path,
        "no such file or folder" if path.suffix in ("", ".d") else "no such file",
        found=f"{_listed(near)} in {parent}" if near and str(parent) not in (".", "/") else None,
        hint=f"list what is there: ls {parent if parent.is_dir() else '.'}",
    )


# ---- errors ----


def _error(role: Role) -> Callable[..., LoragraftError]:
    return {Role.ANY: FormatError, Role.MODEL: CheckpointError, Role.ADAPTER: AdapterError}[role]


def _wrong(path: Path, kind: Kind, role: Role) -> LoragraftError:
    if kind in ADAPTERS:
        return CheckpointError(
            path,
            f"holds an adapter, not a model ({kind})",
            expected="a model: a Hugging Face folder or a GGUF file",
            hint=f"pass it with --lora: loragraft merge BASE --lora {path} -o merged.gguf",
        )
    if kind in MODELS:
        return AdapterError(
            path,
            f"holds a model, not an adapter ({kind})",
            expected="an adapter: a PEFT or mlx-lm folder, or a GGUF adapter",
            hint=f"name it as the model: loragraft merge {path} --lora ADAPTER -o merged.gguf",
        )
    return _error(role)(path, f"is {'an' if kind[0] in 'aeiou' else 'a'} {kind}", expected=role)


def _word(kind: Kind) -> str:
    return "adapter" if kind in ADAPTERS else "model"


def _listed(names: list[str], most: int = 4) -> str:
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown

"""Models on the Hugging Face hub: `hf://org/name[@revision][/file]`.

One question tells a repository's commit, names and sizes. All that is read is of that commit, whatever is pushed
meanwhile. Tokens, endpoint and offline mode are huggingface_hub's own; what its cache holds is read from there.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # loaded lazily

from loragraft.errors import LoragraftError
from loragraft.system.remote.http import probe, read_range
from loragraft.system.remote.store import MAX_NAMES, Facts, Store, brief
from loragraft.system.remote.urls import Url


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository at one commit: files by their names within it, sizes where the hub tells them."""

    commit: str
    sizes: dict[str, int | None]


def endpoint() -> str | None:
    """The hub's address, if it is not the usual one."""
    return os.environ.get("HF_ENDPOINT") or None


def parts_of(path: Url) -> tuple[str, str | None, str]:
    """Repository, revision and name within it. Raises LoragraftError for what is not a model's repository."""
    words = path.parts[1:]
    if words and words[0] in ("datasets", "spaces"):
        raise LoragraftError(path, "is not a model repository", expected="hf://ORG/NAME")
    if len(words) < 2:
        raise LoragraftError(path, "names no repository", expected="hf://ORG/NAME")
    repository, _, revision = "/".join(words[:2]).partition("@")
    return repository, unquote(revision) or None, "/".join(words[2:])


class HubStore(Store):
    def snapshot(self, path: Url) -> Snapshot | None:
        """None if there is no such repository, or nobody may know."""
        root = Url(*path.parts[:3])
        return self.remembered("snapshot", root, lambda: _snapshot(root))

    def facts(self, path: Url) -> Facts | None:
        found, name = self.snapshot(path), parts_of(path)[2]
        if found is None or name not in found.sizes:
            return None
        size = found.sizes[name]
        if size is None:
            probed = self.remembered("facts", path, lambda: probe(path, *self._where(path, found.commit)))
            return probed and Facts(probed.size, found.commit)
        return Facts(size, found.commit)

    def children(self, path: Url) -> Collection[str]:
        found, name = self.snapshot(path), parts_of(path)[2]
        if found is None:
            return ()
        start = f"{name}/" if name else ""
        return {file[len(start) :].partition("/")[0] for file in found.sizes if file.startswith(start)}

    def read(self, path: Url, facts: Facts, start: int, stop: int) -> bytearray:
        return read_range(path, *self._where(path, facts.version), facts, start, stop)

    def now(self, path: Url) -> Facts | None:
        return self.facts(path)  # a commit does not change

    def local(self, path: Url) -> Path | None:
        repository, _, name = parts_of(path)
        found = self.snapshot(path)
        cached = found and try_to_load_from_cache(repository, name, revision=found.commit)
        return Path(cached) if isinstance(cached, str) else None

    def _where(self, path: Url, commit: str) -> tuple[str, dict[str, str]]:
        repository, _, name = parts_of(path)
        host = (endpoint() or constants.ENDPOINT).rstrip("/")
        return f"{host}/{repository}/resolve/{commit}/{quote(name)}", build_hf_headers()


def _snapshot(root: Url) -> Snapshot | None:
    repository, revision, _ = parts_of(root)
    try:
        info = HfApi(endpoint=endpoint()).model_info(repository, revision=revision, files_metadata=True)
    except Exception as problem:  # huggingface_hub's, the HTTP client's, Python's own
        kind, said = type(problem).__name__, brief(problem)
        if kind in ("RepositoryNotFoundError", "RevisionNotFoundError"):
            return None
        if kind == "GatedRepoError":
            raise LoragraftError(
                root,
                "is gated: its authors decide who may read it",
                hint="request access on its page, then run: hf auth login",
            ) from None
        if kind == "OfflineModeIsEnabled":
            return _cached(root)
        if "401" in said:
            raise LoragraftError(
                root, "the hub refuses the token", hint="get another: hf auth login; or unset HF_TOKEN"
            ) from None
        hint = "is this machine online? HF_HUB_OFFLINE=1 takes what the cache holds"
        raise LoragraftError(root, f"cannot be reached: {said}", hint=hint) from None
    names = info.siblings or []
    if len(names) > MAX_NAMES:
        raise LoragraftError(root, "has too many files", found=len(names), expected=f"at most {MAX_NAMES}")
    return Snapshot(str(info.sha), {each.rfilename: each.size for each in names})


def _cached(root: Url) -> Snapshot:
    """What the cache holds of a repository, which need not be all of it."""
    repository, revision, _ = parts_of(root)
    try:
        folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except Exception:  # huggingface_hub's, of several kinds
        raise LoragraftError(
            root,
            "isn't in the cache, and HF_HUB_OFFLINE is set",
            hint=f"unset HF_HUB_OFFLINE, or where there is a network: hf download {repository}",
        ) from None
    files = (path for path in folder.rglob("*") if path.is_file())
    return Snapshot(folder.name, {path.relative_to(folder).as_posix(): path.stat().st_size for path in files})

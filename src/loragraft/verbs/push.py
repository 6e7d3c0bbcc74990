"""Upload what was written to the Hugging Face hub, with a model card, as one commit: all of it appears, or nothing."""

from __future__ import annotations

from pathlib import Path

from loragraft.errors import LoragraftError, OutputError
from loragraft.formats.textfile import read_start
from loragraft.progress import SILENT, Progress
from loragraft.streaming.report import WriteReport
from loragraft.system.files import named_path
from loragraft.system.remote.paths import RemotePath
from loragraft.system.remote.store import brief
from loragraft.system.remote.stores import needing, store_of
from loragraft.verbs.card import MARK, model_card
from loragraft.verbs.comparison_file import read_comparison

#: Of a card that somebody wrote, which ours must not replace.
_OTHER_CARD = "loragraft.md"


def push(
    report: WriteReport,
    to: str | Path,
    *,
    base: str | Path | None = None,
    comparison: str | Path | None = None,
    progress: Progress = SILENT,
) -> str:
    """Upload the files of `report` to `to`, `hf://ORG/NAME[@BRANCH]`, with a card; the address of the commit.

    A repository that is not there yet is made, private. `base`: what the model was made of; `comparison`: a
    file of `compare --json`, whose figures the card then shows. Raises OutputError, FormatError.
    """
    path = check_target(to)
    measured = None if comparison is None else read_comparison(Path(comparison))
    repository, _, branch = "/".join(path.parts[1:3]).partition("@")
    if any(isinstance(file, RemotePath) for file in report.paths):
        raise OutputError(path, "can be uploaded from files on this machine alone", hint="write to a file")
    with needing(path):
        from huggingface_hub import CommitOperationAdd, HfApi

        from loragraft.system.remote.hub import endpoint
    api = HfApi(endpoint=endpoint())
    source = named_path(base) if base is not None else None
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        name = _card_name(path)
        if name == _OTHER_CARD:
            progress.note(f"{path}: has a README.md of its own, which stays: the card is {name}")
        card = model_card(report, repository=repository, base=source, comparison=measured)
        files = [CommitOperationAdd(file.name, str(file)) for file in report.paths]
        done = api.create_commit(
            repository,
            [*files, CommitOperationAdd(name, card.encode())],
            commit_message=f"{report.target} by loragraft",
            revision=branch or None,
        )
    except LoragraftError:
        raise
    except Exception as problem:  # huggingface_hub's, the HTTP client's, Python's own
        kind = type(problem).__name__
        lacking = kind == "LocalTokenNotFoundError"
        hint = "what was written stays"
        if len(report.paths) == 1:
            hint += f"; to upload it later: hf upload {repository} {report.paths[0]}"
        if lacking or "401" in str(problem):
            hint = f"log in with a token that may write: hf auth login; {hint}"
        said = "there is no token" if lacking else brief(problem)
        raise OutputError(path, f"cannot be uploaded to: {said}", hint=hint) from None
    return str(done.commit_url)


def check_target(to: str | Path) -> RemotePath:
    """`to` as the name of a repository. Raises OutputError for anything else."""
    path = named_path(to, OutputError)
    if not isinstance(path, RemotePath) or path.scheme != "hf" or len(path.parts) != 3:
        raise OutputError(
            str(to), "is not a repository on the hub", expected="hf://ORG/NAME or hf://ORG/NAME@BRANCH"
        )
    return path


def _card_name(path: RemotePath) -> str:
    """README.md, unless there is one that is not ours."""
    there = path / "README.md"
    store_of(there).forget()
    ours = not there.is_file() or MARK.encode() in read_start(there, 1 << 16)
    return "README.md" if ours else _OTHER_CARD

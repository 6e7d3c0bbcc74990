"""The model card of what was written: which base, which adapters and how they were used, and how to start it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from loragraft import __version__
from loragraft.streaming.report import WriteReport
from loragraft.system.remote.paths import RemotePath
from loragraft.units import bytes_text
from loragraft.verbs.comparison_file import Measured
from loragraft.verbs.launching import launches

#: By it a card of ours is known, and may be replaced.
MARK = "<!-- written by loragraft -->"


def model_card(
    report: WriteReport,
    *,
    repository: str,
    base: Path | str | None = None,
    comparison: Measured | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The card's Markdown, for files that will lie in `repository`. `base`: what it was made of; `comparison`: what was
    measured of it."""
    front = {
        "library_name": "gguf",
        "pipeline_tag": "text-generation",
        "tags": ["gguf", "loragraft", *(["lora"] if report.adapters else [])],
    }
    parents = [where for where in (base, *(use.path for use in report.adapters)) if _on_hub(where)]
    if parents:
        front["base_model"] = [_repository(where) for where in parents]
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(),
        "---",
        MARK,
        "",
        f"# {_plain(repository.rpartition('/')[2])}",
        "",
        f"{report.target}, {report.bits_per_weight:.2f} bits per weight"
        + (f", made of {_code(_origin(base))}" if base is not None else "")
        + f" by loragraft {__version__}.",
        "",
        "| file | type | tensors' bytes |",
        "|---|---|--:|",
    ]
    each = bytes_text(report.size) if len(report.paths) == 1 else ""
    lines += [f"| {_code(path.name)} | {report.target} | {each} |" for path in report.paths]
    if report.adapters:
        lines += [
            "",
            "## What went in",
            "",
            "| adapter | strength | rank | tensors used | on weights | which it changes | sha256 |",
            "|---|--:|--:|--:|--:|--:|---|",
        ]
        lines += [
            f"| {_code(_origin(use.path) if _on_hub(use.path) else use.name)} | {use.scale:g} | {use.rank or ''} | "
            f"{use.tensors} of {use.found} | {use.targets} | {use.changing} | {_code(use.sha256)} |"
            for use in report.adapters
        ]
        lines += ["", "The file's own metadata say the same (`loragraft.adapters.*`)."]
    if comparison is not None:
        lines += _measured(comparison)
    if report.errors:
        worst = max(report.errors, key=lambda error: error.relative)
        lines += [
            "",
            f"Read back after it was written: the largest relative error of a tensor is {worst.relative:.5f} "
            f"({_code(worst.name)}).",
        ]
    said = [*notes, *report.notes]
    if said:
        lines += ["", "## Notes", "", *(f"- {_plain(note)}" for note in said)]
    lines += ["", "## How to run it", ""]
    for launch in launches(report.paths[0].name, repository=repository):
        lines += [f"{launch.program}:", "", "```", launch.line, "```", ""]
    return "\n".join(lines)


def _measured(found: Measured) -> list[str]:
    lines = [
        "",
        "## What was measured",
        "",
        "| deployment | perplexity | mean KL | same top-1 | fine-tune kept | size |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in found.rows:
        kl = "" if row.kl is None else f"{row.kl:.5f}"
        same = "" if row.same_top is None else f"{100 * row.same_top:.1f} %"
        kept = "" if row.kept is None else f"{100 * row.kept[0]:.2f} ± {100 * row.kept[1]:.2f} %"
        lines.append(
            f"| {_plain(row.label)} | {row.perplexity:.2f} | {kl} | {same} | {kept} | {bytes_text(row.size)} |"
        )
    return [
        *lines,
        "",
        f"KL and top-1 are beside the merged model at full precision: {found.tokens:,} predictions in the second "
        f"halves of {found.windows:,} windows of {found.context:,} tokens (`loragraft compare`).",
    ]


def _on_hub(where: object) -> bool:
    return isinstance(where, RemotePath) and where.scheme == "hf"


def _repository(where: Path | str | None) -> str:
    assert isinstance(where, RemotePath)
    return "/".join(where.parts[1:3]).partition("@")[0]


def _origin(where: Path | str | None) -> str:
    """A path on this machine says no more than its name: the rest is nobody's business."""
    return str(where) if isinstance(where, RemotePath) else Path(str(where)).name


def _plain(text: str) -> str:
    """Strangers' words as Markdown that means only itself."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    return "`" + " ".join(text.replace("`", "'").replace("|", "/").split()) + "`"

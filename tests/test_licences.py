"""What a user installs with loragraft, all the way down, may be used with it; and CI installs what it says."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from collections.abc import Iterator

from paths import ROOT

#: Licences that ask for no more than to be named, or for changes to their own files alone.
ALLOWED = re.compile(
    r"(MIT|BSD|0BSD|Apache|PSF|Zlib|CC0|MPL-2\.0|Mozilla Public License 2\.0)", re.IGNORECASE
)
FORBIDDEN = re.compile(r"\b(AGPL|GPL|LGPL|SSPL|Commons Clause|Proprietary)", re.IGNORECASE)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed(name: str, seen: set[str]) -> Iterator[tuple[str, str]]:
    """Every package that `name` needs at run time, with what it says of its licence."""
    if normal(name) in seen:
        return
    seen.add(normal(name))
    facts = importlib.metadata.metadata(name)
    classifiers = [line for line in facts.get_all("Classifier") or [] if line.startswith("License")]
    yield (
        normal(name),
        " ".join([facts.get("License-Expression") or facts.get("License") or "", *classifiers]),
    )
    for line in importlib.metadata.requires(name) or []:
        if "extra ==" in line or not (match := re.match(r"[\w.\-]+", line)):
            continue
        try:
            yield from installed(match[0], seen)
        except importlib.metadata.PackageNotFoundError:
            assert ";" in line, f"{name} needs {line}, which is not installed"  # for another system


def test_every_licence_is_compatible_and_listed() -> None:
    listed = (ROOT / "docs/decisions/0002-dependencies.md").read_text()
    found = dict(installed("loragraft", set()))
    assert len(found) > 8
    for name, licence in found.items():
        if name == "loragraft":
            continue
        assert ALLOWED.search(licence), f"{name}: {licence!r}"
        assert not FORBIDDEN.search(licence), f"{name}: {licence!r}"
        assert re.search(rf"\b{name}\b", listed), f"{name} is not listed"


def test_the_pins_are_hashed_and_complete() -> None:
    lines = (ROOT / "requirements/ci.txt").read_text().splitlines()[1:]
    pinned = set()
    for line in lines:
        match = re.fullmatch(r"([\w.\-]+)==[\w.]+ --hash=sha256:[0-9a-f]{64}", line)
        assert match, line
        pinned.add(normal(match[1]))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    for extra in ("serve", "gpu", "test", "lint"):
        wanted += project["project"]["optional-dependencies"][extra]
    wanted = [line for line in wanted if not line.startswith("loragraft[")]
    for line in wanted:
        assert normal(re.match(r"[\w.\-]+", line)[0]) in pinned, line  # type: ignore[index]
    assert "://" not in "\n".join(lines)

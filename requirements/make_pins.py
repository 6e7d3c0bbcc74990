"""Writes requirements/ci.txt: every package that building, testing and linting install, with its version and the hash
of the file that pip takes for it on this machine (`make pins`). Where it came from is not written down."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"], "ninja", "cmake"]
    for extra in ("serve", "gpu", "test", "lint"):
        wanted += project["project"]["optional-dependencies"][extra]
    wanted = [line for line in wanted if not line.startswith("loragraft[")]
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--quiet",
        "--report",
        "-",
    ]
    report = json.loads(
        subprocess.run([*command, *wanted], capture_output=True, text=True, check=True).stdout
    )
    lines = []
    for item in report["install"]:
        facts, digest = item["metadata"], item["download_info"]["archive_info"]["hashes"]["sha256"]
        lines.append(f"{facts['name'].lower()}=={facts['version']} --hash=sha256:{digest}")
    head = f"# Python {sys.version_info.major}.{sys.version_info.minor}, {platform.system()} {platform.machine()}\n"
    (HERE / "ci.txt").write_text(head + "\n".join(sorted(lines)) + "\n")


if __name__ == "__main__":
    main()

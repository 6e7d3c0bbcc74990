"""The peers' process: one for all tests, as importing them takes long."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paths import ROOT

Ask = Callable[..., None]


@pytest.fixture(scope="session")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """`ask(job, **arguments)` has peer.py do a job; paths may be `Path`s."""
    python = Path(os.environ.get("LORAGRAFT_ORACLE", ROOT / ".venv-oracle" / "bin" / "python"))
    if not python.exists():
        pytest.skip(f"the peers are not installed ({python}); `make test-oracles` does it")
    log = tmp_path_factory.mktemp("oracle") / "stderr.txt"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [str(python), str(Path(__file__).parent / "peer.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def ask(job: str, **arguments: Any) -> None:
        stdin.write(json.dumps([job, arguments], default=str) + "\n")
        stdin.flush()
        line = stdout.readline()
        problem = json.loads(line) if line else "the peers' process ended:\n" + log.read_text()[-2000:]
        if problem is not None:
            pytest.fail(f"{job}: {problem}", pytrace=False)

    with process:
        yield ask
        stdin.close()

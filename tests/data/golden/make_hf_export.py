"""Records hf-export.json: what transformers computes of exports of the models of hf-configs.json, and the like.

    PYTHONPATH=tests LORAGRAFT_ORACLE=venv/bin/python python make_hf_export.py [CASE ...]

The models go to GGUF and from there to a checkpoint in NVFP4 (from the folder, where a GGUF is not enough).
compressed-tensors takes the weights out of it, and transformers loads them and its config.json. What has no linear that
can be NVFP4 is loaded as it is.

By case: `from`, what was exported; `digest`, of what the export wrote, so that a test sees when it has changed;
`error`, of our logits of these weights against those of transformers; `loss`, of these against the logits of the model
that was exported; `refused`, why there is no export; `fails`, that transformers does not load it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import loragraft as lg
from archs.test_hf_configs import write
from hf_configs import STEP, exported, logits, records
from loragraft.errors import LoragraftError
from tolerances import nmse

GOLDEN = Path(__file__).parent


class Oracle:
    """tests/oracles/peer.py, in its own Python."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [os.environ["LORAGRAFT_ORACLE"], GOLDEN.parents[1] / "oracles" / "peer.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )

    def ask(self, job: str, **arguments: Any) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([job, arguments], default=str) + "\n")
        self.process.stdin.flush()
        problem = json.loads(self.process.stdout.readline())
        if problem is not None:
            raise RuntimeError(problem)


def main() -> None:
    chosen = tuple(sys.argv[1:])
    said = json.loads((GOLDEN / "hf-export.json").read_text()) if chosen else {}
    golden, oracle = logits(), Oracle()
    ids = [int(id_) for id_ in golden["ids"]]
    for case in records():
        if chosen and not case.startswith(chosen):
            continue
        with tempfile.TemporaryDirectory() as name:
            out = Path(name)
            try:
                said[case] = exported(write(out / "m", case), out)
            except LoragraftError as problem:
                said[case] = {"refused": str(problem).replace(f"{out}/", "")}
                continue
            try:
                if "quantization_config" in json.loads((out / "out" / "config.json").read_text()):
                    oracle.ask("decompress", folder=out / "out", out=out / "plain")
                else:
                    (out / "out").rename(out / "plain")
                oracle.ask("logits", folder=out / "plain", ids=ids, out=out / "logits.npy")
            except RuntimeError as problem:
                print(case, "FAILS:", str(problem).strip().splitlines()[-1][:300])
                said[case]["fails"] = "transformers does not load it"
                continue
            theirs = np.load(out / "logits.npy")
            plain = lg.load(out / "plain", backend="reference", context=len(ids))
            said[case]["error"] = float(f"{nmse(plain.logits(ids), theirs):.0e}")
            said[case]["loss"] = float(f"{nmse(theirs[::STEP], golden[case]):.0e}")
    said = {case: said[case] for case in records() if case in said}
    text = json.dumps(said, separators=(",", ":")).replace('},"', '},\n"')
    (GOLDEN / "hf-export.json").write_text(text + "\n")


if __name__ == "__main__":
    main()

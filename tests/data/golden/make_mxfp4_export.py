"""Records mxfp4-export.json: what transformers computes of gpt-oss exported with its experts in MXFP4.

    PYTHONPATH=tests LORAGRAFT_ORACLE=venv/bin/python python make_mxfp4_export.py

transformers loads the export itself and dequantizes it. `digest`, `error` and `loss` are as in hf-export.json.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

import loragraft as lg
from hf_configs import exported, logits, write_packed
from tolerances import nmse

GOLDEN = Path(__file__).parent
sys.path.insert(0, str(GOLDEN))

from make_hf_export import Oracle  # noqa: E402


def main() -> None:
    ids, oracle = [int(id_) for id_ in logits()["ids"]], Oracle()
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        said: dict[str, object] = dict(exported(write_packed(out / "m"), out))
        for folder in ("m", "out"):
            oracle.ask("logits", folder=out / folder, ids=ids, out=out / f"{folder}.npy")
        before, theirs = (np.load(out / f"{folder}.npy") for folder in ("m", "out"))
        ours = lg.load(out / "out", backend="reference", context=len(ids))
        said["error"] = float(f"{nmse(ours.logits(ids), theirs):.0e}")
        said["loss"] = float(f"{nmse(theirs, before):.0e}")
    (GOLDEN / "mxfp4-export.json").write_text(json.dumps(said) + "\n")


if __name__ == "__main__":
    main()

"""Records hf-llama-cpp.npz and .json: llama.cpp's own float32 logits of the files that we convert the models into.

    g++ -O1 -std=c++17 -Illama.cpp/include -Illama.cpp/ggml/include llama_logits.cpp \\
        -Lllama.cpp/build/bin -lllama -lggml -Wl,-rpath,llama.cpp/build/bin -o llama-logits
    PYTHONPATH=tests LLAMA_LOGITS=./llama-logits python make_hf_llama_cpp.py [CASE ...]

By case: `digest`, of the file, so that a test sees when it has changed; `refused`, what llama.cpp says of one that it
does not load. With names of cases, or how they begin, these are made anew, and what there is of the others stays.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import loragraft as lg
from archs.test_hf_configs import TEXT_ONLY, write
from hf_configs import PEFT_STEP, VOCABULARY, digest, logits, records
from loragraft.formats.gguf.model import open_gguf

GOLDEN = Path(__file__).parent
#: Of llama.cpp's Phi-3 vocabularies a token is looked up by name.
PHI3 = {"#": "</s>"}


def run(case: str, ids: list[str]) -> tuple[dict[str, Any], Any]:
    with tempfile.TemporaryDirectory() as name:
        folder, path = write(Path(name) / "m", case), Path(name) / "m.gguf"
        if case.startswith("phi3"):
            said = json.loads((folder / "tokenizer.json").read_text())
            said["model"]["vocab"] = {PHI3.get(key, key): id_ for key, id_ in said["model"]["vocab"].items()}
            (folder / "tokenizer.json").write_text(json.dumps(said))
        lg.convert(folder, path, type="F32", intake=TEXT_ONLY)
        model = open_gguf(path)
        found = {"digest": digest(model.metadata, model.tensors)}
        program = [os.environ["LLAMA_LOGITS"], str(len(ids)), *ids, str(path)]
        done = subprocess.run(program, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode or not path.with_suffix(".gguf.f32").exists():
            said = re.findall(r"error loading model: (.*)", done.stderr) or ["it ends without a word"]
            return {**found, "refused": said[0].removeprefix("error loading model hyperparameters: ")}, None
        computed = np.fromfile(path.with_suffix(".gguf.f32"), np.float32)
        return found, computed.reshape(len(ids), VOCABULARY)[::PEFT_STEP]


def main() -> None:
    chosen = tuple(sys.argv[1:])
    said = json.loads((GOLDEN / "hf-llama-cpp.json").read_text()) if chosen else {}
    found = dict(np.load(GOLDEN / "hf-llama-cpp.npz")) if chosen else {}
    ids = [str(id_) for id_ in logits()["ids"]]
    for case in records():
        if chosen and not case.startswith(chosen):
            continue
        found.pop(case, None)
        said[case], computed = run(case, ids)
        if computed is not None:
            found[case] = computed
    said = {case: said[case] for case in records() if case in said}
    text = json.dumps(said, separators=(",", ":")).replace('},"', '},\n"')
    (GOLDEN / "hf-llama-cpp.json").write_text(text + "\n")
    np.savez_compressed(GOLDEN / "hf-llama-cpp.npz", **{case: found[case] for case in said if case in found})


if __name__ == "__main__":
    main()

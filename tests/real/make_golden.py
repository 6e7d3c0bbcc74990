"""Makes golden/real-models.json and .npz: what llama.cpp and transformers compute of real models.

python tests/real/make_golden.py FOLDER-WITH-THE-MODELS LLAMA.CPP'S-BIN TEXT          (needs torch and transformers)
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from models import MODELS

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
PROMPTS = ["The capital of France is"]
#: Characters of the text for the logits, and for the perplexity.
SHORT, LONG = 20_000, 60_000
#: Tokens of which the logits are kept.
TOKENS = 700
CONTEXT = 1024
#: Of the logits, every how many rows and columns are kept.
ROWS, COLUMNS = 100, 64


def run(program: Path, *words: str) -> str:
    done = subprocess.run([str(program), *words], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def tokens(binaries: Path, model: Path, text: str) -> list[int]:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(text)
        file.flush()
        said = run(
            binaries / "llama-tokenize",
            "-m",
            str(model),
            "-f",
            file.name,
            "--ids",
            "--no-escape",
            "--log-disable",
        )
    return [int(id_) for id_ in json.loads(re.findall(r"\[[\d, ]*\]", said)[-1])]


def peers(binaries: Path, model: Path, text: str) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(text[:LONG])
        file.flush()
        words = ["-m", str(model), "-f", file.name, "-c", str(CONTEXT), "-t", "2"]
        found = re.search(r"PPL = ([\d.]+)", run(binaries / "llama-perplexity", *words))
    assert found
    continued = {}
    for prompt in PROMPTS:
        words = ["-m", str(model), "-p", prompt, "-n", "48", "--temp", "0", "-no-cnv", "-t", "2"]
        done = subprocess.run(
            [str(binaries / "llama-completion"), *words], capture_output=True, text=True, check=True
        )
        continued[prompt] = tokens(binaries, model, prompt + done.stdout.strip().removeprefix(prompt))
    return {
        "ids": tokens(binaries, model, text[:SHORT])[:TOKENS],
        "perplexity": float(found[1]),
        "greedy": continued,
    }


def main() -> None:
    folder, binaries, text = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]).read_text()
    transformers.logging.set_verbosity_error()
    record, logits = {}, {}
    for name, real in MODELS.items():
        record[name] = peers(binaries, folder / real.file, text)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=real.file, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        with torch.no_grad():
            found = model(torch.tensor([record[name]["ids"]])).logits[0]
        logits[name] = found[::ROWS, ::COLUMNS].numpy()
    (GOLDEN / "real-models.json").write_text(json.dumps(record, separators=(",", ":")) + "\n")
    np.savez_compressed(GOLDEN / "real-models.npz", **logits)


if __name__ == "__main__":
    main()

"""The whole job side by side: Hugging Face base + PEFT adapter -> Q4_K_M, by loragraft and by llama.cpp's four tools.

    LLAMA_CPP=SOURCE LLAMA_CPP_BIN=BUILD/bin LLAMA_CPP_PYTHON=PYTHON python bench/four_tools.py [--type Q4_K_M] ...

The peer's route is convert_hf_to_gguf.py, convert_lora_to_gguf.py, llama-export-lora, llama-quantize, each once, as
its documentation says. LLAMA_CPP_PYTHON needs torch and transformers. Prints for each step the seconds, the peak
resident memory and the bytes left on the disk, then the totals with their ratios, and whether the final tensors are
the same bytes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import child
from loragraft.formats.gguf.reader import GGUFFile
from merge_memory import make_adapter, make_base


@dataclass(frozen=True)
class Step:
    name: str
    seconds: float
    peak: int
    """Resident memory at its peak, in bytes, mapped files included."""
    written: int
    """Bytes of the file that it leaves."""


def measured(name: str, command: list[str], output: Path) -> Step:
    """Run `command`, which makes `output`."""
    run = child.run(command)
    return Step(name, run.seconds, run.peak, output.stat().st_size)


def four_tools(base: Path, adapter: Path, folder: Path, type: str, threads: int) -> list[Step]:  # noqa: A002
    source, binaries = Path(os.environ["LLAMA_CPP"]), Path(os.environ["LLAMA_CPP_BIN"])
    python = os.environ.get("LLAMA_CPP_PYTHON", sys.executable)
    f16, lora, merged, out = (folder / n for n in ("base.gguf", "lora.gguf", "merged.gguf", "peer.gguf"))
    # The converter knows tokenizers by a hash; the example's, trained by ourselves, must be announced to it.
    announce = (
        "import sys, runpy, pathlib; root = pathlib.Path(sys.argv[1]); script = sys.argv[2]; sys.argv = sys.argv[2:];"
        "sys.path[:0] = [str(root), str(root / 'gguf-py')]; import conversion.base as b;"
        "b.TextModel.get_vocab_base_pre = lambda self, tokenizer: 'llama-bpe';"
        "runpy.run_path(str(root / script), run_name='__main__')"
    )
    script = [python, "-c", announce, str(source)]
    export, quantize = str(binaries / "llama-export-lora"), str(binaries / "llama-quantize")
    words = f"convert_hf_to_gguf.py {base} --outfile {f16} --outtype f16".split()
    lora_words = f"convert_lora_to_gguf.py {adapter} --base {base} --outfile {lora} --outtype f32".split()
    steps = [
        ("convert_hf_to_gguf", [*script, *words], f16),
        ("convert_lora_to_gguf", [*script, *lora_words], lora),
        ("llama-export-lora", f"{export} -m {f16} --lora {lora} -o {merged} -t {threads}".split(), merged),
        ("llama-quantize", f"{quantize} {merged} {out} {type} {threads}".split(), out),
    ]
    return [measured(name, command, output) for name, command, output in steps]


def one_pass(base: Path, adapter: Path, folder: Path, type: str, threads: int) -> list[Step]:  # noqa: A002
    out = folder / "ours.gguf"
    words = ["merge", str(base), "--lora", str(adapter), "-o", str(out), "--type", type, "-t", str(threads)]
    return [measured("loragraft merge", [sys.executable, "-m", "loragraft", *words], out)]


def different_weights(ours: Path, theirs: Path) -> tuple[int, int]:
    """How many tensors differ in their bytes, and how many there are."""
    with GGUFFile.open(ours) as a, GGUFFile.open(theirs) as b:
        if {n: t.type for n, t in a.tensors.items()} != {n: t.type for n, t in b.tensors.items()}:
            raise SystemExit("the two routes chose other tensors or types")
        return sum(not np.array_equal(t.data(), b.tensors[n].data()) for n, t in a.tensors.items()), len(
            a.tensors
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--type", default="Q4_K_M")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, default=None, help="where the files are made, and removed")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=a.folder) as temporary:
        folder = Path(temporary)
        base, adapter = folder / "base", folder / "adapter"
        weights = make_base(base, a.layers)
        make_adapter(adapter, a.layers)
        print(f"{weights / 1e6:.0f} M weights, LoRA on every linear, to {a.type}, {a.threads} threads")
        routes = {"loragraft": one_pass(base, adapter, folder, a.type, a.threads)}
        if "LLAMA_CPP" in os.environ:
            routes["llama.cpp"] = four_tools(base, adapter, folder, a.type, a.threads)
        print(f"{'step':24} {'seconds':>8} {'peak MB':>8} {'written MB':>11}")
        totals = {}
        for route, steps in routes.items():
            for step in steps:
                print(f"{step.name:24} {step.seconds:8.1f} {step.peak / 1e6:8.0f} {step.written / 1e6:11.0f}")
            total = totals[route] = Step(
                f"= {route}",
                sum(s.seconds for s in steps),
                max(s.peak for s in steps),
                sum(s.written for s in steps),
            )
            print(f"{total.name:24} {total.seconds:8.1f} {total.peak / 1e6:8.0f} {total.written / 1e6:11.0f}")
        if "llama.cpp" in totals:
            ours, theirs = totals["loragraft"], totals["llama.cpp"]
            print(
                f"{'ratio':24} {theirs.seconds / ours.seconds:8.1f} {theirs.peak / ours.peak:8.1f}"
                f" {theirs.written / ours.written:11.1f}"
            )
            different, count = different_weights(folder / "ours.gguf", folder / "peer.gguf")
            print(f"tensors whose bytes differ: {different} of {count}")


if __name__ == "__main__":
    main()

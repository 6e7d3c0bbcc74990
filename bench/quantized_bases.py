"""What merging into a quantized base keeps of a fine-tune: docs/rounding.md.

    python bench/quantized_bases.py WORK --smollm2 FOLDER [--bases ...] [--ways ...] [--prefix "nice -n 19"] [--table]

The bases, all of SmolLM2-135M-Instruct: `Q4_1`, `Q4_0`, `Q4_K_M` and `NVFP4` are GGUF files, made here; `nf4` and
`int4` are the folders WORK/nf4 and WORK/int4 that bench/make_quantized_bases.py makes. The adapter is
`models/smollm2.shakespeare` of the test data; for `nf4` it is WORK/nf4.qlora, which was trained on that base.

KL is the divergence from the base (dequantized) with the adapter, merged to F16; float activations, the first 12
windows of 256 tokens of shakespeare-valid. Kept is 1 - KL / KL of the base alone. The ways: `base`, the base alone;
`run time`, the base as it is with the adapter beside it; and merged and written as a type: `TYPE nearest`, and `TYPE
feedback`, with --calibrate on 40 windows of shakespeare-train; `TYPE budget`, types chosen at that one's size. `peft`,
of nf4: WORK/nf4.peft-merged, what PEFT merges into NF4. Each is a process whose result is kept in WORK/bases.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rounding import CALIBRATION, CONTEXT, TEXTS, TRAIN, WINDOWS, Bench, data
from tables import measured, print_table

GGUF = ("Q4_1", "Q4_0", "Q4_K_M", "NVFP4")
#: The types that each base is merged to: its own, and those that are as small as a folder.
TYPES = {
    **{kind: (kind,) for kind in GGUF},
    "nf4": ("Q4_0", "Q4_K_M", "NVFP4"),
    "int4": ("Q4_0", "Q4_K_M", "NVFP4"),
}


@dataclass
class Cell:
    base: str
    way: str
    size: int
    kl: float
    error: float
    seconds: float


@dataclass(frozen=True)
class Bases:
    work: Path
    smollm2: Path | None

    def base(self, name: str) -> Path:
        path = self.work / name
        if name not in GGUF:
            return path
        if self.smollm2 is None:
            raise SystemExit("name the folder of SmolLM2-135M-Instruct: --smollm2 FOLDER")
        return _made(path.with_suffix(".gguf"), lambda out: _merge(self.smollm2, None, out, name))

    def adapter(self, name: str) -> Path:
        return self.work / "nf4.qlora" if name == "nf4" else data("smollm2.shakespeare")

    def sum(self, name: str) -> Path:
        """The reference: base and adapter in F16."""
        return _made(
            self.work / f"{name}.sum.gguf",
            lambda out: _merge(self.base(name), self.adapter(name), out, "F16"),
        )

    def measure(self, name: str, way: str) -> Cell:
        from loragraft.evaluate.divergence import kl
        from loragraft.evaluate.uncertainty import mean
        from loragraft.inference.measurement import Text
        from loragraft.inference.model import load
        from loragraft.inference.perplexity import log_softmax

        began, file, adapters = time.perf_counter(), self.base(name), []
        made = self.work / f"{name}.{way.replace(' ', '-')}.gguf"
        if way == "run time":
            adapters = [self.adapter(name)]
        elif way == "base" and file.is_dir():
            file = _made(self.work / f"{name}.base.gguf", lambda out: _merge(file, None, out, "F16"))
        elif way == "peft":
            file = _made(made, lambda out: _merge(self.work / f"{name}.peft-merged", None, out, "F16"))
        elif way != "base":
            kind, how = way.split()
            file = self.make(name, kind, how, made)
        if file.is_dir():  # run as the floats that it means
            file = _made(
                self.work / f"{name}.base.gguf", lambda out: _merge(self.base(name), None, out, "F16")
            )
        seconds = time.perf_counter() - began
        whole, other = load(self.sum(name), activations="f32"), load(file, adapters, activations="f32")
        bos = whole.tokenizer.bos if whole.tokenizer.add_bos else None
        words = data(f"text/{TEXTS['held out']}").read_text()
        found = []
        for window in Text(whole.tokenizer.encode(words), CONTEXT, bos, WINDOWS):
            true = np.float64(log_softmax(window.read_by(whole)))
            found.append(kl(true, log_softmax(window.read_by(other))))
        result = mean(np.stack(found))
        size = _size(self.base(name) if way in ("base", "run time") else made)
        if way not in ("base", "run time"):
            made.unlink()
        return Cell(name, way, size, result.value, result.error, seconds)

    def make(self, name: str, kind: str, how: str, out: Path) -> Path:
        bench = Bench(self.work, self.smollm2, None)
        calibrate: dict[str, Any] = {"calibrate": [data(f"text/{TRAIN}")], "calibrate_windows": CALIBRATION}
        if how == "nearest":
            calibrate = {}
        else:
            (self.work / name).mkdir(exist_ok=True)
            bench.keep_gradients(name)
        rules: dict[str, Any] = {}
        if how == "budget":
            rules["tensor_types"] = _types_of_budget(self, name, kind, calibrate)
        return _merge(self.base(name), self.adapter(name), out, kind, **calibrate, **rules)


def _types_of_budget(bases: Bases, name: str, kind: str, calibrate: dict[str, Any]) -> list[tuple[str, str]]:
    class Sums(Bench):
        def merged(self, model: str) -> Path:
            return bases.sum(model)

    return Sums(bases.work, bases.smollm2, None).budget_types(name, kind, calibrate)


def _made(path: Path, make: Any) -> Path:
    if not path.exists():
        part = path.with_name(f"part.{os.getpid()}.gguf")
        make(part)
        part.rename(path)
    return path


def _merge(base: Path | None, adapter: Path | None, out: Path, kind: str, **how: Any) -> Path:
    import loragraft as lg

    options = lg.QuantizeOptions(allow_requantize=True, **how)
    lg.merge(base, [adapter] if adapter else [], out, type=kind, options=options, dequantize=True)
    return out


def _size(path: Path) -> int:
    """Bytes of tensors, near enough: of the files that hold them."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.glob("*.safetensors")))


def table(cells: list[Cell]) -> None:
    for name in TYPES:
        found = {cell.way: cell for cell in cells if cell.base == name}
        if "base" not in found:
            continue
        base = found["base"]
        print_table(
            f"{name}, {base.size / 1e6:.1f} MB: the base alone is at {base.kl:.5f}",
            ["way", "MB", "KL", "% kept", "seconds"],
            [
                [way, *measured(cell.size, cell.kl, cell.error, base.kl), f"{cell.seconds:.0f}"]
                for way, cell in sorted(found.items())
            ],
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--smollm2", type=Path)
    parser.add_argument("--bases", nargs="+", default=list(TYPES), choices=list(TYPES))
    parser.add_argument("--ways", nargs="+", help="base, run time, peft, nearest, feedback, budget")
    parser.add_argument("--types", nargs="+", help="instead of each base's own")
    parser.add_argument("--prefix", default="", help="what to start each process with")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--cell", nargs=2, metavar=("BASE", "WAY"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    folder = asked.work / "bases"
    folder.mkdir(parents=True, exist_ok=True)
    if asked.cell:
        cell = Bases(asked.work, asked.smollm2).measure(*asked.cell)
        path = folder / f"{'.'.join(asked.cell).replace(' ', '-')}.json"
        path.with_suffix(".part").write_text(json.dumps(asdict(cell), indent=1))
        path.with_suffix(".part").rename(path)
        return
    for name in () if asked.table else asked.bases:
        for way in asked.ways or ("base", "run time", "nearest", "feedback"):
            whole = way in ("base", "run time", "peft")
            for one in [way] if whole else [f"{kind} {way}" for kind in asked.types or TYPES[name]]:
                if (folder / f"{name}.{one.replace(' ', '-')}.json").exists():
                    continue
                own = [sys.executable, __file__, str(asked.work), "--cell", name, one]
                own += ["--smollm2", str(asked.smollm2)] if asked.smollm2 else []
                done = subprocess.run([*shlex.split(asked.prefix), *own], env=dict(os.environ))
                print(name, one, "done" if done.returncode == 0 else "FAILED", flush=True)
    table([Cell(**json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))])


if __name__ == "__main__":
    main()

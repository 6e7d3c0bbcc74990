"""What rounding with error feedback keeps of a fine-tune, type by type: docs/rounding.md.

    python bench/rounding.py WORK [--smollm2 FOLDER] [--llama-cpp BIN] [--models ...] [--types ...] [--ways ...]
                                  [--prefix "nice -n 19"] [--again WAY] [--table]

Each cell (model, type, way) is a process of its own whose result is kept in WORK/cells, so that a run that was
stopped goes on; --again forgets those of a way, --table only prints. Gradients, the same for every type, are kept for
each model: a cell's seconds are with or without them. The models: `smollm2` (SmolLM2-135M-Instruct, a folder of Hugging
Face's, with the adapter `models/smollm2.shakespeare` of the test data), `off-grid` (the same, noise of a tenth of the
weights' standard deviation added to every matrix of the base first, since the public file lies on a 4-bit grid) and
`llama-kjv`. KL is the divergence from the F16 merge, float activations: held out (shakespeare-valid) and general
(kjv-speeches-valid), the first 12 windows of 256 tokens. The ways:

- `base`: the base alone at F16, what 0 % of the fine-tune is;
- `llama-quantize`: with an importance matrix of the same windows that the others see (NVFP4, MXFP4: by --tensor-type);
- `nearest`: ours, with that importance matrix;
- `feedback`: ours, `merge --calibrate`;
- `budget`: types chosen as `loragraft budget --calibrate` does at the type's size, then rounded with feedback;
- `four-over-six`, `fp8-sweep` (of NVFP4): the block scales of Cook et al. (arXiv:2512.02010), and those of least
  squared error, ModelOpt's sweep; matrices of the F16 merge made what they mean.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from paths import data
from tables import measured, print_table

TYPES = ("Q2_K", "Q3_K_M", "IQ4_XS", "Q4_0", "Q4_K_M", "Q5_K_M", "MXFP4", "NVFP4")
WAYS = ("base", "llama-quantize", "nearest", "feedback")
MODELS = ("smollm2", "off-grid", "llama-kjv")
TEXTS = {"held out": "shakespeare-valid.txt", "general": "kjv-speeches-valid.txt"}
TRAIN = "shakespeare-train.txt"
CONTEXT, WINDOWS, CALIBRATION = 256, 12, 40
#: Types that no mix of llama-quantize makes of a dense model: these tensors, the rest in Q8_0.
MATRICES = r"blk\.\d+\.(attn_q|attn_k|attn_v|attn_output|ffn_gate|ffn_up|ffn_down)\.weight"


@dataclass
class Cell:
    """What was measured. `kl`: text -> mean KL; `error`: its standard error; `seconds`: making the file."""

    model: str
    type: str
    way: str
    size: int
    kl: dict[str, float]
    error: dict[str, float]
    seconds: float
    digest: str
    """Of the tensors: files of the same weights are measured once."""


@dataclass(frozen=True)
class Bench:
    work: Path
    smollm2: Path | None
    llama_cpp: Path | None

    # ---- what the cells stand on ----

    def sources(self, model: str) -> tuple[Path, Path]:
        """Base and adapter."""
        if model == "llama-kjv":
            return data("llama-kjv"), data("llama-kjv.shakespeare")
        if self.smollm2 is None:
            raise SystemExit("name the folder of SmolLM2-135M-Instruct: --smollm2 FOLDER")
        return self.smollm2, data("smollm2.shakespeare")

    def merged(self, model: str) -> Path:
        return self._made(model, "merged.gguf", lambda path: self._merge(model, path))

    def base(self, model: str) -> Path:
        return self._made(model, "base.gguf", lambda path: self._base(model, path))

    def _made(self, model: str, name: str, make: Any) -> Path:
        path: Path = self.work / model / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            make(path)
        return path

    def _base(self, model: str, path: Path) -> None:
        import loragraft as lg

        kind = "F32" if model == "off-grid" else "F16"
        temporary = path.with_suffix(".part.gguf")
        lg.merge(self.sources(model)[0], [], temporary, type=kind)
        if model == "off-grid":
            _add_noise(temporary)
        temporary.rename(path)

    def _merge(self, model: str, path: Path) -> None:
        import loragraft as lg

        lg.merge(self.base(model), [self.sources(model)[1]], path, type="F16")

    def imatrix(self, model: str) -> Path:
        """Of the windows that calibration sees."""

        def make(path: Path) -> None:
            from loragraft.backends.batch import Piece
            from loragraft.inference.calibration import calibration_windows
            from loragraft.inference.model import load
            from loragraft.verbs.imatrix import Collector

            full = load(self.merged(model), activations="f32")
            collector = Collector({}, process_output=False)
            full.program.observer = collector.observe
            windows, _ = calibration_windows(full.source, [data(f"text/{TRAIN}")], CALIBRATION, CONTEXT)
            for window in windows:
                sequence = full.program.open_sequence()
                full.program.run([Piece(sequence, window, wants="all")])
                full.program.close_sequence(sequence)
            collector.result(TRAIN, len(windows), CONTEXT).save_gguf(path)

        return self._made(model, "imatrix.gguf", make)

    def reference(self, model: str, text: str) -> np.ndarray:
        """Log-probabilities of the F16 merge, float32 [windows, scored, vocab]."""

        def make(path: Path) -> None:
            values = np.stack([np.float32(log) for log in self._read(self.merged(model), text)])
            np.save(path, values)

        return np.load(self._made(model, f"{TEXTS[text]}.npy", make), mmap_mode="r")

    def _read(self, file: Path, text: str) -> Iterator[np.ndarray]:
        from loragraft.inference.measurement import Text
        from loragraft.inference.model import load
        from loragraft.inference.perplexity import log_softmax

        found = load(file, activations="f32")
        bos = found.tokenizer.bos if found.tokenizer.add_bos else None
        words = Text(found.tokenizer.encode(data(f"text/{TEXTS[text]}").read_text()), CONTEXT, bos, WINDOWS)
        for window in words:
            yield log_softmax(window.read_by(found))

    # ---- one cell ----

    def keep_gradients(self, model: str) -> None:
        """Gradients, which take the most time and are the same for every type, are measured once for each model."""
        from loragraft.streaming.output_gradients import Gradients, OutputGradients

        folder, measured = self.work / model / "gradients", Gradients.measure

        def measure(self: Gradients, *arguments: Any) -> None:
            if not (folder / "squares.pickle").exists():
                measured(self, *arguments)
                folder.mkdir(exist_ok=True)
                for (name, part), places in self._moments.items():
                    for number, place in enumerate(places):
                        np.save(folder / f"{name}.{part}.{number}.npy", self._file.read(place))
                kept = {key: len(places) for key, places in self._moments.items()}
                values = (self._squares, self._means, self.embedding, kept)
                (folder / "squares.pickle").write_bytes(pickle.dumps(values))
            values = pickle.loads((folder / "squares.pickle").read_bytes())
            self._squares, self._means, self.embedding, kept = values
            self._moments = kept

        def of(self: Gradients, name: str) -> OutputGradients | None:
            if name not in self._squares:
                return None
            count: Any = self._moments.get((name, "outputs"), 0)
            moments = tuple(np.load(folder / f"{name}.outputs.{number}.npy") for number in range(count))
            return OutputGradients(self._squares[name], self._means[name], moments)

        def mixed(self: Gradients, name: str) -> np.ndarray | None:
            return np.load(folder / f"{name}.mixed.0.npy") if (name, "mixed") in self._moments else None

        Gradients.measure, Gradients.of, Gradients.mixed = measure, of, mixed  # type: ignore[method-assign]

    def measure(self, model: str, kind: str, way: str) -> Cell:
        from loragraft.evaluate.divergence import kl
        from loragraft.evaluate.uncertainty import mean
        from loragraft.formats.gguf.model import open_gguf

        self.keep_gradients(model)
        began, out = time.perf_counter(), self.work / model / f"{kind}.{way}.gguf"
        file = self.base(model) if way == "base" else self.make(model, kind, way, out)
        seconds, digest = time.perf_counter() - began, _digest(file)
        for cell in cells_in(self.work):
            if (cell.model, cell.digest) == (model, digest):
                out.unlink(missing_ok=True)
                return replace(cell, type=kind, way=way, seconds=seconds)
        found = {}
        for text in TEXTS:
            rows = zip(self.reference(model, text), self._read(file, text), strict=True)
            found[text] = mean(np.stack([kl(np.float64(one), other) for one, other in rows]))
        size = sum(t.n_rows * t.row_bytes for t in open_gguf(file).tensors.values())
        out.unlink(missing_ok=True)
        means = {text: value.value for text, value in found.items()}
        errors = {text: value.error for text, value in found.items()}
        return Cell(model, kind, way, size, means, errors, seconds, digest)

    def make(self, model: str, kind: str, way: str, out: Path) -> Path:
        import loragraft as lg

        rules: dict[str, Any] = {"tensor_types": [(MATRICES, "MXFP4")]} if kind == "MXFP4" else {}
        mix = "Q8_0" if kind == "MXFP4" else kind
        if way == "llama-quantize":
            command: list[object] = [self._tool("llama-quantize"), "--imatrix", self.imatrix(model)]
            if kind in ("MXFP4", "NVFP4"):
                command += ["--tensor-type", f"{MATRICES}={kind.lower()}"]
                mix = "Q8_0"
            command += [self.merged(model), out, mix]
            subprocess.run(list(map(str, command)), check=True, capture_output=True)
        elif way == "nearest":
            options = lg.QuantizeOptions(imatrix=self.imatrix(model), **rules)
            lg.quantize(self.merged(model), out, mix, options=options)
        elif way == "feedback":
            options = lg.QuantizeOptions(
                calibrate=[data(f"text/{TRAIN}")], calibrate_windows=CALIBRATION, **rules
            )
            lg.merge(self.base(model), [self.sources(model)[1]], out, type=mix, options=options)
        elif way == "budget":
            calibrate = {"calibrate": [data(f"text/{TRAIN}")], "calibrate_windows": CALIBRATION}
            types = self.budget_types(model, mix, calibrate)
            options = lg.QuantizeOptions(tensor_types=types, **calibrate)
            lg.merge(self.base(model), [self.sources(model)[1]], out, type=mix, options=options)
        elif way in NVFP4_RULES and kind == "NVFP4":
            self._as_nvfp4(model, out, NVFP4_RULES[way])
        else:
            raise SystemExit(f"no such way: {way}")
        return out

    def budget_types(self, model: str, mix: str, calibrate: dict[str, Any]) -> list[tuple[str, str]]:
        """As `verbs.budget` chooses them; the costs, which are the same for every size, are kept."""
        import loragraft as lg
        from loragraft.evaluate.tensor_costs import calibrated_tensor_costs, possible_types
        from loragraft.inference.model import load
        from loragraft.quants.allocation import Choice, allocate
        from loragraft.quants.filetypes import file_type
        from loragraft.quants.types import BY_NAME
        from loragraft.streaming.plan import plan_quantize
        from loragraft.verbs import budget

        full, options = load(self.merged(model)), lg.QuantizeOptions(**calibrate)
        plan = plan_quantize(full.source, file_type(mix), options)
        steps = [step for step in plan.steps if step.type.is_quantized]

        def make(path: Path) -> None:
            types = possible_types(steps, [BY_NAME[name] for name in budget.TYPES])
            found = calibrated_tensor_costs(full.source, steps, types, options=options, threads=2)
            rows = {
                name: [(choice.type.name, choice.size, choice.cost) for choice in cost.choices]
                for name, cost in found.items()
            }
            path.write_text(json.dumps(rows))

        rows = json.loads(self._made(model, "costs.json", make).read_text())
        choices = {
            name: [Choice(BY_NAME[kind], size, cost) for kind, size, cost in own]
            for name, own in rows.items()
        }
        chosen = allocate(choices, sum(step.nbytes for step in steps))
        print(f"expected: {sum(choice.cost for choice in chosen.values()):.5f}", flush=True)
        return [(f"^{name}$".replace(".", r"\."), choice.type.name) for name, choice in chosen.items()]

    def _as_nvfp4(self, model: str, out: Path, rule: Any) -> None:
        from loragraft.formats.gguf.model import open_gguf
        from loragraft.quants.nvfp4 import tensor_scale

        shutil.copy(self.merged(model), out)
        file = np.memmap(out, np.uint8, "r+")
        for name, tensor in open_gguf(self.merged(model)).tensors.items():
            if re.fullmatch(MATRICES, name):
                size = tensor.n_rows * tensor.row_bytes
                half = file[tensor.offset : tensor.offset + size].view("<f2").reshape(tensor.shape)
                weights = half.astype(np.float32)
                half[:] = rule(weights, tensor_scale(float(np.abs(weights).max())))
        file.flush()

    def _tool(self, name: str) -> Path:
        if self.llama_cpp is None:
            raise SystemExit("name the folder of llama.cpp's programs: --llama-cpp BIN")
        return self.llama_cpp / name


def _fp8_sweep(x: np.ndarray, scale: float) -> np.ndarray:
    from loragraft.quants import native
    from loragraft.quants.nvfp4 import dequantize_nvfp4

    return dequantize_nvfp4(native.quantize_nvfp4(x, scale), scale)


def _four_over_six(x: np.ndarray, scale: float) -> np.ndarray:
    import nvfp4

    return np.asarray(nvfp4.RULES["four over six"](x, scale))


NVFP4_RULES = {"four-over-six": _four_over_six, "fp8-sweep": _fp8_sweep}
ALL_WAYS = (*WAYS[1:], "budget", *NVFP4_RULES)


def _digest(file: Path) -> str:
    from loragraft.formats.gguf.model import open_gguf

    digest = hashlib.sha256()
    for name, tensor in sorted(open_gguf(file).tensors.items()):
        digest.update(f"{name} {tensor.type} {tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor.rows(0, tensor.n_rows)))
    return digest.hexdigest()


def cells_in(work: Path) -> list[Cell]:
    return [Cell(**json.loads(path.read_text())) for path in sorted((work / "cells").glob("*.json"))]


def _add_noise(path: Path) -> None:
    """Add a tenth of the standard deviation to each matrix of the blocks of an F32 file, seeded by its name."""
    from zlib import crc32

    from loragraft.formats.gguf.model import open_gguf

    model = open_gguf(path)
    places = {}
    whole = np.memmap(path, np.uint8, "r")
    for name, tensor in model.tensors.items():
        if name.startswith("blk.") and len(tensor.shape) == 2:
            rows = tensor.rows(0, tensor.n_rows)
            places[name] = _offset(whole, np.ascontiguousarray(rows).reshape(-1), tensor)
    del whole, model
    file = np.memmap(path, np.uint8, "r+")
    for name, (start, size) in places.items():
        weights = file[start : start + size].view("<f4")
        noise = np.random.default_rng(crc32(name.encode())).standard_normal(len(weights), np.float32)
        weights += np.float32(0.1) * weights.std() * noise
    file.flush()


def _offset(whole: np.ndarray, rows: np.ndarray, tensor: Any) -> tuple[int, int]:
    start = tensor.offset
    assert np.array_equal(whole[start : start + len(rows)], rows)
    return start, len(rows)


def table(cells: list[Cell], models: list[str], types: list[str]) -> None:
    """One row per model and type: KL held out (and on general text), and the share kept."""
    found = {(cell.model, cell.type, cell.way): cell for cell in cells}
    for model in models:
        base = found.get((model, "F16", "base"))
        if base is None:
            continue
        whole, rows = base.kl["held out"], []
        for kind in types:
            ways = [found[model, kind, way] for way in ALL_WAYS if (model, kind, way) in found]
            peers = [cell.kl["held out"] for cell in ways if cell.way in ("llama-quantize", "nearest")]
            for cell in ways:
                kl = cell.kl["held out"]
                rows.append(
                    [
                        *(kind, cell.way),
                        *measured(cell.size, kl, cell.error["held out"], whole),
                        f"{cell.kl['general']:.5f}",
                        f"{kl / min(peers, default=float('nan')):.3f}",
                        f"{cell.seconds:.0f}",
                    ]
                )
        print_table(
            f"{model}: the base alone is at {whole:.5f} (general: {base.kl['general']:.5f})",
            ["type", "way", "MB", "KL", "% kept", "general", "of llama-quantize's KL", "seconds"],
            rows,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--smollm2", type=Path)
    parser.add_argument("--llama-cpp", type=Path)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--types", nargs="+", default=TYPES)
    parser.add_argument("--ways", nargs="+", default=WAYS)
    parser.add_argument("--prefix", default="", help="what to start each cell's process with")
    parser.add_argument("--again", nargs="+", default=[], metavar="WAY")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--cell", nargs=3, metavar=("MODEL", "TYPE", "WAY"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    bench, folder = Bench(asked.work, asked.smollm2, asked.llama_cpp), asked.work / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    if asked.cell:
        cell = bench.measure(*asked.cell)
        path = folder / f"{'.'.join(asked.cell)}.json"
        path.with_suffix(".part").write_text(json.dumps(asdict(cell), indent=1))
        path.with_suffix(".part").rename(path)
        return
    wanted = [
        (model, kind, way)
        for model in asked.models
        for way in asked.ways
        for kind in (["F16"] if way == "base" else asked.types)
    ]
    for cell in wanted if not asked.table else ():
        path = folder / f"{'.'.join(cell)}.json"
        if cell[2] in asked.again:
            path.unlink(missing_ok=True)
        if not path.exists():
            own = [sys.executable, __file__, *_given(asked), "--cell", *cell]
            done = subprocess.run([*shlex.split(asked.prefix), *own], env=dict(os.environ))
            print(" ".join(cell), "done" if done.returncode == 0 else "FAILED", flush=True)
    table(cells_in(asked.work), list(asked.models), list(asked.types))


def _given(asked: argparse.Namespace) -> list[str]:
    given = [str(asked.work)]
    for name in ("smollm2", "llama_cpp"):
        if getattr(asked, name) is not None:
            given += [f"--{name.replace('_', '-')}", str(getattr(asked, name))]
    return given


if __name__ == "__main__":
    main()

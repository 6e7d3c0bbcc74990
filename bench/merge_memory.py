"""Memory of a one-pass merge: 500 M random weights in a Hugging Face folder plus a LoRA on every linear, to Q4_K_M.

    python bench/merge_memory.py [--type Q4_K_M] [--layers N] [--threads N] [--folder DIR]

Prints the merge's peak resident memory, the part of it that is not pages of mapped files (the system may take those
back at any time), what it wrote in all, and where. Exits with 1 if the peak above the mapped files is over 400 MB, or
if anything but the target was written.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

import child
from loragraft.formats.safetensors import SafetensorsSpec, SafetensorsWriter

LIMIT = 400e6
WIDTH, FFN, KV_WIDTH, RANK = 2048, 8192, 512, 16
EXAMPLE = Path(__file__).resolve().parent.parent / "examples"

LINEARS = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (KV_WIDTH, WIDTH),
    "self_attn.v_proj": (KV_WIDTH, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (FFN, WIDTH),
    "mlp.up_proj": (FFN, WIDTH),
    "mlp.down_proj": (WIDTH, FFN),
}


def write(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str, scale: float, seed: int) -> None:
    """Random tensors as `dtype`, F16 or F32."""
    rng = np.random.default_rng(seed)
    kind = np.dtype({"F16": np.float16, "F32": np.float32}[dtype])
    specs = [SafetensorsSpec(name, dtype, shape) for name, shape in shapes.items()]
    with SafetensorsWriter(path, specs) as writer:
        for name, shape in shapes.items():
            count, at_once = int(np.prod(shape)), 1 << 22
            for start in range(0, count, at_once):
                values = rng.standard_normal(min(at_once, count - start), dtype=np.float32)
                writer.write(name, start * kind.itemsize, (values * np.float32(scale)).astype(kind))


def make_base(folder: Path, layers: int, vocabulary: int | None = None) -> int:
    """A Llama in shards, one a layer; the number of its weights. `vocabulary`: None for the example's own."""
    config = json.loads((EXAMPLE / "llama-kjv/config.json").read_text())
    config |= {"hidden_size": WIDTH, "intermediate_size": FFN, "num_hidden_layers": layers}
    config |= {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64}
    config["vocab_size"] = vocabulary or config["vocab_size"]
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EXAMPLE / "llama-kjv" / name, folder)
    shards: list[dict[str, tuple[int, ...]]] = [
        {
            "model.embed_tokens.weight": (config["vocab_size"], WIDTH),
            "lm_head.weight": (config["vocab_size"], WIDTH),
            "model.norm.weight": (WIDTH,),
        }
    ]
    for i in range(layers):
        prefix = f"model.layers.{i}"
        shapes: dict[str, tuple[int, ...]] = {f"{prefix}.{n}.weight": s for n, s in LINEARS.items()}
        norms = ("input_layernorm", "post_attention_layernorm")
        shards.append(shapes | {f"{prefix}.{norm}.weight": (WIDTH,) for norm in norms})
    where = {}
    for number, shapes in enumerate(shards):
        name = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        write(folder / name, shapes, "F16", 0.02, number)
        where |= dict.fromkeys(shapes, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return sum(int(np.prod(shape)) for shapes in shards for shape in shapes.values())


def make_adapter(folder: Path, layers: int) -> None:
    config = json.loads((EXAMPLE / "llama-kjv.shakespeare/adapter_config.json").read_text())
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config | {"r": RANK, "lora_alpha": 2 * RANK}))
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(layers):
        for name, (rows, columns) in LINEARS.items():
            module = f"base_model.model.model.layers.{i}.{name}"
            shapes[f"{module}.lora_A.weight"] = (RANK, columns)
            shapes[f"{module}.lora_B.weight"] = (rows, RANK)
    write(folder / "adapter_model.safetensors", shapes, "F32", 0.02, 99)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--type", default="Q4_K_M")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, default=None, help="where the files are made, and removed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        base, adapter, scratch, target = (folder / name for name in ("base", "adapter", "scratch", "target"))
        weights = make_base(base, arguments.layers)
        make_adapter(adapter, arguments.layers)
        scratch.mkdir()
        target.mkdir()
        out = target / "merged.gguf"
        words = ["merge", str(base), "--lora", str(adapter), "-o", str(out), "--type", arguments.type]
        command = [sys.executable, "-m", "loragraft", *words, "--threads", arguments.threads]
        run = child.run(command, {"TMPDIR": str(scratch)})
        size = out.stat().st_size
        left = sorted(path.name for path in (*target.iterdir(), *scratch.iterdir()))
        print(
            f"{weights / 1e6:.0f} M weights to {arguments.type} in {run.seconds:.1f} s, {arguments.threads} threads"
        )
        print(
            f"peak resident {run.peak / 1e6:.0f} MB, of it not mapped files {run.peak_private / 1e6:.0f} MB"
        )
        print(f"written {run.written / 1e6:.1f} MB in all, the target has {size / 1e6:.1f} MB; files: {left}")
        # The journal of a run that may be continued, and what is printed, come to less than a thousandth.
        if run.peak_private > LIMIT or left != [out.name] or run.written > 1.001 * size + 1e5:
            raise SystemExit("over the limit")


if __name__ == "__main__":
    main()

"""Folders and files as trainers, downloads and people leave them: what each is, and what must come of it.

Every member is made from the plain adapter of `data/intake/02-language-model-prefix` (alpha 8, rank 4, on llama-kjv) or
from llama-kjv itself. docs/intake.md lists them all.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from intake_folders import (
    LFS,
    PAGE,
    WEIGHTS,
    adapter,
    archive,
    as_type,
    bare,
    cache,
    changed_json,
    config_above,
    cut,
    files,
    gguf_adapter,
    gguf_folder,
    half_of_a_download,
    latest,
    llama_factory,
    missing_shard,
    mlx,
    model,
    named,
    one_with_a_link,
    other_file,
    prefixed,
    tensors,
    torchtune,
    two_in_one,
    weights_alone,
)


@dataclass(frozen=True)
class Member:
    """`make` leaves it in an empty folder, and gives the path that the user names: with --lora, or as the model if
    `as_model`. `says`: parts of what is printed; `scale`: what the plain adapter's delta is multiplied by where it is
    taken, None where it is refused."""

    what: str
    make: Callable[[Path], Path]
    says: tuple[str, ...] = ()
    scale: float | None = None
    as_model: bool = False
    options: tuple[str, ...] = ()
    atol: float = 2e-6


TINKER = "base_model.model.model.unembed_tokens.lora_{}.weight"
HEAD, TABLE = "base_model.model.lm_head.weight", "base_model.model.model.embed_tokens.weight"
GATHER = ("gather them: ",)
AGAIN = ("take it again",)
RANK = ("bad r: ", "write the r of the training into")
ALPHA = ("bad lora_alpha: ", "write the lora_alpha of the training into")

MEMBERS = [
    # ---- files that are not what their names say ----
    Member(
        "Git LFS pointer for the adapter's weights",
        lambda p: files(adapter(p), adapter_model__safetensors=LFS),
        ("is a pointer of Git LFS, not the file itself", "lfs pull"),
    ),
    Member(
        "Git LFS pointer for adapter_model.bin",
        lambda p: files(adapter(p), adapter_model__bin=LFS) and named(p, "x", "."),
        ("is a pointer of Git LFS", "lfs pull"),
        options=("--allow-pickle",),
    ),
    Member(
        "Git LFS pointer for adapter_config.json",
        lambda p: files(adapter(p), adapter_config__json=LFS),
        ("adapter_config.json: is a pointer of Git LFS", "lfs pull"),
    ),
    Member(
        "Git LFS pointer for the base's weights",
        lambda p: files(model(p), model__safetensors=LFS),
        ("model.safetensors: is a pointer of Git LFS", "lfs pull"),
        as_model=True,
    ),
    Member(
        "Git LFS pointer for tokenizer.json",
        lambda p: files(model(p), tokenizer__json=LFS),
        ("tokenizer.json: is a pointer of Git LFS", "lfs pull"),
        as_model=True,
    ),
    Member(
        "Git LFS pointer for a GGUF",
        lambda p: files(p, m__gguf=LFS) / "m.gguf",
        ("m.gguf: is a pointer of Git LFS", "lfs pull"),
        as_model=True,
    ),
    Member(
        "web page saved as safetensors",
        lambda p: files(adapter(p), adapter_model__safetensors=PAGE),
        ("is a web page, not the file itself", "/resolve/ in place of /blob/"),
    ),
    Member(
        "web page saved as GGUF",
        lambda p: files(p, m__gguf=PAGE) / "m.gguf",
        ("is a web page, not the file itself", "hf download"),
        as_model=True,
    ),
    Member(
        "server's error saved as safetensors",
        lambda p: files(adapter(p), adapter_model__safetensors=b'{"error":"Repository is gated"}'),
        ("is a server's answer that it failed", "Repository is gated", "hf auth login"),
    ),
    Member(
        "safetensors called .bin",
        lambda p: named(p, "adapter_model.bin", "."),
        ("is a safetensors file, whatever its name says", "rename it: mv "),
        options=("--allow-pickle",),
    ),
    Member(
        "GGUF called .safetensors",
        lambda p: gguf_adapter(adapter(p), WEIGHTS),
        ("is a GGUF file, whatever its name says", "rename it"),
    ),
    Member(
        "GGUF adapter without a suffix, as Ollama's blobs are called",
        lambda p: gguf_adapter(p, "sha256-0a1b", named_file=True),
        scale=1,
    ),
    Member("ZIP archive of the folder", lambda p: archive(p, "zip"), ("is a ZIP archive", "unzip ")),
    Member("tar archive of the folder", lambda p: archive(p, "tar.gz"), ("is a gzip archive", "tar -xzf ")),
    Member(
        "checkpoint of torch alone (.pt)",
        lambda p: files(p, adapter__pt=b"\x80\x02}q\x00.") / "adapter.pt",
        ("is a torch checkpoint", "save_pretrained"),
    ),
    # ---- downloads and copies that were cut short ----
    Member("weights cut short", lambda p: cut(p, 9000), ("the file is truncated", *AGAIN)),
    Member(
        "weights cut within the header",
        lambda p: cut(p, 100),
        ("the file is truncated within its header", *AGAIN),
    ),
    Member(
        "weights preallocated, all zeros", lambda p: cut(p, 0), ("the safetensors header is not JSON", *AGAIN)
    ),
    Member(
        "weights of no bytes",
        lambda p: files(adapter(p), adapter_model__safetensors=b""),
        ("the file is empty", *AGAIN),
    ),
    Member(
        "hub's cache whose blob is not there yet",
        half_of_a_download,
        ("is a link to a file that is not there: found ../../blobs/ffff", "run hf download again"),
    ),
    Member(
        "hub's cache without a snapshot",
        lambda p: files(p, **{"models--acme--lora___refs___main": b"0a1b"}) / "models--acme--lora",
        ("is the hub's cache", "hf download"),
    ),
    Member(
        "download into a folder that did not finish",
        lambda p: files(bare(p), __cache___huggingface___download___model__safetensors__0a__incomplete=b"1"),
        ("holds a download that did not finish", "go on with it: hf download"),
        as_model=True,
    ),
    Member(
        "shard that the index names is missing",
        missing_shard,
        ("a shard that the index names is missing: found 1 of 2 files", "copy the whole folder"),
        as_model=True,
    ),
    Member(
        "download of a browser that did not finish",
        lambda p: named(p, f"{WEIGHTS}.crdownload", "."),
        ("holds a download that did not finish", "take it again: hf download"),
    ),
    # ---- folders of trainers ----
    Member("LLaMA-Factory's or TRL's output, the adapter at its top", llama_factory, scale=1),
    Member(
        "LLaMA-Factory's pissa_backup, beside pissa_converted",
        lambda p: adapter(adapter(p / "pissa_converted").parent / "pissa_backup"),
        ("is a copy that LLaMA-Factory makes of a PiSSA adapter", "name that one: ", "pissa_converted"),
    ),
    Member("LLaMA-Factory's pissa_converted", lambda p: adapter(p / "pissa_converted"), scale=1),
    Member("axolotl's output with merged/ in it", lambda p: model(adapter(p) / "merged").parent, scale=1),
    Member("torchtune's epoch, adapter and model together", torchtune, scale=1),
    Member(
        "mlx-lm's adapter beside its numbered checkpoints",
        lambda p: mlx(p, "adapters.safetensors", "0000100_adapters.safetensors"),
        scale=1,
    ),
    Member(
        "mlx-lm's numbered checkpoints alone",
        lambda p: mlx(p, "0000100_adapters.safetensors"),
        ("holds checkpoints of mlx-lm without the last one", "take one of them: cp "),
    ),
    Member(
        "DeepSpeed's folders beside a whole adapter",
        lambda p: files(adapter(p), global_step9___x__pt=b"PK", zero_to_fp32__py=b"x"),
        scale=1,
    ),
    Member(
        "DeepSpeed's shards in checkpoint-N",
        lambda p: files(
            p, **{"checkpoint-5___zero_to_fp32__py": b"x", "checkpoint-5___global_step5___x__pt": b"PK"}
        ),
        ("checkpoint-5: holds DeepSpeed's shards, not gathered", *GATHER),
    ),
    Member(
        "FSDP's shards in checkpoint-N",
        lambda p: files(p, **{"checkpoint-5___pytorch_model_fsdp_0_____0_0__distcp": b"x"}),
        ("checkpoint-5: holds FSDP's shards, not gathered", *GATHER),
    ),
    Member(
        "Lightning's or NeMo's checkpoint",
        lambda p: files(p, last__ckpt=b"PK"),
        ("holds a checkpoint of Lightning or NeMo", "save_pretrained"),
    ),
    Member(
        "adapter of diffusers",
        lambda p: files(p, pytorch_lora_weights__safetensors=b"x"),
        ("holds an adapter of diffusers", "for language models"),
    ),
    Member(
        "several checkpoints and a link `latest`", latest, ("found checkpoint-10, checkpoint-20", "name it: ")
    ),
    Member(
        "one checkpoint and a link to it",
        one_with_a_link,
        ("checkpoint-20/ in it holds the adapter: taken",),
        scale=1,
    ),
    Member(
        "configuration at the top, weights in checkpoint-N", config_above, ("put it beside its weights: cp ",)
    ),
    Member(
        "checkpoint-N whose configuration is at the top",
        lambda p: config_above(p) / "checkpoint-5",
        (
            "holds an adapter's weights without adapter_config.json",
            "copy it from where the adapter was trained: cp ",
        ),
    ),
    Member(
        "weights named as a file, their configuration missing",
        weights_alone,
        ("holds an adapter's weights without adapter_config.json",),
    ),
    Member(
        "another safetensors file beside an adapter, named",
        other_file,
        ("style.safetensors: is not a part of the PEFT adapter", "name "),
    ),
    Member(
        "hub's cache of several repositories",
        lambda p: cache(p, "a--b", "c--d"),
        ("is the hub's cache of several repositories: found models--a--b, models--c--d", "name it: "),
    ),
    Member(
        "snapshots/ of the hub's cache",
        lambda p: cache(p, "a--b") / "models--a--b" / "snapshots",
        ("0a1b/ in it holds the adapter: taken",),
        scale=1,
    ),
    # ---- folders that hold GGUFs, and other formats ----
    Member(
        "folder with one GGUF",
        lambda p: gguf_folder(p, "m.gguf"),
        ("m.gguf in it is the model: taken",),
        scale=0,
        as_model=True,
    ),
    Member(
        "folder with config.json and a GGUF",
        lambda p: gguf_folder(p, "m.gguf", config=True),
        ("m.gguf in it is the model: taken",),
        scale=0,
        as_model=True,
    ),
    Member(
        "folder with several GGUFs",
        lambda p: gguf_folder(p, "a.gguf", "b.gguf"),
        ("holds several models: found a.gguf, b.gguf", "name it: "),
        as_model=True,
    ),
    Member(
        "folder with a GGUF adapter",
        lambda p: gguf_adapter(p, "lora.gguf"),
        ("lora.gguf in it is the adapter: taken",),
        scale=1,
    ),
    Member(
        "folder with a GGUF model, as adapter",
        lambda p: gguf_folder(p, "m.gguf"),
        ("holds a model, not an adapter", "loragraft merge "),
    ),
    Member(
        "weights of Flax alone",
        lambda p: files(bare(p), flax_model__msgpack=b"x"),
        ("holds a model of Flax", "hf download"),
        as_model=True,
    ),
    Member(
        "weights of TensorFlow alone",
        lambda p: files(bare(p), tf_model__h5=b"x"),
        ("holds a model of TensorFlow", "hf download"),
        as_model=True,
    ),
    Member(
        "ONNX alone",
        lambda p: files(bare(p), onnx___model__onnx=b"x"),
        ("holds a model for another runtime", "hf download"),
        as_model=True,
    ),
    # ---- names of tensors ----
    *(
        Member(f"names under `{prefix}`", prefixed(prefix), scale=1)
        for prefix in ("_forward_module.", "pretrained_model.", "policy.", "module.module.", "student.model.")
    ),
    Member(
        "`_fsdp_wrapped_module` within names",
        lambda p: tensors(
            p, lambda name, array: {name.replace(".self_attn", "._fsdp_wrapped_module.self_attn"): array}
        ),
        scale=1,
    ),
    Member(
        "two adapters in one file",
        lambda p: tensors(p, two_in_one),
        ("is there a second time", "save each one to its own folder"),
    ),
    Member(
        "Tinker's output, `unembed_tokens`, untrained",
        lambda p: tensors(
            p,
            lambda name, array: {
                name: array,
                TINKER.format("A"): np.ones((4, 256), "f4"),
                TINKER.format("B"): np.zeros((2048, 4), "f4"),
            },
            target_modules="all-linear",
        ),
        ("1 of its 3 pairs change nothing, as B or A is zero (output.weight)",),
        scale=1,
    ),
    Member(
        "half of a pair",
        lambda p: tensors(p, lambda name, array: {} if "q_proj.lora_B" in name else {name: array}),
        ("has no complete pair", "save the adapter again"),
    ),
    Member(
        "module that the base does not have (`W_pack`)",
        lambda p: tensors(
            p, lambda name, array: {name.replace("q_proj", "W_pack"): array}, target_modules=None
        ),
        (
            "adapts model.layers.0.self_attn.W_pack, but the base model has no such tensor",
            "loragraft inspect ",
        ),
    ),
    Member(
        "layer that the base does not have",
        lambda p: tensors(
            p,
            lambda name, array: {name.replace("layers.0", "layers.30"): array},
            base_model_name_or_path="acme/Big-9B",
        ),
        (
            "adapts model.layers.30.mlp.down_proj",
            "it was trained on acme/Big-9B, as it says: loragraft merge acme/Big-9B --lora ",
        ),
    ),
    Member(
        "base_model_name_or_path of another machine",
        lambda p: adapter(p, base_model_name_or_path="/home/alice/Llama-3-8B"),
        ("trained on '/home/alice/Llama-3-8B', the base is 'llama-kjv': are these the same weights?",),
        scale=1,
    ),
    Member(
        "base_model_name_or_path of a quantized copy",
        lambda p: adapter(p, base_model_name_or_path="unsloth/llama-kjv-unsloth-bnb-4bit"),
        scale=1,
    ),
    # ---- types and values ----
    Member("F16 and F32 mixed", as_type(np.float16, np.float32), scale=1, atol=2e-4),
    Member("F64", as_type(np.float64), scale=1),
    Member(
        "integers", as_type(np.int8), ("has a dtype that adapters do not use: found I8", "save_pretrained")
    ),
    Member(
        "NaN",
        lambda p: tensors(p, lambda name, array: {name: np.full_like(array, np.nan)}),
        ("holds NaN or infinity", "take an earlier checkpoint"),
    ),
    Member(
        "resized output alone",
        lambda p: tensors(p, lambda name, array: {name: array, HEAD: np.ones((2056, 256), "f2")}),
        (
            "found 2048 rows in the embedding, 2056 in the output",
            "modules_to_save=['embed_tokens', 'lm_head']",
        ),
    ),
    Member(
        "resized vocabulary without its tokenizer",
        lambda p: tensors(
            p,
            lambda name, array: {
                name: array,
                HEAD: np.ones((2056, 256), "f2"),
                TABLE: np.ones((2056, 256), "f2"),
            },
        ),
        ("was trained with another vocabulary", "tokenizer.save_pretrained"),
    ),
    # ---- adapter_config.json ----
    Member(
        "invocation_string of aLoRAs before PEFT had them",
        lambda p: adapter(p, invocation_string="<|judge|>"),
        (
            "invocation_string is not supported",
            "loragraft tokenize BASE -p TEXT --parse-special --no-add-special",
        ),
    ),
    Member(
        "layers_to_transform that the tensors are not of",
        lambda p: adapter(p, layers_to_transform=[1]),
        (
            "peft would change nothing",
            "layers_to_transform [1]",
            "correct target_modules and layers_to_transform in ",
        ),
    ),
    Member(
        "use_dora without magnitudes",
        lambda p: adapter(p, use_dora=True),
        ("use_dora of adapter_config.json disagrees with its tensors", "set use_dora there to false"),
    ),
    Member(
        "target_modules of another kind",
        lambda p: adapter(p, target_modules={"a": 1}),
        ("bad target_modules", "write the target_modules of the training into "),
    ),
    Member(
        "exclude_modules that were trained all the same",
        lambda p: adapter(p, exclude_modules=["nothing"]),
        ("covers 2 of the 8 modules",),
        scale=1,
    ),
    Member(
        "target_modules as an expression",
        lambda p: adapter(p, target_modules=r".*\.(q_proj|down_proj)"),
        ("covers 2 of the 8 modules",),
        scale=1,
    ),
    Member(
        "target_modules `all-linear`",
        lambda p: adapter(p, target_modules="all-linear"),
        ("covers 2 of the 28 modules",),
        scale=1,
    ),
    Member(
        "target_modules that is not an expression",
        lambda p: adapter(p, target_modules="(q_proj"),
        ("target_modules is not checked against the tensors",),
        scale=1,
    ),
    Member("no target_modules", lambda p: adapter(p, target_modules=None), scale=1),
    Member("r 0", lambda p: adapter(p, r=0), RANK),
    Member("r as text", lambda p: adapter(p, r="4"), RANK),
    Member("no r", lambda p: adapter(p, r=...), RANK),
    Member(
        "r that the tensors do not have",
        lambda p: adapter(p, r=8),
        ("the rank of model.layers.0.mlp.down_proj is not the one that", "to 4; the scale is lora_alpha / r"),
    ),
    Member(
        "rank_pattern that the tensors do not have",
        lambda p: adapter(p, rank_pattern={"q_proj": 2}),
        ("the rank of model.layers.0.self_attn.q_proj", "to 4; "),
    ),
    Member("lora_alpha 0", lambda p: adapter(p, lora_alpha=0), ALPHA),
    Member("no lora_alpha", lambda p: adapter(p, lora_alpha=...), ALPHA),
    Member("negative lora_alpha", lambda p: adapter(p, lora_alpha=-8), scale=-1),
    Member(
        "use_rslora with rank_pattern and alpha_pattern",
        lambda p: adapter(
            p,
            use_rslora=True,
            lora_alpha=2,
            r=16,
            rank_pattern={"down_proj": 4, "q_proj": 4},
            alpha_pattern={".*_proj": 4},
        ),
        scale=1,
    ),
    Member(
        "layer_replication",
        lambda p: adapter(p, layer_replication=[[0, 2], [1, 3]]),
        ("layer_replication is not supported: it repeats layers of the base", "merge_and_unload"),
    ),
    Member(
        "key that nobody knows",
        lambda p: adapter(p, use_magic=True),
        ("use_magic is not supported", "merge_and_unload"),
    ),
    Member(
        "keys of unsloth and of newer PEFTs, unset",
        lambda p: adapter(p, auto_mapping={"unsloth_fixed": True}, arrow_config=None, use_bdlora=None),
        scale=1,
    ),
    Member(
        "method in small letters",
        lambda p: adapter(p, peft_type="lora"),
        ("a method that is not supported, lora", '"peft_type": "LORA"'),
    ),
    Member(
        "no method",
        lambda p: adapter(p, peft_type=...),
        ("does not say what method of peft it is", '"peft_type": "LORA"'),
    ),
    Member(
        "prompt tuning",
        lambda p: adapter(p, peft_type="PROMPT_TUNING"),
        ("not supported, PROMPT_TUNING", "run it with transformers and peft"),
    ),
    Member(
        "byte order mark before the JSON", lambda p: changed_json(p, lambda text: "\ufeff" + text), scale=1
    ),
    Member(
        "comma too many in the JSON",
        lambda p: changed_json(p, lambda text: text.rstrip()[:-1] + ",}"),
        ("the file is not JSON", "Take it again"),
    ),
    Member("no JSON at all", lambda p: changed_json(p, lambda text: ""), ("the file is empty", *AGAIN)),
    Member(
        "base of unsloth, with its keys in config.json",
        lambda p: model(p, unsloth_version="2026.1", unsloth_fixed=True),
        scale=0,
        as_model=True,
    ),
    Member(
        "base whose config.json names no model_type",
        lambda p: model(p, model_type=..., architectures=...),
        ("does not say what architecture it is", "take config.json from"),
        as_model=True,
    ),
    Member(
        "base without a tokenizer",
        lambda p: (model(p), os.remove(p / "tokenizer.json"))[0],
        ("no tokenizer.json", "save_pretrained"),
        as_model=True,
    ),
]

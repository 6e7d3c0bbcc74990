"""What is recorded of the small models of `hf_configs`: errors, and where llama.cpp's logits are others.

`golden/hf-measured.json` has by case the normalised squared errors that `docs/make_architectures.py` measured, and
`inputs`, a digest of the model and the adapter that they were measured on.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Any

import numpy as np

from hf_configs import ADAPTED, PEFT_STEP, STEP, logits, records
from paths import data
from tolerances import nmse

#: Why llama.cpp computes other logits than transformers of the cases that begin so, or does not load them.
DIFFERS: dict[str, tuple[str, ...]] = {
    "it has no windows there": (
        "mistral-window",
        "phi3-window",
        "mixtral-window",
        "ministral",
        "qwen2-window",
        "qwen2-window-above",
        "qwen2-layer-types",
        "qwen2moe-window",
        "qwen3-window",
        "qwen3moe-window",
        "starcoder2-window",
    ),
    "it has EXAONE 4's windows in models of 64 layers only": ("exaone4",),
    "it computes with the architecture's usual activation": (
        "llama-gelu",
        "mixtral-quick-gelu",
        "bitnet-online",
    ),
    "it has no output of its own there, and does not load the file": ("bitnet", "bitnet-bias"),
    "it has no place for these biases, and does not load the file": (
        "arcee-bias",
        "bamba-bias",
        "deepseek2-bias",
        "ernie-bias",
        "falcon_h1-bias",
        "gemma3-bias",
        "hunyuan-bias",
        "lfm2-bias",
        "llama4-dense-between",
        "mamba2-bias",
        "nemotron_h-bias",
        "olmo2-bias",
        "qwen3-bias",
        "qwen3moe-bias",
        "seed_oss-biases",
        "smollm3-bias",
    ),
    "it does not load StarCoder2 without biases": ("starcoder2-no-bias",),
    "it has no `rope_freqs` there, and does not load the file": ("qwen2-llama3", "nemotron-llama3"),
    "it wants experts in every layer, and does not load the file": (
        "qwen2moe-step",
        "qwen3moe-dense",
        "qwen3_next-dense",
        "nemotron_h_moe-dense-between",
    ),
    "it normalises the experts' weights the other way": ("qwen2moe-norm", "qwen3moe-no-norm"),
    "it computes with the usual scale of attention": ("gemma2", "gemma3-scale", "mpt-six"),
    "it cuts YaRN's ramp to whole pairs": ("gpt_oss",),
    "it wants as many key-value heads as heads, and does not load the file": (
        "olmoe",
        "olmoe-norm",
        "dots1",
        "dots1-groups",
    ),
    "its shared experts are as wide as `intermediate_size` divided by the key-value heads": (
        "ernie-experts",
        "ernie-experts-bias",
    ),
    "it wants heads that together are as wide as the model": ("glm-wide",),
    "it wants the bias of the experts' choice, and does not load the file": ("lfm2_moe-plain",),
    "its dense feed-forward is as wide as `intermediate_size`": (
        "granitehybrid-dense",
        "granitehybrid-rope",
        "granite4",
        "granite4-no-rope",
    ),
    "its keys and values of the delta net have one size": ("qwen3_5-types", "qwen3_next-types"),
    "it takes a query in one matrix only of models with 26, 27 or 48 layers": (
        "deepseek2-lite",
        "deepseek3-yarn-ratio",
    ),
    "its context is at least 256 tokens, so that it takes the factors of long texts": ("phi3-short",),
    "its GELU makes 2e-6 with an embedding for each layer": (
        "gemma4-per-layer",
        "gemma4-shared",
    ),
    "it has Gemma 3n's sizes as they were published, and does not load the file": (
        "gemma3n",
        "gemma3n-plain",
        "gemma3n-three",
    ),
    "its weights of experts are of one softmax over all": ("phimoe", "phimoe-short"),
    "it wants an output of its own, with a bias, and does not load the file": ("phimoe-plain",),
    "it judges a group of experts by its best two": ("deepseek2-groups",),
    "it has Llama 4's chunks, temperature and layers without RoPE as they were published": (
        "llama4",
        "llama4-llama3",
    ),
    "it turns those pairs by position 0 that no section of M-RoPE names": ("qwen3_vl",),
}


def reason(case: str) -> str | None:
    """Why llama.cpp computes something else of it; None: it computes the same."""
    return next((why for why, cases in DIFFERS.items() if case in cases), None)


@cache
def measured() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(data("golden/hf-measured.json").read_text())
    return found


@cache
def peft_records() -> dict[str, dict[str, Any]]:
    """PEFT's adapters by case."""
    files = [json.loads(data(f"golden/{name}.json").read_text()) for name in ADAPTED.values()]
    return {case: record for file in files for case, record in file.items()}


@cache
def _models() -> dict[str, dict[str, Any]]:
    return records()


def inputs(case: str) -> str:
    """A digest of what the errors of a case depend on."""
    said = json.dumps([_models()[case], peft_records().get(case)], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


@cache
def exports() -> dict[str, dict[str, Any]]:
    """By case, as `make_hf_export.py` says."""
    found: dict[str, dict[str, Any]] = json.loads(data("golden/hf-export.json").read_text())
    return found


@cache
def llama_cpp() -> dict[str, dict[str, Any]]:
    """By case: `digest` of the file, and `refused` or `error`, of llama.cpp's logits against those of transformers."""
    found: dict[str, dict[str, Any]] = json.loads(data("golden/hf-llama-cpp.json").read_text())
    theirs, golden = np.load(data("golden/hf-llama-cpp.npz")), logits()
    for case in theirs.files:
        found[case]["error"] = nmse(theirs[case], golden[case][:: PEFT_STEP // STEP])
    return found

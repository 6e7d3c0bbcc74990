"""Which adapters the tests run and merge, by how PEFT made them; docs/adapters.md is made of it."""

from __future__ import annotations

import json
from typing import Any

from paths import data
from tolerances import REFERENCE, REFERENCE_F16_MERGE

#: Every method of PEFT, and whether its own merge_and_unload takes it (make_peft_methods.py).
RECORDED: dict[str, dict[str, Any]] = json.loads(data("golden/peft-methods.json").read_text())

#: The error of every case against PEFT's logits, as measured by docs/make_adapters.py: merged, and at run time.
FIGURES: dict[str, dict[str, float]] = json.loads(data("golden/peft-figures.json").read_text())

#: What an adapter of PEFT's LoRA may be, and cases of it in golden/peft-adapters.npz or peft-methods.npz.
LORA_KINDS = {
    "LoRA, of the output too": ["llama+mica", "qwen2+head"],
    "LoRA of the embedding": ["llama+embedding", "qwen2+embedding", "qwen2+embedding-tied"],
    "`lora_bias`, `bias`": ["qwen2+lora-bias", "qwen2+biases", "qwen2+biases-lora-only"],
    "DoRA, also rank-stabilised": ["llama+dora", "llama+dora-rslora", "qwen2+dora"],
    "OLoRA": ["llama+olora"],
    "`modules_to_save`": [
        "llama+saved",
        "llama+saved-layer",
        "qwen2+saved-embedding",
        "qwen2+saved-head",
        "qwen2+saved-tied",
    ],
    "a resized vocabulary": ["llama+resized", "llama+resized-alone", "qwen2+resized", "qwen2+resized-alone"],
    "`trainable_token_indices`": [
        "llama+tokens",
        "llama+tokens-both",
        "llama+resized-tokens",
        "qwen2+tokens",
        "qwen2+tokens-head",
        "qwen2+tokens-both",
        "qwen2+tokens-differ",
        "qwen2+resized-tokens",
    ],
}
LORA = [case for cases in LORA_KINDS.values() for case in cases]

#: Of peft-methods.npz: what runs beside a base, and is merged.
KINDS = {
    "LORA": {
        "PiSSA": ["llama+pissa-again"],
        "modules that target_modules does not name": ["llama+more-than-named"],
    },
    "ADALORA": {"": ["llama+adalora"], "after pruning": ["qwen2+adalora-pruned"]},
    "IA3": {"": ["llama+ia3", "qwen2+ia3"], "with saved modules": ["llama+ia3-saved"]},
    "LOHA": {"": ["llama+loha"], "patterns": ["qwen2+loha-pattern"]},
    "LOKR": {"": ["llama+lokr", "llama+lokr-both", "qwen2+lokr-full"]},
    "LN_TUNING": {"": ["llama+lntuning"]},
    "TRAINABLE_TOKENS": {"": ["qwen2+tokens-alone"]},
    "VERA": {"": ["llama+vera"], "projections not saved": ["qwen2+vera-not-saved"]},
}
#: What is merged, but does not run beside a base.
MERGED_KINDS = {
    "OFT": {
        "": ["llama+oft"],
        "exact Cayley": ["qwen2+oft-cayley"],
        "shared, constrained": ["llama+oft-shared"],
    },
    "BOFT": {"one factor": ["llama+boft", "qwen2+boft-num"]},
    "HRA": {"": ["llama+hra"], "Gram-Schmidt": ["qwen2+hra-gs"]},
    "IA3": {"factors of the inputs of attention": ["llama+ia3-columns"]},
}


def _all(kinds: dict[str, dict[str, list[str]]]) -> list[str]:
    return [case for variants in kinds.values() for cases in variants.values() for case in cases]


RUN, MERGED_ALONE = _all(KINDS), _all(MERGED_KINDS)
TAKEN = KINDS.keys() | MERGED_KINDS.keys()


def as_measured(case: str, how: str, error: float) -> bool:
    """Whether the error is the one that docs/adapters.md shows, or no more than ten times that, on another machine."""
    return error <= 10 * FIGURES[case][how]


def tolerance(case: str) -> float:
    """How far logits may be from PEFT's, as NMSE."""
    if "tokens" in case:  # rows take the type of the base, F16; the oracle's base was F32
        return REFERENCE_F16_MERGE
    if "pissa" in case:  # PEFT's singular vectors are float32's
        return 1e-10
    return REFERENCE

"""Adapters of Tinker (Thinking Machines): PEFT's names, but for the output and for experts.

`unembed_tokens` is the output. Experts are stacked by projection: A [E, r, in] and B [E, out, r] of `experts.w1`
(gate), `w3` (up) and `w2` (down), with a single matrix for the half that all experts share. Attention of gpt-oss is
`attn`. What a model lacks is there without elements: w3 where nothing gates, and w1 is `up_proj` then. (Facts:
tinker_cookbook's own conversion, weights/_adapter.py and _merge_*.py.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from loragraft.adapters.methods.method import ModuleDelta
from loragraft.arrays import Floats
from loragraft.errors import AdapterError

_OUTPUT = re.compile(r"(?:.*\.)?unembed_tokens")
_STACK = re.compile(r"(?P<experts>.+\.experts)\.(?P<projection>w[123])")
_PROJECTIONS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_UNGATED = {"w1": "up_proj", "w2": "down_proj"}
_ATTENTION = re.compile(r"(\.layers\.\d+)\.attn\.")

#: Of one layer. A stack of more would cost more memory than its bytes.
_MAX_EXPERTS = 4096

MERGE = (
    "merge it with tinker_cookbook, then convert that: weights.build_hf_model(base_model=BASE, adapter_path=ADAPTER, "
    "output_path=OUT), and: loragraft convert OUT -o merged.gguf"
)


def made_by_tinker(parts: Mapping[str, Mapping[str, Floats]]) -> bool:
    """Whether the modules of an adapter have names that Tinker alone gives."""
    return any(
        _OUTPUT.fullmatch(module)
        or (_STACK.fullmatch(module) and any(half.ndim == 3 for half in own.values()))
        for module, own in parts.items()
    )


def plain_parts(parts: Mapping[str, dict[str, Floats]]) -> dict[str, dict[str, Floats]]:
    """What is not a stack of experts, by PEFT's names."""
    return {_renamed(module): own for module, own in parts.items() if not _STACK.fullmatch(module)}


def _renamed(module: str) -> str:
    return "lm_head" if _OUTPUT.fullmatch(module) else _ATTENTION.sub(r"\1.self_attn.", module)


def expert_deltas(file: Path, parts: Mapping[str, Mapping[str, Floats]]) -> Iterator[ModuleDelta]:
    """The pair of each expert. Raises AdapterError for halves that do not fit each other."""
    for module, own in parts.items():
        match = _STACK.fullmatch(module)
        if match is None:
            continue
        if _empty(own):
            continue
        a, b = own.get("lora_A"), own.get("lora_B")
        if a is None or b is None or own.keys() != {"lora_A", "lora_B"} or not _fit(a, b):
            raise AdapterError(
                file,
                f"the pairs of {module} do not fit together",
                found=", ".join(f"{kind} {half.shape}" for kind, half in sorted(own.items())),
                expected=f"lora_A (experts, r, in) and lora_B (experts, out, r), at most {_MAX_EXPERTS} experts",
            )
        experts, names = match["experts"], _PROJECTIONS
        if _empty(parts.get(f"{experts}.w3", {"": a})) and match["projection"] in _UNGATED:
            names = _UNGATED
        projection = names[match["projection"]]
        for expert in range(max(a.shape[0], b.shape[0])):
            yield ModuleDelta(
                f"{experts}.{expert}.{projection}",
                a[expert if a.shape[0] > 1 else 0],
                b[expert if b.shape[0] > 1 else 0],
                parts=("A", "B") if expert == 0 else (),
            )


def _empty(halves: Mapping[str, Floats]) -> bool:
    return all(half.size == 0 for half in halves.values())


def _fit(a: Floats, b: Floats) -> bool:
    if not a.ndim == b.ndim == 3 or 0 in a.shape + b.shape or a.shape[1] != b.shape[2]:
        return False
    counts = {a.shape[0], b.shape[0]} - {1}
    return len(counts) == 1 and max(counts) <= _MAX_EXPERTS


def check_output(path: Path, *, tied: bool) -> None:
    """Raises AdapterError for an output that is the base's embedding too: what Tinker trains there is not known."""
    if tied:
        raise AdapterError(
            path,
            "adapts unembed_tokens, and the base's output is its embedding",
            expected="a base with an output of its own: Tinker does not say whether the embedding changes too",
            hint=MERGE,
        )

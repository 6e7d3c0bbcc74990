"""What configurations of several families have in common, and edits of a config.json."""

from __future__ import annotations

from typing import Any

from hf_configs import VOCABULARY, Edit

Cases = dict[str, tuple[str, dict[str, Any], Edit | None]]
"""By case: the class of transformers, its keys, and what is changed of the config.json that it writes."""
BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
MIXTRAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
ABSENT = "absent"
"""For a key of BASE that the class does not have."""


def rope(kind: str, **keys: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0} | keys}


def without(*keys: str) -> Edit:
    """Leaves them out of config.json, as old files do."""

    def edit(config: dict[str, Any]) -> None:
        for key in keys:
            config.pop(key, None)
            config.get("rope_parameters", {}).pop(key, None)

    return edit


def named(key: str, value: object) -> Edit:
    """Under a name of published files, which transformers writes no more."""
    return lambda config: config.update({key: value})

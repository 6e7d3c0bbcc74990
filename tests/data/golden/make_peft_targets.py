"""Records peft-targets.json: which modules PEFT 0.21.2 takes a configuration to name.

python make_peft_targets.py        (in an environment with peft)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists

PARTS = ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj", "mlp.experts.3.up_proj", "input_layernorm"]
STEMS = ["model.layers", "model.language_model.layers"]
MODULES = [f"{stem}.{layer}.{part}" for stem in STEMS for layer in (0, 1, 11) for part in PARTS]
MODULES += [
    "model.embed_tokens",
    "lm_head",
    "model.norm",
    "transformer.h.1.attn.c_attn",
    "vision.blocks.1.q_proj",
]
CONFIGS: list[dict[str, Any]] = [
    {"target_modules": ["q_proj"]},
    {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
    {"target_modules": ["q_proj"], "layers_to_transform": 11, "layers_pattern": "layers"},
    {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1], "layers_pattern": ["blocks", "h"]},
    {"target_modules": ["up_proj"], "layers_to_transform": [0, 11]},
    {"target_modules": ["self_attn.q_proj", "lm_head"]},
    {"target_modules": ["proj"]},
    {"target_modules": ["model.layers.0.self_attn.q_proj"]},
    {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]},
    {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*\.11\..*"},
    {"target_modules": ["q_proj", "lm_head", "embed_tokens"], "modules_to_save": ["lm_head", "self_attn"]},
    {"target_modules": r".*\.(q|v)_proj"},
    {"target_modules": r"model\.layers\.\d+\.self_attn\.q_proj"},
    {"target_modules": r".*language_model.*\.(?:q_proj|down_proj)$"},
    {"target_modules": r"q_proj"},
    {
        "target_modules": r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp).*?(?:q_proj|down_proj).*?)|"
        r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|v_proj)))"
    },
]


def main() -> None:
    rows = []
    for config in CONFIGS:
        made = LoraConfig(**config)
        named = [module for module in MODULES if bool(check_target_module_exists(made, module)) is True]
        rows.append({"config": config, "names": named})
    path = Path(__file__).parent / "peft-targets.json"
    path.write_text(json.dumps({"modules": MODULES, "configs": rows}, indent=0))


if __name__ == "__main__":
    main()

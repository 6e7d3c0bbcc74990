"""Records converter-rows.json: what llama.cpp's converters do to the rows of tensors, by architecture and name.

    PYTHONPATH=llama.cpp python make_converter_rows.py        (torch; llama.cpp at 0c1e57098)

Each converter is given a tensor whose element says its row, and what comes out is written down: GGUF's name, and the
rows, or nothing where they are those that went in; `shift` is what was added to the values.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path
from typing import Any

import conversion
import gguf
import torch

HEADS, KV_HEADS, HEAD_DIM, WIDTH, FF = 4, 2, 8, 32, 48
HPARAMS = {
    "num_attention_heads": HEADS,
    "n_head": HEADS,
    "n_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "num_kv_heads": KV_HEADS,
    "n_head_kv": KV_HEADS,
    "hidden_size": WIDTH,
    "n_embed": WIDTH,
    "n_embd": WIDTH,
    "head_dim": HEAD_DIM,
    "intermediate_size": FF,
    "num_hidden_layers": 2,
}
Q, KV = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
LLAMA = {
    "model.layers.1.self_attn.q_proj": Q,
    "model.layers.1.self_attn.k_proj": KV,
    "model.layers.1.self_attn.v_proj": KV,
    "model.layers.1.self_attn.o_proj": WIDTH,
    "model.layers.1.mlp.gate_proj": FF,
    "model.layers.1.mlp.up_proj": FF,
    "model.layers.1.mlp.down_proj": WIDTH,
    "model.layers.1.input_layernorm": None,
    "model.norm": None,
    "lm_head": WIDTH,
}
PHI = {
    "model.layers.1.self_attn.qkv_proj": Q + 2 * KV,
    "model.layers.1.self_attn.o_proj": WIDTH,
    "model.layers.1.mlp.gate_up_proj": 2 * FF,
    "model.layers.1.mlp.down_proj": WIDTH,
}
APERTUS = {name: rows for name, rows in LLAMA.items() if not name.endswith(("gate_proj", "input_layernorm"))}
GLM4 = {
    **{name: rows for name, rows in LLAMA.items() if not name.endswith(("gate_proj", "up_proj"))},
    "model.layers.1.mlp.gate_up_proj": 2 * FF,
}
#: The converter's class, and modules with their rows (None: a norm). Where keys and queries have as many heads: MHA.
MODELS: dict[str, tuple[dict[str, int | None], bool]] = {
    **dict.fromkeys(
        """
        ArceeModel CommandR2Model Cohere2Model DeciModel DreamModel Exaone4Model GemmaModel Gemma2Model
        Gemma3Model GraniteModel HunYuanModel LLaDAModel LlamaModel MiniCPMModel NemotronModel OlmoModel
        Olmo2Model OrionModel Qwen2Model Qwen2VLModel Qwen3Model Qwen3VLTextModel SeedOssModel SmolLM3Model
        StableLMModel XverseModel
        """.split(),  # noqa: SIM905
        (LLAMA, False),
    ),
    "Phi3MiniModel": (PHI, False),
    "Glm4Model": (GLM4, False),
    "ApertusModel": (APERTUS, False),
    "BaichuanModel": (
        {"model.layers.1.self_attn.W_pack": 3 * Q, "model.layers.1.self_attn.o_proj": WIDTH},
        True,
    ),
    "InternLM2Model": (
        {
            "model.layers.1.attention.wqkv": Q + 2 * KV,
            "model.layers.1.attention.wo": WIDTH,
            "model.layers.1.feed_forward.w1": FF,
            "model.layers.1.feed_forward.w2": WIDTH,
            "model.layers.1.feed_forward.w3": FF,
        },
        False,
    ),
    "FalconModel": (
        {
            "transformer.h.1.self_attention.query_key_value": Q + 2 * KV,
            "transformer.h.1.self_attention.dense": WIDTH,
            "transformer.h.1.mlp.dense_h_to_4h": FF,
            "transformer.h.1.mlp.dense_4h_to_h": WIDTH,
        },
        False,
    ),
    "GPTNeoXModel": (
        {
            "gpt_neox.layers.1.attention.query_key_value": 3 * Q,
            "gpt_neox.layers.1.attention.dense": WIDTH,
            "gpt_neox.layers.1.mlp.dense_h_to_4h": FF,
            "gpt_neox.layers.1.mlp.dense_4h_to_h": WIDTH,
            "embed_out": WIDTH,
        },
        True,
    ),
    "BloomModel": (
        {
            "transformer.h.1.self_attention.query_key_value": 3 * Q,
            "transformer.h.1.self_attention.dense": WIDTH,
            "transformer.h.1.mlp.dense_h_to_4h": FF,
            "transformer.h.1.mlp.dense_4h_to_h": WIDTH,
        },
        True,
    ),
    "MPTModel": (
        {
            "transformer.blocks.1.attn.Wqkv": 3 * Q,
            "transformer.blocks.1.attn.out_proj": WIDTH,
            "transformer.blocks.1.ffn.up_proj": FF,
            "transformer.blocks.1.ffn.down_proj": WIDTH,
        },
        True,
    ),
    "StarCoderModel": (
        {
            "transformer.h.1.attn.c_attn": Q + 2 * KV,
            "transformer.h.1.attn.c_proj": WIDTH,
            "transformer.h.1.mlp.c_fc": FF,
            "transformer.h.1.mlp.c_proj": WIDTH,
        },
        False,
    ),
    "Phi2Model": (
        {
            "model.layers.1.self_attn.q_proj": Q,
            "model.layers.1.self_attn.k_proj": Q,
            "model.layers.1.self_attn.v_proj": Q,
            "model.layers.1.self_attn.dense": WIDTH,
            "model.layers.1.mlp.fc1": FF,
            "model.layers.1.mlp.fc2": WIDTH,
        },
        True,
    ),
    "ExaoneModel": (
        {
            "transformer.h.1.attn.attention.q_proj": Q,
            "transformer.h.1.attn.attention.k_proj": KV,
            "transformer.h.1.attn.attention.v_proj": KV,
            "transformer.h.1.attn.attention.out_proj": WIDTH,
            "transformer.h.1.mlp.c_fc_0": FF,
            "transformer.h.1.mlp.c_fc_1": FF,
            "transformer.h.1.mlp.c_proj": WIDTH,
        },
        False,
    ),
}


def converter(name: str) -> Any:
    for module in pkgutil.iter_modules(conversion.__path__):
        found = getattr(importlib.import_module(f"conversion.{module.name}"), name.strip(), None)
        if found is not None and found.__module__ == f"conversion.{module.name}":
            return found
    raise LookupError(name)


def made(kind: Any, mha: bool) -> Any:
    model = object.__new__(kind)
    model.hparams = {
        **HPARAMS,
        **({key: HEADS for key in HPARAMS if "kv" in key or "key_value" in key} if mha else {}),
    }
    model.block_count, model.use_mrope, model._n_head, model._n_kv_head = 2, False, HEADS, KV_HEADS
    model._num_heads, model._num_kv_heads = [HEADS] * 2, [KV_HEADS] * 2
    model.tensor_map = gguf.get_tensor_name_map(kind.model_arch, 2)
    model.hf_arch, model.undo_permute = "", getattr(kind, "undo_permute", False)
    model.dir_model, model.fuse_gate_up_exps, model.fuse_qkv = Path(), False, False
    return model


def rows(model: Any, module: str, count: int | None) -> list[dict[str, Any]]:
    numbers = torch.arange(count or 0, dtype=torch.float32)[:, None].repeat(1, WIDTH)
    tensor = torch.zeros(WIDTH) if count is None else numbers
    out = []
    for name, data in model.modify_tensors(tensor, f"{module}.weight", 1 if ".1." in module else None):
        fact: dict[str, Any] = {"gguf": name}
        if count is None:
            fact["shift"] = float(data[0])
        elif data[:, 0].tolist() != list(range(count)):
            fact["rows"] = [int(row) for row in data[:, 0].tolist()]
        out.append(fact)
    return out


def main() -> None:
    table = {}
    for name, (modules, mha) in MODELS.items():
        kind = converter(name)
        arch = gguf.MODEL_ARCH_NAMES[kind.model_arch]
        own = table.setdefault(arch, {"heads": HEADS, "kv_heads": HEADS if mha else KV_HEADS, "modules": {}})
        for module, count in modules.items():
            try:
                own["modules"][module] = {"size": count, "becomes": rows(made(kind, mha), module, count)}
            except Exception as problem:
                print(name, module, repr(problem)[:100])
    path = Path(__file__).parent / "converter-rows.json"
    path.write_text(json.dumps(table, separators=(",", ":")))


if __name__ == "__main__":
    main()

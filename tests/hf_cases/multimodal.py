"""Multimodal models, for the language model inside."""

from __future__ import annotations

from hf_cases.common import BASE, EXPERTS, Cases, rope
from hf_cases.gemma import GEMMA3

PICTURES = {
    "depth": 2,
    "hidden_size": 16,
    "num_heads": 2,
    "intermediate_size": 16,
    "out_hidden_size": 32,
    "patch_size": 4,
}
CLIP = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
#: Tokens of the vocabulary that stand for pictures; none is in the text.
QWEN_IMAGES = {
    "image_token_id": 0,
    "video_token_id": 0,
    "vision_start_token_id": 1,
    "vision_end_token_id": 1,
}
CASES: Cases = {
    "qwen2_vl": (
        "Qwen2VL",
        {
            "text_config": {**BASE, **rope("default", mrope_section=[2, 1, 1])},
            "vision_config": {**PICTURES, "embed_dim": 16, "hidden_size": 32},
            **QWEN_IMAGES,
        },
        None,
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VL",
        {
            "text_config": {
                **BASE,
                **rope("default", mrope_section=[2, 1, 1]),
                "tie_word_embeddings": True,
            },
            "vision_config": {**PICTURES, "fullatt_block_indexes": [1]},
            **QWEN_IMAGES,
        },
        None,
    ),
    "qwen3_vl": (
        "Qwen3VL",
        {
            "text_config": {**BASE, "head_dim": 16, **rope("default", mrope_section=[4, 2, 2])},
            "vision_config": {
                **PICTURES,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
            },
            **QWEN_IMAGES,
        },
        None,
    ),
    "qwen3_vl-sections": (
        "Qwen3VL",
        {
            "text_config": {**BASE, "head_dim": 16, **rope("default", mrope_section=[3, 3, 2])},
            "vision_config": {
                **PICTURES,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
            },
            **QWEN_IMAGES,
        },
        None,
    ),
    "qwen3_vl_moe": (
        "Qwen3VLMoe",
        {
            "text_config": {**BASE, **EXPERTS, "head_dim": 16, **rope("default", mrope_section=[3, 3, 2])},
            "vision_config": {
                **PICTURES,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
            },
            **QWEN_IMAGES,
        },
        None,
    ),
    "gemma3_vl": (
        "Gemma3",
        {
            "text_config": {**BASE, **GEMMA3, "num_hidden_layers": 3},
            "vision_config": CLIP,
            "image_token_index": 0,
            "boi_token_index": 1,
            "eoi_token_index": 1,
            "mm_tokens_per_image": 4,
        },
        None,
    ),
    "llava": (
        "Llava",
        {
            "text_config": {**BASE, "model_type": "llama"},
            "vision_config": {**CLIP, "model_type": "clip_vision_model"},
            "image_token_index": 0,
        },
        None,
    ),
    "mistral3": (
        "Mistral3",
        {
            "text_config": {**BASE, "model_type": "mistral", "head_dim": 16, "sliding_window": None},
            "vision_config": {**CLIP, "model_type": "pixtral", "head_dim": 8},
            "image_token_index": 0,
        },
        None,
    ),
    "internvl": (
        "InternVL",
        {
            "text_config": {**BASE, "model_type": "qwen2"},
            "vision_config": {**CLIP, "image_size": [16, 16], "patch_size": [4, 4]},
            "image_token_id": 0,
            "image_seq_length": 4,
        },
        None,
    ),
    "idefics3": (
        "Idefics3",
        {
            "text_config": {**BASE, "model_type": "llama", "pad_token_id": None},
            "vision_config": CLIP,
            "image_token_id": 0,
            "pad_token_id": None,
        },
        None,
    ),
}

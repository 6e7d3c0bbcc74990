"""What llama.cpp's converter makes of small models of each architecture: names, order, shapes, bytes, metadata."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import loragraft as lg
from hf_configs import as_published, converted, kind, records, weights, write_tokenizer
from loragraft.formats.gguf.model import open_gguf
from loragraft.huggingface.intake import Intake

GOLDEN = converted()
#: Written beside the converter's: what llama.cpp assumes otherwise than transformers computes.
OURS = {
    "bitnet-online": {"hidden_activation"},
    "gemma2": {"attention.scale"},
    "gemma4-per-layer": {"final_logit_softcapping"},
    "gemma4-shared": {"final_logit_softcapping"},
    "gemma4-experts": {"final_logit_softcapping"},
    "olmoe-norm": {"expert_weights_norm"},
    "falcon_h1": {
        *(
            "embedding_multiplier",
            "lm_head_multiplier",
            "attention_in_multiplier",
            "attention_out_multiplier",
        ),
        *("key_multiplier", "ssm_in_multiplier", "ssm_out_multiplier", "mlp_multipliers", "ssm_multipliers"),
    },
    "minimax_m2": {"expert_gating_func"},
    "mpt-six": {"attention.scale"},
    "llama4": {"attention.sliding_window"},
    "llama4-dense-between": {
        "attention.sliding_window",
        "attention.sliding_window_pattern",
        "attention.temperature_scale",
        "attention.use_qk_norm",
    },
    "llama4-llama3": {
        "attention.sliding_window",
        "attention.temperature_scale",
        "attention.temperature_length",
    },
    "dots1": {"expert_gating_func"},
    "dots1-groups": {"expert_gating_func"},
    "dots1-all-heads": {"expert_gating_func"},
    "deepseek3": {"expert_gating_func"},
    "deepseek3-yarn": {"expert_gating_func"},
    "deepseek3-yarn-ratio": {"expert_gating_func", "rope.scaling.attn_factor"},
    "glm4_moe_lite": {"expert_gating_func"},
    "glm4_moe_lite-groups": {"expert_gating_func"},
}
#: Written otherwise: the converter has 1e-5 for every GLM, and does not read GLM-4.7's list of layers.
OTHER = {
    "phimoe-short": {"rope.scaling.attn_factor"},
    "glm": {"attention.layer_norm_rms_epsilon"},
    "glm4_moe_lite": {"leading_dense_block_count"},
    "glm4_moe_lite-groups": {"leading_dense_block_count"},
}


def without_ones(shape: list[int]) -> list[int]:
    """Without leading axes of one: ggml does not count them, and neither do files of llama-quantize have them."""
    return shape[1:] if len(shape) > 1 and shape[0] == 1 else shape


@pytest.mark.parametrize("case", GOLDEN)
def test_the_file_is_that_of_the_reference_converter(tmp_path: Path, case: str) -> None:
    record, folder = records()[case], tmp_path / "m"
    folder.mkdir()
    model_type = kind(record["config"])
    save_file(as_published(weights(record["shapes"], model_type), model_type), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(record["config"]))
    write_tokenizer(folder)
    lg.convert(folder, tmp_path / "m.gguf", type="F32", intake=Intake(text_only=True))
    model = open_gguf(tmp_path / "m.gguf")
    tensors = [[name, list(tensor.shape)] for name, tensor in model.tensors.items()]
    assert tensors == [[name, without_ones(shape)] for name, shape, _ in GOLDEN[case]["tensors"]]
    for name, _, found in GOLDEN[case]["tensors"]:
        rows = model.tensors[name].rows(0, model.tensors[name].n_rows)
        if isinstance(found, str):
            assert hashlib.sha256(bytes(rows)).hexdigest()[:16] == found, name
        else:  # decays, by torch's exponential
            np.testing.assert_array_max_ulp(rows.view("<f4").reshape(-1), np.float32(found), 1)
    prefix = f"{model.metadata['general.architecture'].data}."
    keys = {
        key.removeprefix(prefix): value.data
        for key, value in model.metadata.items()
        if key.startswith(prefix)
    }
    mine = {key: value for key, value in keys.items() if key not in OURS.get(case, ())}
    assert keys.keys() - mine.keys() == OURS.get(case, set())
    assert list(mine) == list(GOLDEN[case]["keys"])
    for key, value in GOLDEN[case].get("global", {}).items():
        np.testing.assert_array_equal(model.metadata[key].data, np.asarray(value, np.float32), err_msg=key)
    for key, value in GOLDEN[case]["keys"].items():
        if key in OTHER.get(case, ()):
            assert mine[key] != value
            continue
        np.testing.assert_array_equal(np.asarray(mine[key]), np.asarray(value), err_msg=key)


def test_every_recorded_case_is_one_of_the_models() -> None:
    assert len(GOLDEN) >= 28
    assert GOLDEN.keys() <= records().keys()

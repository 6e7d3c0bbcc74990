"""config.json on the way back from GGUF: it means the same, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import loragraft as lg
from archs.test_hf_configs import TEXT_ONLY, write
from hf_configs import digest, kind, records
from loragraft.archs import ARCHS
from loragraft.archs.config import Config
from loragraft.errors import UnsupportedError
from loragraft.formats.gguf.model import open_gguf
from loragraft.formats.gguf.values import Value, ValueType
from loragraft.formats.source import ModelSource
from loragraft.huggingface.config_json import config_of
from loragraft.huggingface.hyperparameters import hyperparameters


def shapes_of(model: ModelSource) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in model.tensors.items()}


def rope_freqs_of(model: ModelSource) -> np.ndarray | None:
    freqs = model.tensors.get("rope_freqs.weight")
    return None if freqs is None else freqs.rows(0, 1).view("<f4")[0]


#: Of which a GGUF does not hold what config.json said.
ONE_WAY = {
    "llama-llama3",
    "llama4-llama3",
    "qwen2-llama3",
    "nemotron-llama3",
    "phi3-short",
    "phimoe-short",
    "phi3-long",
    "hunyuan-alpha",
    "falcon_h1-tied",
} | {case for case, record in records().items() if "text_config" in record["config"]}


@pytest.mark.parametrize("case", sorted(records().keys() - ONE_WAY))
def test_an_exported_configuration_means_the_same(tmp_path: Path, case: str) -> None:
    """Its hyperparameters are those of the GGUF that it was made of."""
    lg.convert(write(tmp_path / "m", case), tmp_path / "m.gguf", type="F16")
    model = lg.load(tmp_path / "m.gguf", backend="reference").source
    config = config_of(model.metadata, shapes_of(model), rope_freqs_of(model))
    arch, model_type = ARCHS.by_model_type(kind(config), values=config)
    again = hyperparameters(arch, model_type, Config(Path("config.json"), config, model_type.defaults), 1)
    ours = {key: value.data for key, value in model.metadata.items() if key.startswith(f"{arch.name}.")}
    theirs = {key: value.data for key, value in again.items() if key.startswith(f"{arch.name}.")}
    implied = (
        "attention.key_length",
        "attention.value_length",
        "expert_gating_func",
        "rope.scaling.yarn_attn_factor",
    )
    assert theirs.keys() - ours.keys() <= {f"{arch.name}.{key}" for key in implied}
    for key, value in ours.items():
        if isinstance(value, str):
            assert theirs[key] == value
        else:
            np.testing.assert_allclose(theirs[key], value, rtol=1e-6, err_msg=key)
    biased = {name.split(".")[-2] for name in model.tensors if name.endswith(".bias") and "norm" not in name}
    biased -= {"exp_probs_b", "ssm_dt", "ssm_conv1d"}  # no linears
    flags = {key for key in model_type.biases if not key or config[key]}
    there = {name.split(".")[-2] for name in model.tensors if name.endswith(".weight")}
    assert biased == {linear for key in flags for linear in model_type.biases[key]} & there


#: By case, what its class of transformers (5.23) takes for a `rope_parameters` that is null or not there.
SILENT_ROPES: dict[str, dict[str, Any]] = {
    "gpt_oss": {
        "rope_type": "yarn",
        "rope_theta": 150000.0,
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
    "apertus": {
        "rope_type": "llama3",
        "rope_theta": 12000000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "ministral3": {
        "type": "yarn",
        "rope_theta": 1000000.0,
        "factor": 16.0,
        "original_max_position_embeddings": 16384,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale_all_dim": 1.0,
        "mscale": 1.0,
        "llama_4_scaling_beta": 0.1,
    },
}


@pytest.mark.parametrize("case", SILENT_ROPES)
def test_what_a_silent_configuration_means(tmp_path: Path, case: str) -> None:
    """Classes that scale RoPE where config.json does not say how; and the way back says that there is no scaling."""

    def converted(name: str, rope: dict[str, Any] | None) -> Any:
        def edit(config: dict[str, Any], tensors: dict[str, Any]) -> None:
            config.update(rope_parameters=rope, max_position_embeddings=524288)
            config.pop("rope_scaling", None)
            config.pop("rope_theta", None)

        lg.convert(write(tmp_path / name, case, edit), tmp_path / f"{name}.gguf", type="F16")
        return open_gguf(tmp_path / f"{name}.gguf")

    silent, said = converted("silent", None), converted("said", SILENT_ROPES[case])
    assert digest(silent.metadata, silent.tensors) == digest(said.metadata, said.tensors)
    if case == "ministral3":
        return  # it takes no other
    plain = converted("plain", {"rope_type": "default", "rope_theta": 10000.0})
    assert digest(silent.metadata, silent.tensors) != digest(plain.metadata, plain.tensors)
    shapes = {name: tensor.shape for name, tensor in plain.tensors.items()}
    assert config_of(plain.metadata, shapes, None)["rope_scaling"]["rope_type"] == "default"


@pytest.mark.parametrize("case", ["phi3-short", "phi3-long", "phimoe-short"])
def test_factors_of_long_texts_are_not_exported(tmp_path: Path, case: str) -> None:
    lg.convert(write(tmp_path / "m", case), tmp_path / "m.gguf", type="F16")
    model = lg.load(tmp_path / "m.gguf", backend="reference").source
    with pytest.raises(UnsupportedError, match=r"rope_factors_long.weight: cannot be exported; export from"):
        config_of(model.metadata, shapes_of(model), None)


def test_a_width_of_mamba_that_no_configuration_has(tmp_path: Path) -> None:
    lg.convert(write(tmp_path / "m", "mamba2"), tmp_path / "m.gguf", type="F16")
    model = lg.load(tmp_path / "m.gguf", backend="reference").source
    metadata = {**model.metadata, "mamba2.ssm.inner_size": Value.u32(72)}
    with pytest.raises(
        UnsupportedError, match="inner_size: cannot be exported: found 72, expected a multiple of 32"
    ):
        config_of(metadata, shapes_of(model), None)


def test_what_is_not_exported(tmp_path: Path) -> None:
    lg.convert(write(tmp_path / "m", "qwen2_5_vl"), tmp_path / "m.gguf", type="F16", intake=TEXT_ONLY)
    model = lg.load(tmp_path / "m.gguf", backend="reference").source
    with pytest.raises(UnsupportedError, match=r"cannot be exported.*Hugging Face folder"):
        config_of(model.metadata, shapes_of(model), rope_freqs_of(model))


def test_factors_that_are_not_published_are_not_exported(tmp_path: Path) -> None:
    lg.convert(write(tmp_path / "m", "llama-llama3"), tmp_path / "m.gguf", type="F16")
    model = lg.load(tmp_path / "m.gguf", backend="reference").source
    with pytest.raises(UnsupportedError, match=r"rope_freqs.weight: are not Llama 3's; export from"):
        config_of(model.metadata, shapes_of(model), rope_freqs_of(model))


def test_biases_that_no_configuration_has(tmp_path: Path) -> None:
    lg.convert(write(tmp_path / "m", "qwen2"), tmp_path / "m.gguf", type="F16")
    model = lg.load(tmp_path / "m.gguf", backend="reference").source
    shapes = shapes_of(model) | {"blk.0.ffn_up.bias": (48,)}
    with pytest.raises(UnsupportedError, match=r"blk.0.ffn_up.bias: Qwen2ForCausalLM .* has no such bias"):
        config_of(model.metadata, shapes, None)


def test_windows_that_no_configuration_has(tmp_path: Path) -> None:
    lg.convert(write(tmp_path / "m", "qwen3moe-window"), tmp_path / "m.gguf", type="F16")
    model = lg.load(tmp_path / "m.gguf", backend="reference").source
    pattern = Value.numbers(ValueType.BOOL, [0, 1])
    metadata = {**model.metadata, "qwen3moe.attention.sliding_window_pattern": pattern}
    with pytest.raises(UnsupportedError, match=r"no transformers model .* has these windows: found \[0, 8\]"):
        config_of(metadata, shapes_of(model), None)


def exported(tmp_path: Path, **keys: Value) -> dict[str, Any]:
    """The config.json of the plain Llama with more keys (dots written as __)."""
    tmp_path.mkdir(exist_ok=True)
    lg.convert(write(tmp_path / "m", "llama"), tmp_path / "m.gguf", type="F16")
    model = lg.load(tmp_path / "m.gguf", backend="reference").source
    more = {f"llama.{key.replace('__', '.')}": value for key, value in keys.items()}
    return config_of(model.metadata | more, shapes_of(model), None)


def test_a_scaling_without_its_type_is_linear(tmp_path: Path) -> None:
    """As every reader of GGUF takes it, under its old name too."""
    said = {"rope_type": "linear", "factor": 4.0}
    assert exported(tmp_path / "a", rope__scaling__factor=Value.f32(4.0))["rope_scaling"] == said
    assert exported(tmp_path / "b", rope__scale_linear=Value.f32(4.0))["rope_scaling"] == said
    assert "rope_scaling" not in exported(tmp_path / "c", rope__scaling__factor=Value.f32(1.0))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"rope__dimension_count": Value.u32(4)},
            "llama.rope.dimension_count: cannot be exported: found 4, expected 8",
        ),
        (
            {"rope__scaling__attn_factor": Value.f32(0.5)},
            "llama.rope.scaling.attn_factor: can be exported only .* YaRN",
        ),
        ({"logit_scale": Value.f32(0.5)}, "llama.logit_scale: no graph of llama computes this"),
    ],
)
def test_what_no_configuration_says_is_not_exported(
    tmp_path: Path, keys: dict[str, Value], message: str
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        exported(tmp_path, **keys)


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_dynamic_scaling_ends_where_it_would_begin(
    tmp_path: Path, backend: Literal["reference", "native"]
) -> None:
    """A folder, its GGUF and the folder's configuration made of that GGUF say the same."""
    folder = write(tmp_path / "m", "llama-dynamic")
    lg.convert(folder, tmp_path / "m.gguf", type="F32")
    for path in (folder, tmp_path / "m.gguf"):
        model = lg.load(path, backend=backend, threads=1, activations="f32")
        assert np.isfinite(model.logits(np.full(128, 5))).all()
        with pytest.raises(
            lg.LoragraftError, match=r"past the model's context: found 128, expected up to 127"
        ):
            model.logits(np.full(129, 5))
    said = config_of(model.source.metadata, shapes_of(model.source), None)["rope_scaling"]
    assert said == {"rope_type": "dynamic", "factor": 4.0}

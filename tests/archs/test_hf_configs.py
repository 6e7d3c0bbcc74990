"""config.json to logits, opened as it is and converted, against transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from safetensors.numpy import save_file

import loragraft as lg
from gpu import WITH_DEVICES
from hf_configs import STEP, digest, first_of_each, kind, records, weights, write_tokenizer
from hf_configs import logits as golden_logits
from hf_measured import inputs, llama_cpp, measured
from loragraft.archs import ARCHS
from loragraft.archs.config import Config
from loragraft.errors import UnsupportedError
from loragraft.formats.gguf.model import open_gguf
from loragraft.formats.gguf.values import Value, ValueType
from loragraft.formats.source import ModelSource
from loragraft.huggingface.config_json import config_of
from loragraft.huggingface.hyperparameters import hyperparameters
from loragraft.huggingface.intake import Intake
from tolerances import GPU_F32, NATIVE_F32, REFERENCE, nmse

#: A multimodal model's language model, whatever is around it; nothing to others.
TEXT_ONLY = Intake(text_only=True)
#: How much larger than recorded an error may be on another machine, whose sums have another order.
STALE = 50
BACKENDS: list[tuple[Literal["reference", "native"], float]] = [
    ("reference", REFERENCE),
    ("native", NATIVE_F32),
]


def write(
    folder: Path, case: str, edit: Callable[[dict[str, Any], dict[str, Any]], None] | None = None
) -> Path:
    """The checkpoint of a case, its configuration and tensors changed by `edit`."""
    record = records()[case]
    config = record["config"]
    tensors = dict(weights(record["shapes"], kind(config)))
    if edit is not None:
        edit(config, tensors)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    return folder


@pytest.mark.parametrize("case", records())
def test_logits_are_those_of_transformers(tmp_path: Path, case: str) -> None:
    """And the page's figures are of this model; llama.cpp's recorded logits, of this file."""
    golden = golden_logits()
    folder = write(tmp_path / "m", case)
    lg.convert(folder, tmp_path / "m.gguf", type="F32", intake=TEXT_ONLY)
    file, recorded = open_gguf(tmp_path / "m.gguf"), measured()[case]
    assert digest(file.metadata, file.tensors) == llama_cpp()[case]["digest"], (
        "make_hf_llama_cpp.py records anew"
    )
    assert inputs(case) == recorded["inputs"], "docs/make_architectures.py --measure measures anew"
    for backend, tolerance in BACKENDS:
        for path in (folder, tmp_path / "m.gguf"):
            model = lg.load(
                path,
                backend=backend,
                threads=1,
                activations="f32",
                context=len(golden["ids"]),
                intake=TEXT_ONLY,
            )
            logits = model.logits(golden["ids"])
            error = nmse(logits[::STEP], golden[case])
            assert error < tolerance, (backend, path.name)
            assert error < STALE * recorded[backend]


@pytest.mark.parametrize("device", WITH_DEVICES)
@pytest.mark.parametrize("case", first_of_each())
def test_logits_of_a_gpu(tmp_path: Path, case: str, device: str) -> None:
    golden, folder = golden_logits(), write(tmp_path / "m", case)
    context = len(golden["ids"])
    model = lg.load(folder, device=device, activations="f32", context=context, intake=TEXT_ONLY)
    assert nmse(model.logits(golden["ids"])[::STEP], golden[case]) < GPU_F32


@pytest.mark.parametrize("device", WITH_DEVICES)
@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("case", sorted(records().keys() - set(first_of_each())))
def test_logits_of_a_gpu_for_every_configuration(tmp_path: Path, case: str, device: str) -> None:
    test_logits_of_a_gpu(tmp_path, case, device)


def shapes_of(model: ModelSource) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in model.tensors.items()}


def rope_freqs_of(model: ModelSource) -> np.ndarray | None:
    freqs = model.tensors.get("rope_freqs.weight")
    return None if freqs is None else freqs.rows(0, 1).view("<f4")[0]


def notes_of(folder: Path) -> list[str]:
    """On its config.json."""
    notes = [note.partition(": ") for note in lg.load(folder, backend="reference").notes]
    return [said for subject, _, said in notes if subject == "config.json"]


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("llama", []),
        (
            "llama-unread",
            ["transformers' LlamaForCausalLM does not read attn_logit_softcapping, final_logit_so"],
        ),
        (
            "llama-dynamic",
            ["dynamic RoPE scaling is left out: texts longer than the context of 128 tokens are"],
        ),
        ("llama-gelu", ["hidden_act = 'gelu' is kept, but llama.cpp computes llama with silu"]),
        ("llama4", ["attention_chunk_size kept, but llama.cpp computes with chunks of 8192"]),
        ("phi3-window", ["sliding_window = 8 is kept, but llama.cpp attends to everything in phi3"]),
        (
            "exaone4",
            ["sliding_window = 8 is kept, but llama.cpp attends to everything in exaone4 of other than 64"],
        ),
        ("exaone4-full", []),
        ("gpt_oss", ["YaRN's ramp is not cut to whole pairs, as in transformers; llama.cpp cuts it"]),
        ("gpt_oss-plain", []),
        ("mpt-six", ["attn_config.softmax_scale is kept, but llama.cpp computes mpt"]),
        ("qwen2-llama3", ["Llama 3's RoPE scaling is kept"]),
        ("qwen3moe-dense", ["1 layers have no experts (the first is 1): they are kept, but llama.cpp"]),
        ("llama-yarn-attention-factor", []),
        (
            "llama-yarn-beta",
            ["YaRN's beta_fast = 16, beta_slow = 2 is kept, but llama.cpp computes with 32 and 1"],
        ),
        ("gemma3", []),
        ("gemma3-layer-types", []),
        ("gemma3-scale", ["query_pre_attn_scalar = 40 is kept, but llama.cpp computes with the usual scale"]),
        ("mistral-window", ["sliding_window = 8 is kept, but llama.cpp attends to everything in llama"]),
        ("qwen2-layer-types", ["sliding_window = 8 is kept, but llama.cpp attends to everything in qwen2"]),
        ("qwen2-window-unused", []),
        ("qwen3moe", []),
        (
            "qwen2moe-norm",
            ["norm_topk_prob = True is kept, but llama.cpp computes qwen2moe as if it were False"],
        ),
        ("starcoder2", []),
    ],
)
def test_the_notes_on_a_configuration(tmp_path: Path, case: str, said: list[str]) -> None:
    notes = notes_of(write(tmp_path / "m", case))
    assert [note[: len(start)] for note, start in zip(notes, said, strict=True)] == said


def test_parameters_that_llama_cpp_reads(tmp_path: Path) -> None:
    """transformers' magnitude is 1, for each of the three; YaRN's own is 1 + 0.1 ln 4."""
    lg.convert(write(tmp_path / "m", "llama-yarn-attention-factor"), tmp_path / "m.gguf")
    keys = {key: value.data for key, value in lg.load(tmp_path / "m.gguf").source.metadata.items()}
    assert keys["llama.rope.scaling.yarn_attn_factor"] == 1.0  # as the reference converter
    assert keys["llama.rope.scaling.attn_factor"] == pytest.approx(1 / (1 + 0.1 * np.log(4)), rel=1e-6)
    lg.convert(write(tmp_path / "plain", "llama-yarn"), tmp_path / "plain.gguf")
    assert "llama.rope.scaling.attn_factor" not in lg.load(tmp_path / "plain.gguf").source.metadata


def test_windows_in_the_metadata(tmp_path: Path) -> None:
    lg.convert(write(tmp_path / "m", "qwen2-window-above"), tmp_path / "m.gguf")
    metadata = lg.load(tmp_path / "m.gguf").source.metadata
    assert metadata["qwen2.attention.sliding_window"].data == 8
    assert metadata["qwen2.attention.sliding_window_pattern"].data.tolist() == [0, 1]

    def wide(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        config["sliding_window"] = config["max_position_embeddings"]

    notes = notes_of(write(tmp_path / "wide", "mistral-window", wide))
    lg.convert(tmp_path / "wide", tmp_path / "wide.gguf")
    assert "llama.attention.sliding_window" not in lg.load(tmp_path / "wide.gguf").source.metadata
    assert notes == []


def test_mistral_has_a_window_unless_it_says_null(tmp_path: Path) -> None:
    def silent(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        del config["sliding_window"]
        config["max_position_embeddings"] = 8192

    lg.convert(write(tmp_path / "m", "mistral", silent), tmp_path / "m.gguf")
    assert lg.load(tmp_path / "m.gguf").source.metadata["llama.attention.sliding_window"].data == 4096


REFUSED: dict[str, tuple[str, dict[str, Any], tuple[str, ...], str]] = {
    "yarn without a factor": (
        "llama",
        {"rope_parameters": {"rope_type": "yarn"}},
        (),
        "RoPE scaling yarn without a factor",
    ),
    "linear without a factor": (
        "llama",
        {"rope_scaling": {"type": "linear"}},
        (),
        "RoPE scaling linear without a factor",
    ),
    "linear with a null factor": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": None}},
        (),
        "RoPE scaling linear without a factor",
    ),
    "truncate": (
        "llama",
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": False}},
        (),
        "YaRN whose ramp is not cut to whole pairs.*: found truncate = False",
    ),
    "partial": (
        "qwen2",
        {"partial_rotary_factor": 0.5},
        (),
        "partial rotary embedding, in qwen2: found 0.5",
    ),
    "nested": (
        "qwen3",
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        (),
        "RoPE that differs between layers: found rope_parameters.full_attention",
    ),
    "layers": (
        "llama",
        {"num_hidden_layers": 2**31 - 1},
        (),
        "more layers than any model has: found 2147483647",
    ),
    "factor": ("llama", {"rope_scaling": {"type": "linear", "factor": -1}}, (), "bad factor: found -1"),
    "untied without an output": (
        "llama",
        {},
        ("lm_head.weight",),
        "lacks lm_head.weight: expected it, or tie_word_embeddings in config.json",
    ),
    "biases without their flag": (
        "llama-bias",
        {"mlp_bias": False},
        (),
        r"has blk.0.ffn_\w+.bias, which LlamaForCausalLM would leave out: found mlp_bias = False; if .*, set mlp_bias",
    ),
    "biases without a flag": (
        "llama-bias",
        {"model_type": "mistral"},
        (),
        r"has blk.0.\w+.bias, which MistralForCausalLM would leave out",
    ),
    "a scale of nothing": (
        "gemma3",
        {"query_pre_attn_scalar": 0},
        (),
        "bad query_pre_attn_scalar: found 0.0, expected a number > 0",
    ),
    "a pattern of nothing": (
        "gemma3-old",
        {"sliding_window_pattern": 0},
        (),
        "sliding_window_pattern is missing or zero: found 0",
    ),
    "two ropes of a kind that GGUF has for one": (
        "gemma3",
        {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
        (),
        "RoPE of this kind in layers of sliding attention",
    ),
    "layer types": (
        "qwen2",
        {"layer_types": ["chunked_attention"] * 2},
        (),
        "bad layer_types: found .*chunked",
    ),
    "layer types without a window": (
        "qwen2",
        {"layer_types": ["sliding_attention"] * 2},
        (),
        "layer_types has sliding_attention, but there is no sliding_window",
    ),
    "an activation": (
        "llama",
        {"hidden_act": "mish"},
        (),
        "unknown hidden_act: found 'mish', expected silu or gelu",
    ),
    "layers that attend": ("bamba", {"attn_layer_indices": [7]}, (), r"bad attn_layer_indices: found \[7\]"),
    "heads of Mamba": (
        "mamba2",
        {"num_heads": 4},
        (),
        "is not expand times hidden_size: found 32, expected 64",
    ),
    "layers without experts": ("qwen3moe-dense", {"mlp_only_layers": 1}, (), "bad mlp_only_layers: found 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path: Path, name: str) -> None:
    case, changes, dropped, message = REFUSED[name]

    def edit(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        config.update(changes)
        for tensor in dropped:
            del tensors[tensor]

    with pytest.raises(lg.LoragraftError, match=message) as refusal:
        lg.load(write(tmp_path / "m", case, edit))
    assert "\n" not in str(refusal.value)


def test_an_output_beside_a_tied_embedding(tmp_path: Path) -> None:
    """The note is for one that differs."""

    def own(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + np.float32(1)

    def same(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    [note] = notes_of(write(tmp_path / "own", "llama-tied", own))
    assert note.startswith("tie_word_embeddings is true, but lm_head.weight is not the embedding: it is kept")
    assert notes_of(write(tmp_path / "same", "llama-tied", same)) == []


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


def test_what_is_not_exported(tmp_path: Path) -> None:
    lg.convert(write(tmp_path / "m", "qwen2_5_vl"), tmp_path / "m.gguf", type="F16", intake=TEXT_ONLY)
    model = lg.load(tmp_path / "m.gguf", backend="reference").source
    with pytest.raises(UnsupportedError, match=r"cannot be exported.*Hugging Face folder"):
        config_of(model.metadata, shapes_of(model), rope_freqs_of(model))


def test_numbers_of_each_layer_that_are_missing(tmp_path: Path) -> None:
    def drop(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        del tensors["model.layers.1.mlp.act_fn.beta"]

    with pytest.raises(
        lg.LoragraftError, match=r"m: lacks xielu\.beta of some layers: found \[0\], expected 2"
    ):
        lg.load(write(tmp_path / "m", "apertus", drop))


def test_the_context_chooses_the_factors(tmp_path: Path) -> None:
    """Long ones where the program is for more tokens than the original context (64), as in llama.cpp."""
    golden = golden_logits()
    folder = write(tmp_path / "m", "phi3-short")
    short, long, trained = (
        lg.load(folder, threads=1, activations="f32", context=context).logits(golden["ids"])
        for context in (64, 65, None)
    )
    assert nmse(short[::STEP], golden["phi3-short"]) < NATIVE_F32
    assert nmse(long, short) > 1e-3
    np.testing.assert_array_equal(long, trained)


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


def test_an_embedding_for_each_layer_has_every_token(tmp_path: Path) -> None:
    def shorten(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        name = "model.embed_tokens_per_layer.weight"
        tensors[name] = tensors[name][:10].copy()

    with pytest.raises(lg.LoragraftError, match=r"lacks rows of the vocabulary: found 10, expected 64"):
        lg.load(write(tmp_path / "m", "gemma4-per-layer", shorten))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("num_kv_shared_layers", 6, "bad num_kv_shared_layers: found 6, expected less than 6"),
        ("num_kv_shared_layers", 5, "no earlier layer of the same kind has keys: found 5"),
        ("enable_moe_block", True, "num_experts is missing or zero"),
        ("layer_types", ["full_attention"], "bad layer_types"),
        (
            "per_layer_config",
            {"0": {"head_dim": 16}},
            "per_layer_config of other layers than those with full",
        ),
        (
            "rope_parameters",
            {
                kind: {"rope_type": "yarn", "rope_theta": 1e4}
                for kind in ("full_attention", "sliding_attention")
            },
            "RoPE of this kind",
        ),
    ],
)
def test_what_is_refused_of_gemma_4(tmp_path: Path, key: str, value: Any, said: str) -> None:
    with pytest.raises(lg.LoragraftError, match=said):
        lg.load(write(tmp_path / "m", "gemma4-shared", lambda config, tensors: config.update({key: value})))


def test_gemma_4_has_two_ropes_where_its_configuration_is_silent(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "gemma4", lambda config, tensors: config.pop("rope_parameters"))
    metadata = lg.load(folder).source.metadata
    assert metadata["gemma4.rope.freq_base"].data == 1e6
    assert metadata["gemma4.rope.freq_base_swa"].data == 1e4


def test_phi_moe_as_it_was_published(tmp_path: Path) -> None:
    """With `rope_scaling` and the original context beside it; scales that differ are refused."""

    def published(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        rope = config.pop("rope_parameters")
        config["original_max_position_embeddings"] = rope.pop("original_max_position_embeddings")
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}

    def differing(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        config["rope_parameters"]["long_mscale"] = 1.5

    old, new = (
        lg.load(write(tmp_path / name, "phimoe-short", edit)).source.metadata
        for name, edit in (("old", published), ("new", None))
    )
    assert {key: old[key].data for key in old if key.startswith("phimoe.")} == {
        key: new[key].data for key in new if key.startswith("phimoe.")
    }
    with pytest.raises(lg.LoragraftError, match=r"that differ: found 1.25 and 1.5, expected the same number"):
        lg.load(write(tmp_path / "m", "phimoe-short", differing))
    with pytest.raises(lg.LoragraftError, match="SparseMixer takes two experts: found 3, expected 2"):
        lg.load(write(tmp_path / "k", "phimoe", lambda config, tensors: config.update(num_experts_per_tok=3)))
    with pytest.raises(lg.LoragraftError, match="router_jitter_noise"):
        lg.load(
            write(tmp_path / "j", "phimoe", lambda config, tensors: config.update(router_jitter_noise=0.1))
        )

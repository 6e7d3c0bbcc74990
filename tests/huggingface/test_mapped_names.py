"""PEFT adapters onto GGUFs of architectures without a record: names and rows as llama.cpp's converters have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import loragraft as lg
from gguf_files import write_gguf
from intake_table import shows
from loragraft.archs import ARCHS
from loragraft.errors import UnsupportedError
from loragraft.formats.gguf.values import Value, ValueType
from loragraft.formats.source import ModelSource
from loragraft.formats.views import float_rows, in_memory
from loragraft.huggingface.mapped_names import names_of
from loragraft.opening import open_model
from paths import data

RECORDED: dict[str, Any] = json.loads(data("golden/converter-rows.json").read_text())
#: What the converters were given (make_converter_rows.py).
WIDTH = 32


def model(arch: str, tensors: dict[str, np.ndarray], **keys: int) -> ModelSource:
    metadata = {"general.architecture": Value.string(arch)}
    sizes = {
        "block_count": 2,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "embedding_length": WIDTH,
        **keys,
    }
    metadata |= {f"{arch}.{key}": Value.u32(value) for key, value in sizes.items()}
    if arch in {record.name for record in ARCHS}:
        metadata |= {
            f"{arch}.context_length": Value.u32(64),
            f"{arch}.feed_forward_length": Value.u32(48),
            f"{arch}.attention.layer_norm_rms_epsilon": Value.f32(1e-5),
            f"{arch}.rope.freq_base": Value.f32(10000.0),
            f"{arch}.rope.dimension_count": Value.u32(8),
        }
    if arch == "apertus":
        ones = Value.numbers(ValueType.FLOAT32, [1.0, 1.0])
        metadata |= {f"xielu.{name}": ones for name in ("alpha_n", "alpha_p", "beta", "eps")}
    return ModelSource(Path("base.gguf"), arch, metadata, {n: in_memory(n, a) for n, a in tensors.items()})


@pytest.mark.parametrize("arch", sorted(RECORDED))
@shows(
    "13",
    "35 that llama.cpp converts, with plain, permuted and fused rows",
    "names and rows of llama.cpp's converter",
)
def test_names_and_rows_are_the_converters(arch: str) -> None:
    own = RECORDED[arch]
    names = names_of(model(arch, {}, **{"attention.head_count_kv": own["kv_heads"]}))
    for module, fact in own["modules"].items():
        places = names.places(f"{module}.weight")
        assert [place.name for place in places] == [each["gguf"] for each in fact["becomes"]], module
        for place, expected in zip(places, fact["becomes"], strict=True):
            if fact["size"] is None:
                zero = np.zeros(WIDTH, np.float32)
                found = zero if place.values is None else place.values.forward(zero)
                assert set(found.tolist()) == {expected["shift"]}, module
                continue
            order = place.order(fact["size"])
            rows = list(range(fact["size"])) if order is None else order.tolist()
            assert rows == expected.get("rows", list(range(fact["size"]))), module


def adapter(
    folder: Path, targets: dict[str, tuple[int, int]], prefix: str = "base_model.model."
) -> dict[str, np.ndarray]:
    """A random rank 4 on modules of (out, in), and its deltas by module."""
    rng = np.random.default_rng(7)
    tensors, deltas = {}, {}
    for module, (out, columns) in targets.items():
        a, b = rng.standard_normal((4, columns), np.float32), rng.standard_normal((out, 4), np.float32)
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
        deltas[module] = 2.0 * b.astype(np.float64) @ a
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": [m.rpartition(".")[2] for m in targets],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return deltas


@pytest.mark.parametrize(
    ("arch", "module", "rows"),
    [
        ("falcon", "transformer.h.1.self_attention.query_key_value", 64),
        ("internlm2", "model.layers.1.attention.wqkv", 64),
        ("granite", "model.layers.1.self_attn.q_proj", 32),
        ("phi3", "model.layers.1.mlp.gate_up_proj", 96),
    ],
)
@shows("13", "one of each kind of rows", "merged, and converted to GGUF")
def test_merged_and_converted(arch: str, module: str, rows: int, tmp_path: Path) -> None:
    """Merged from the folder, and from the GGUF adapter that it becomes: the same weights, by the recorded rows."""
    becomes = RECORDED[arch]["modules"][module]["becomes"]
    rng = np.random.default_rng(1)
    orders = {each["gguf"]: each.get("rows", list(range(rows))) for each in becomes}
    base = {"token_embd.weight": rng.standard_normal((40, WIDTH), np.float32)}
    base |= {name: rng.standard_normal((len(order), WIDTH), np.float32) for name, order in orders.items()}
    source = model(arch, base)
    path = write_gguf(tmp_path / "base.gguf", source.metadata, base)
    (delta,) = adapter(tmp_path / "a", {module: (rows, WIDTH)}).values()
    lg.merge(path, tmp_path / "a", tmp_path / "o.gguf", type="F32")
    lg.convert_adapter(tmp_path / "a", path, tmp_path / "a.gguf")
    lg.merge(path, tmp_path / "a.gguf", tmp_path / "o2.gguf", type="F32")
    for out in ("o.gguf", "o2.gguf"):
        found = open_model(tmp_path / out).tensors
        for name, order in orders.items():
            values = float_rows(found[name].rows(0, found[name].n_rows), found[name].type)
            np.testing.assert_allclose(values, base[name] + delta[order], atol=1e-5, err_msg=name)
    if ARCHS.has_name(arch):
        lg.convert_adapter(tmp_path / "a.gguf", path, tmp_path / "back", to="peft")
        lg.merge(path, tmp_path / "back", tmp_path / "o3.gguf", type="F32")
        for name, tensor in open_model(tmp_path / "o2.gguf").tensors.items():
            found = open_model(tmp_path / "o3.gguf").tensors[name]
            np.testing.assert_array_equal(
                found.rows(0, found.n_rows), tensor.rows(0, tensor.n_rows), err_msg=name
            )
    else:
        with pytest.raises(
            UnsupportedError, match=r"transformers' names .* are not known.*keep the GGUF adapter"
        ):
            lg.convert_adapter(tmp_path / "a.gguf", path, tmp_path / "back", to="peft")


def test_the_adapter_of_the_report(tmp_path: Path) -> None:
    """On a base of its shapes."""
    folder = data(
        "intake/13-peft-adapter-other-architecture", "cases/intake/13-peft-adapter-other-architecture"
    )
    shapes = {
        "blk.0.attn_q.weight": (256, 256),
        "blk.0.ffn_down.weight": (256, 768),
        "token_embd.weight": (40, 256),
    }
    rng = np.random.default_rng(1)
    base = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    source = model("gemma2", base, embedding_length=256)
    path = write_gguf(tmp_path / "base.gguf", source.metadata, base)
    report = lg.merge(path, folder / "peft", tmp_path / "o.gguf", type="F32")
    assert (report.adapters[0].tensors, report.adapters[0].targets) == (4, 2)


@shows("13", "one whose rows nobody knows", "refused, with the way round")
def test_an_architecture_whose_rows_nobody_knows(tmp_path: Path) -> None:
    base = {"token_embd.weight": np.ones((40, WIDTH), np.float32)}
    source = model("plamo2", base)
    path = write_gguf(tmp_path / "base.gguf", source.metadata, base)
    adapter(tmp_path / "a", {"model.layers.1.self_attn.q_proj": (32, WIDTH)})
    with pytest.raises(UnsupportedError) as error:
        lg.merge(path, tmp_path / "a", tmp_path / "o.gguf")
    message = str(error.value)
    assert message.startswith(
        f"{path}: loragraft does not know how conversion reorders the rows of plamo2's weights"
    )
    assert "convert_lora_to_gguf.py" in message
    assert f"loragraft merge {path} --lora ADAPTER.gguf" in message
    other = model("nosucharch", base)
    path = write_gguf(tmp_path / "other.gguf", other.metadata, base)
    with pytest.raises(UnsupportedError, match=r"other\.gguf.*unknown architecture.*nosucharch"):
        lg.merge(path, tmp_path / "a", tmp_path / "o.gguf")

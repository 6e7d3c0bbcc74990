"""Checkpoints in NVFP4: lossless where they were NVFP4, and readable by those who defined the formats."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from click.testing import CliRunner

import loragraft as lg
from checkpoints import E2M1
from killed import killed_after
from loragraft.adapters.lora import Adapter
from loragraft.archs.graphs import build_graph, tensor_facts
from loragraft.backends.reference import ReferenceBackend
from loragraft.cli import app
from loragraft.errors import LoragraftError, OutputError
from loragraft.formats.safetensors import SafetensorsFile
from loragraft.formats.views import float_rows
from loragraft.opening import open_model
from loragraft.quants import e4m3
from loragraft.streaming import steps
from loragraft.streaming.checkpoint import folder, layouts
from loragraft.verbs.export import export
from paths import ROOT, arrays, data
from peft_golden import adapter_folder, base_folder, tensors_of
from running import logits_of
from tolerances import nmse

EXPORTED = json.loads((ROOT / "tests/data/golden/export.json").read_text())
MODELS = ["llama-kjv-nvfp4", "qwen2-bias-nvfp4", "starcoder2-bias-nvfp4", "qwen3moe-8x-nvfp4"]


@pytest.mark.parametrize("name", MODELS)
def test_modelopt_to_gguf_and_back_is_the_same_checkpoint(tmp_path: Path, name: str) -> None:
    """Every tensor: name, dtype, shape and bytes; codes and scales, biases, norms and embeddings alike."""
    lg.convert(data(name), tmp_path / "model.gguf")
    report = lg.export(tmp_path / "model.gguf", tmp_path / "out")
    assert (report.algorithm, report.quantized) == ("NVFP4", 0)
    ours = SafetensorsFile.open(tmp_path / "out" / "model.safetensors").tensors
    theirs = SafetensorsFile.open(data(name) / "model.safetensors").tensors
    assert ours.keys() == theirs.keys()
    for tensor, expected in theirs.items():
        found = ours[tensor]
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), tensor
        np.testing.assert_array_equal(found.data(), expected.data(), tensor)


@pytest.mark.parametrize("name", MODELS)
def test_configuration_made_of_metadata(tmp_path: Path, name: str) -> None:
    """What the original config.json says and the model depends on; and the quantization as ModelOpt describes it."""
    lg.convert(data(name), tmp_path / "model.gguf")
    lg.export(tmp_path / "model.gguf", tmp_path / "out")
    ours = json.loads((tmp_path / "out" / "config.json").read_text())
    theirs = json.loads((data(name) / "config.json").read_text())
    assert ours["rope_theta"] == theirs["rope_parameters"]["rope_theta"]
    told = {key: value for key, value in theirs.items() if key in ours and key != "quantization_config"}
    assert {key: ours[key] for key in told} == told
    assert told.keys() >= {
        "architectures",
        "hidden_size",
        "vocab_size",
        "eos_token_id",
        "tie_word_embeddings",
    }
    for part in ("config_groups", "quant_algo", "quant_method"):
        assert ours["quantization_config"][part] == theirs["quantization_config"][part]
    assert sorted(ours["quantization_config"]["ignore"]) == sorted(theirs["quantization_config"]["ignore"])
    more = json.loads((tmp_path / "out" / "hf_quant_config.json").read_text())["quantization"]
    assert more["quant_algo"] == "NVFP4"
    assert open_model(tmp_path / "out").metadata["tokenizer.ggml.pre"].data == "llama-bpe"


def test_the_tokenizer_made_of_metadata_is_the_original(tmp_path: Path) -> None:
    lg.convert(data("llama-kjv-nvfp4"), tmp_path / "model.gguf")
    lg.export(tmp_path / "model.gguf", tmp_path / "out")
    ours = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    theirs = tokenizers.Tokenizer.from_file(str(data("llama-kjv") / "tokenizer.json"))
    text = "In the beginning God created the heaven 1234,\n\n  wörd's <|end_of_text|>\t(and) 🚀 so on."
    assert ours.encode(text).ids == theirs.encode(text).ids
    assert ours.decode(ours.encode(text).ids) == theirs.decode(theirs.encode(text).ids)


def test_the_compressed_tensors_library_reads_the_same_weights(tmp_path: Path) -> None:
    """The golden file holds this export's tensors of one linear, and what compressed-tensors 0.20.0 makes of them."""
    golden = arrays("golden/compressed-tensors-weights.npz")
    lg.export(data("llama-kjv-nvfp4"), tmp_path / "out", format="compressed-tensors")
    tensors = SafetensorsFile.open(tmp_path / "out" / "model.safetensors").tensors
    stem = "model.layers.0.self_attn.k_proj"
    for part, key in (("weight_packed", "packed"), ("weight_scale", "scale")):
        tensor = tensors[f"{stem}.{part}"]
        np.testing.assert_array_equal(tensor.data().reshape(tensor.shape), golden[key])
    np.testing.assert_array_equal(tensors[f"{stem}.weight_global_scale"].array(), golden["global_scale"])
    theirs = SafetensorsFile.open(data("llama-kjv-nvfp4") / "model.safetensors").tensors
    codes = theirs[f"{stem}.weight"].array()
    values = np.stack([E2M1[codes & 15], E2M1[codes >> 4]], axis=-1).reshape(len(codes), -1)
    blocks = e4m3.decode(theirs[f"{stem}.weight_scale"].data()).reshape(len(codes), -1).astype(np.float64)
    original = values * np.repeat(blocks, 16, axis=1) * theirs[f"{stem}.weight_scale_2"].array()
    np.testing.assert_allclose(golden["weight"], original, rtol=2e-7)


@pytest.mark.parametrize("layout", ["modelopt", "compressed-tensors"])
@pytest.mark.parametrize(
    ("base", "adapter", "case"),
    [
        ("llama-kjv", "llama-kjv.shakespeare", "llama+lora"),
        ("qwen3moe-8x", "qwen3moe-8x.experts", "qwen3moe+experts"),
        ("starcoder2-bias", None, "starcoder2"),
    ],
)
def test_a_merged_model_survives(
    tmp_path: Path, layout: str, base: str, adapter: str | None, case: str
) -> None:
    """The logits of the exported checkpoint are the adapted model's but for NVFP4's error; without the adapter the
    distance is larger by far."""
    golden = arrays("golden/hf-logits.npz")
    adapters = [(data(adapter), 1.0)] if adapter else []
    report = lg.export(data(base), tmp_path / "out", format=layout, adapters=adapters)
    assert report.algorithm == "W4A16_NVFP4"
    assert report.carried_over == 0
    model = open_model(tmp_path / "out")
    graph = build_graph(model.metadata, tensor_facts(model.tensors))
    logits = logits_of(ReferenceBackend(), graph, model.tensors, golden["ids"])
    error = nmse(logits, golden[case])
    assert error < 0.012
    if adapter:
        assert nmse(golden[case.partition("+")[0]], golden[case]) > 4 * error


def test_what_is_multiplied_by_the_same_input_has_one_scale(tmp_path: Path) -> None:
    lg.export(data("llama-kjv"), tmp_path / "out")
    tensors = SafetensorsFile.open(tmp_path / "out" / "model.safetensors").tensors
    weights = SafetensorsFile.open(data("llama-kjv") / "model.safetensors").tensors
    stem = "model.layers.2"
    for modules in (
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("mlp.gate_proj", "mlp.up_proj"),
    ):
        scales = {float(tensors[f"{stem}.{module}.weight_scale_2"].array()) for module in modules}
        amax = max(float(np.abs(weights[f"{stem}.{module}.weight"].array()).max()) for module in modules)
        assert scales == {float(np.float32(amax) / np.float32(2688))}


def test_an_adapter_on_nvfp4_requantizes_its_group_and_no_other(tmp_path: Path) -> None:
    """An adapter of q alone: q, k and v get a new common scale, everything else keeps its codes."""
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "adapter"
    folder.mkdir()
    source = data("llama-kjv.shakespeare")
    tensors = load_file(source / "adapter_model.safetensors")
    save_file(
        {n: t for n, t in tensors.items() if "layers.1.self_attn.q_proj" in n},
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text((source / "adapter_config.json").read_text())
    report = lg.export(data("llama-kjv-nvfp4"), tmp_path / "out", adapters=[(folder, 1.0)])
    assert (report.quantized, report.carried_over) == (3, 25)
    ours = SafetensorsFile.open(tmp_path / "out" / "model.safetensors").tensors
    theirs = SafetensorsFile.open(data("llama-kjv-nvfp4") / "model.safetensors").tensors
    changed = {n for n, t in ours.items() if not np.array_equal(t.data(), theirs[n].data())}
    assert {name.rpartition(".")[0] for name in changed} <= {
        f"model.layers.1.self_attn.{letter}_proj" for letter in "qkv"
    }
    assert "model.layers.1.self_attn.q_proj.weight" in changed


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(OutputError, match="is there already"):
        lg.export(data("llama-kjv"), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]
    with pytest.raises(LoragraftError, match="no such format"):
        lg.export(data("llama-kjv"), tmp_path / "new", format="gptq")
    assert not (tmp_path / "new").exists()


def test_an_interrupted_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(layouts, "unpack_modelopt", fails)
    with pytest.raises(KeyboardInterrupt):
        lg.export(data("llama-kjv"), tmp_path / "out", threads=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", EXPORTED)
def test_the_weights_are_those_that_were_recorded(tmp_path: Path, case: str) -> None:
    """So that a change to the pass changes no byte; on any number of threads, in whatever memory."""
    base, adapter, layout = EXPORTED[case]["of"]
    adapters = [(data(adapter), 0.75)] if adapter else []
    lg.export(data(base), tmp_path / "out", format=layout, adapters=adapters, threads=3, max_memory=2 << 20)
    written = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert hashlib.sha256(written).hexdigest() == EXPORTED[case]["sha256"]


#: With one thread.
EXPORT = "import loragraft as lg; lg.export(*arguments, max_shard_bytes=1_500_000, threads=1)"


def test_a_killed_export_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "CHUNK_WEIGHTS", 16 * 1024)
    source, out, whole = data("llama-kjv"), tmp_path / "out", tmp_path / "whole"
    lg.export(source, whole, max_shard_bytes=1_500_000)
    killed_after(150, EXPORT, source, out, weights=16 * 1024)
    with pytest.raises(OutputError, match=r"is there already: .*; pass --resume to continue"):
        lg.export(source, out, max_shard_bytes=1_500_000)
    with pytest.raises(
        OutputError, match=r"this run does not write: found \.model-00001-of-00003.safetensors"
    ):
        lg.export(source, out, resume=True)  # as one file
    (out / "precious").write_text("x")
    with pytest.raises(OutputError, match="holds files that this run does not write: found precious"):
        lg.export(source, out, max_shard_bytes=1_500_000, resume=True)
    (out / "precious").unlink()
    report = lg.export(source, out, max_shard_bytes=1_500_000, resume=True)
    said = [note for note in report.notes if note.startswith("continuing: ")]
    assert len(said) == 1
    assert 5 < int(said[0].split()[1]) < 95
    files = sorted(path.name for path in whole.iterdir())
    assert sorted(path.name for path in out.iterdir()) == files
    for name in files:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def test_the_command(tmp_path: Path) -> None:
    arguments = ["export", str(data("llama-kjv-nvfp4")), "-o", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert (json.loads(result.output)["carried_over"], json.loads(result.output)["files"]) == (28, 1)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (
        data("llama-kjv-nvfp4") / "tokenizer.json"
    ).read_bytes()
    assert CliRunner().invoke(app, arguments).exit_code == 1
    sharded = [*arguments[:3], str(tmp_path / "sharded"), "--json", "--max-shard-size", "2M"]
    assert json.loads(CliRunner().invoke(app, sharded).output)["files"] == 3
    assert CliRunner().invoke(app, [*sharded, "--max-shard-size", "2"]).exit_code == 2


def test_shards_hold_what_one_file_does(tmp_path: Path) -> None:
    """Every file within the limit (but for one tensor that is larger), found by the index, and read again as one."""
    lg.export(data("llama-kjv-nvfp4"), tmp_path / "one")
    report = lg.export(data("llama-kjv-nvfp4"), tmp_path / "many", max_shard_bytes=500_000)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    names = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert names == [f"model-{n:05}-of-{len(names):05}.safetensors" for n in range(1, len(names) + 1)]
    assert report.files == len(names) > 5
    whole = SafetensorsFile.open(tmp_path / "one" / "model.safetensors").tensors
    assert index["weight_map"].keys() == whole.keys()
    assert index["metadata"] == {"total_size": sum(len(tensor.data()) for tensor in whole.values())}
    for name in names:
        shard = SafetensorsFile.open(tmp_path / "many" / name).tensors
        sizes = [len(tensor.data()) for tensor in shard.values()]
        assert sum(sizes) <= 500_000 or len(sizes) == 1
        assert {tensor for tensor, file in index["weight_map"].items() if file == name} == shard.keys()
        for tensor, found in shard.items():
            np.testing.assert_array_equal(found.data(), whole[tensor].data(), tensor)
    one, many = open_model(tmp_path / "one"), open_model(tmp_path / "many")
    assert set(one.tensors) == set(many.tensors)


def test_a_disk_too_small_for_all_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = folder.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(
        OutputError, match=r"out: not enough space on the disk: found 1\.0 MB free, expected "
    ):
        lg.export(data("llama-kjv"), tmp_path / "out", max_shard_bytes=500_000)
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_that_unties_resizes_and_brings_its_tokenizer(tmp_path: Path) -> None:
    base = base_folder("qwen2", tmp_path / "base")
    export(base, tmp_path / "one", adapters=[adapter_folder("qwen2+saved-embedding", tmp_path / "saved")])
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert (config["tie_word_embeddings"], config["vocab_size"]) == (False, 40)
    found, names = open_model(tmp_path / "one", dequantize=True), tensors_of("qwen2")
    head = found.tensors["output.weight"]
    values = float_rows(head.rows(0, 40), head.type)
    np.testing.assert_allclose(values, names["model.embed_tokens.weight"], rtol=2**-8, atol=0)
    export(base, tmp_path / "two", adapters=[adapter_folder("qwen2+resized-tokens", tmp_path / "resized")])
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    assert (config["tie_word_embeddings"], config["vocab_size"]) == (True, 43)
    assert len(open_model(tmp_path / "two", dequantize=True).metadata["tokenizer.ggml.tokens"].data) == 43


def test_biases_that_an_adapter_brings_are_in_the_configuration(tmp_path: Path) -> None:
    ones = np.ones(256, np.float32)
    adapter = Adapter(tmp_path, {}, biases={f"blk.{i}.attn_q.bias": ones for i in range(4)}, n_tensors=4)
    lg.export(data("llama-kjv"), tmp_path / "out", adapters=[adapter])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["attention_bias"], config["mlp_bias"]) == (True, False)
    assert open_model(tmp_path / "out").tensors["blk.3.attn_q.bias"].shape == (256,)

"""Files as trainers and converters really leave them: public reports of people doing this job, replayed.

Each report is a folder of `data/intake`; what must come out of it was worked out by hand, or by PEFT. docs/intake.md
says which class each stands for.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import loragraft as lg
from gguf_files import write_gguf
from intake_table import shows
from loragraft.cli import app
from loragraft.formats.gguf.reader import GGUFFile
from loragraft.formats.views import float_rows, widened
from loragraft.huggingface.intake import Intake
from loragraft.opening import open_model
from loragraft.quants.types import F32
from paths import data

BASE = data("llama-kjv")


def case(name: str) -> Path:
    return data(f"intake/{name}", f"cases/intake/{name}")


def run(*args: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result.output


def values(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of the model at `path`, in float32."""
    found = {}
    for name, tensor in open_model(path).tensors.items():
        wide = widened(tensor)
        found[name] = float_rows(wide.rows(0, wide.n_rows), F32).reshape(tensor.shape)
    return found


def merged(adapter: Path, out: Path, *options: object, base: Path = BASE) -> dict[str, np.ndarray]:
    run("merge", base, "--lora", adapter, "-o", out, "--type", "F32", *options)
    return values(out)


def expected_plain() -> dict[str, np.ndarray]:
    """W + 2 B A, worked out from the file of the plain adapter: alpha 8, rank 4."""
    tensors = load_file(case("02-language-model-prefix") / "plain" / "adapter_model.safetensors")
    expected = values(BASE)
    stem = "base_model.model.model.layers.0"
    for module, target in (("mlp.down_proj", "ffn_down"), ("self_attn.q_proj", "attn_q")):
        a, b = (tensors[f"{stem}.{module}.lora_{half}.weight"] for half in "AB")
        delta = 2 * b.astype(np.float64) @ a
        if target == "attn_q":  # GGUF's order of rows: neighbours, not halves, of each of the 4 heads
            delta = delta.reshape(4, 2, 32, 256).swapaxes(1, 2).reshape(256, 256)
        name = f"blk.0.{target}.weight"
        expected[name] = expected[name] + delta
    return expected


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], atol: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=atol, err_msg=name)


# ---- 01: a chat template or tokenizer settings beside an adapter, without tokenizer.json ----


@shows("01", "chat_template.jinja alone", "taken, with a note")
def test_01_a_template_alone(tmp_path: Path) -> None:
    folder = case("01-template-without-tokenizer-json") / "jinja-only"
    output = run("merge", BASE, "--lora", folder, "-o", tmp_path / "o.gguf", "--type", "Q4_K_M")
    assert "its own chat template replaces the base's" in output
    found = open_model(tmp_path / "o.gguf").metadata
    assert found["tokenizer.chat_template"].data == (folder / "chat_template.jinja").read_text()
    before = open_model(BASE).metadata
    assert {key: found[key] for key in before if key.startswith("tokenizer.")} == {
        key: value for key, value in before.items() if key.startswith("tokenizer.")
    }


@shows("01", "vocab.json with merges.txt", "taken")
def test_01_a_slow_tokenizer(tmp_path: Path) -> None:
    folder = case("01-template-without-tokenizer-json") / "slow-tokenizer"
    run("merge", BASE, "--lora", folder, "-o", tmp_path / "o.gguf", "--type", "Q4_K_M")
    found = open_model(tmp_path / "o.gguf").metadata
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert found["tokenizer.chat_template"].data == settings["chat_template"]
    assert found["tokenizer.ggml.add_bos_token"].data is False
    assert found["tokenizer.ggml.eos_token_id"].data == 1
    assert found["tokenizer.ggml.tokens"] == open_model(BASE).metadata["tokenizer.ggml.tokens"]


# ---- 02: the language model's part of a multimodal one ----


@pytest.fixture(scope="module")
def base_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.gguf"
    lg.convert(BASE, path)
    return path


@shows("02", "`model.language_model.`, `language_model.model.`", "the bytes of plain names")
def test_02_prefixes_of_wrappers(tmp_path: Path, base_gguf: Path) -> None:
    folder = case("02-language-model-prefix")
    for name in ("plain", "new-prefix", "old-prefix"):
        run("merge", base_gguf, "--lora", folder / name, "-o", tmp_path / f"{name}.gguf", "--type", "F16")
    plain = values(tmp_path / "plain.gguf")
    same(values(tmp_path / "new-prefix.gguf"), plain, atol=0)
    same(values(tmp_path / "old-prefix.gguf"), plain, atol=0)
    same(merged(folder / "plain", tmp_path / "f32.gguf"), expected_plain())


def renamed(folder: Path, out: Path, rename: dict[str, str], **extra: np.ndarray) -> Path:
    """A copy of an adapter's folder with parts of its tensors' names replaced, and more tensors."""
    shutil.copytree(folder, out)
    tensors = {}
    for name, array in load_file(out / "adapter_model.safetensors").items():
        for old, new in rename.items():
            name = name.replace(old, new)
        tensors[name] = array
    save_file({**tensors, **extra}, out / "adapter_model.safetensors")
    return out


@pytest.mark.parametrize(
    "prefix",
    [
        "base_model.model.base_model.model.model.layers",
        "base_model.model.model.text_model.layers",
        "base_model.model.llm.model.layers",
        "base_model.model.thinker.model.layers",
        "module.base_model.model.model.layers",
        "base_model.model._orig_mod.model.language_model.layers",
        "base_model.model.layers",
    ],
)
@shows(
    "02",
    "`text_model`, `llm`, `thinker`, `base_model.model.` twice, `module.`, `_orig_mod`, `.default.`, no `model.`",
    "merged as with plain names",
)
def test_02_other_prefixes(tmp_path: Path, prefix: str) -> None:
    plain = case("02-language-model-prefix") / "plain"
    adapter = renamed(
        plain, tmp_path / "a", {"base_model.model.model.layers": prefix, ".weight": ".default.weight"}
    )
    same(merged(adapter, tmp_path / "o.gguf"), expected_plain())


@shows("02", "a vision tower", "named and refused; left out with `--text-only`")
def test_02_a_vision_tower_is_named_and_left_out_on_request(tmp_path: Path) -> None:
    tower = "base_model.model.model.visual.blocks.0.attn.qkv"
    extra = {f"{tower}.lora_A.weight": np.ones((4, 8), "f4"), f"{tower}.lora_B.weight": np.ones((8, 4), "f4")}
    adapter = renamed(case("02-language-model-prefix") / "new-prefix", tmp_path / "a", {}, **extra)
    output = run("merge", BASE, "--lora", adapter, "-o", tmp_path / "o.gguf", code=1)
    assert "holds 1 tensors of a vision or audio part" in output
    assert "model.visual.blocks.0.attn.qkv" in output
    assert "--text-only" in output
    assert not (tmp_path / "o.gguf").exists()
    same(merged(adapter, tmp_path / "o.gguf", "--text-only"), expected_plain())


@shows("02", "the wrapper as base", "named and refused; its language model with `--text-only`")
def test_02_a_wrapper_as_base(tmp_path: Path) -> None:
    folder = tmp_path / "vl"
    shutil.copytree(BASE, folder)
    shutil.copy(case("02-language-model-prefix") / "wrapper-config.json", folder / "config.json")
    tensors = load_file(folder / "model.safetensors")
    inner = {name.replace("model.", "model.language_model.", 1): array for name, array in tensors.items()}
    inner["model.vision_tower.patch_conv.weight"] = np.ones((4, 4), "f2")
    save_file(inner, folder / "model.safetensors")
    output = run("convert", folder, "-o", tmp_path / "o.gguf", code=1)
    assert "a multimodal model (mistral3) around a language model (mistral)" in output
    assert "found 1 of 40 tensors" in output
    assert "--text-only" in output
    adapter = case("02-language-model-prefix") / "new-prefix"
    same(merged(adapter, tmp_path / "o.gguf", "--text-only", base=folder), expected_plain())


@shows("02", "the wrapper's config.json over a language model alone", "taken, with a note")
def test_02_a_wrapper_without_its_other_parts(tmp_path: Path) -> None:
    """Nothing would be left out, so there is nothing to agree to."""
    folder = tmp_path / "vl"
    shutil.copytree(BASE, folder)
    shutil.copy(case("02-language-model-prefix") / "wrapper-config.json", folder / "config.json")
    adapter = case("02-language-model-prefix") / "new-prefix"
    output = run("merge", folder, "--lora", adapter, "-o", tmp_path / "o.gguf", "--type", "F32")
    assert "holds only the language model of mistral3, which is taken" in output
    same(values(tmp_path / "o.gguf"), expected_plain())


# ---- 03, 04: what MLX writes ----


@shows("03", "LoRA of mlx-lm", "read, with its scale")
def test_03_an_mlx_adapter(tmp_path: Path) -> None:
    same(merged(case("03-mlx-adapter") / "adapters", tmp_path / "o.gguf"), expected_plain())
    output = run("inspect", case("03-mlx-adapter") / "adapters")
    assert "mlx-lm adapter" in output
    assert "4 halves of LoRA pairs" in output


def mlx_quantized(weight: np.ndarray, bits: int, group: int) -> dict[str, np.ndarray]:
    """As mlx.core.quantize, mode affine: codes in a stream of bits, the lowest first; W = scale * code + bias."""
    grouped = weight.astype(np.float32).reshape(len(weight), -1, group)
    low, high = grouped.min(-1), grouped.max(-1)
    scales, biases = ((high - low) / (2**bits - 1)).astype("f2"), low.astype("f2")
    steps = (grouped - biases.astype("f4")[..., None]) / scales.astype("f4")[..., None]
    codes = np.clip(np.rint(steps), 0, 2**bits - 1).astype(np.uint8).reshape(len(weight), -1, 1)
    stream = np.unpackbits(codes, axis=-1, bitorder="little")[..., :bits].reshape(len(weight), -1)
    words = np.packbits(stream, axis=-1, bitorder="little").view("<u4")
    return {"weight": words, "scales": scales, "biases": biases}


@pytest.mark.parametrize(("bits", "group"), [(4, 64), (2, 32), (3, 64), (5, 64), (6, 128), (8, 64)])
@shows("04", "2 to 6 and 8 bits, groups of 32 to 128", "named; read with `--dequantize`")
def test_04_a_checkpoint_that_mlx_quantized(tmp_path: Path, bits: int, group: int) -> None:
    folder = tmp_path / "m"
    shutil.copytree(BASE, folder)
    config = json.loads((case("04-mlx-quantized-checkpoint") / "config.json").read_text())
    config["quantization"] |= {"bits": bits, "group_size": group}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(BASE / "model.safetensors")
    original = tensors.pop("lm_head.weight").astype(np.float32)
    packed = mlx_quantized(original, bits, group)
    save_file({**tensors, **{f"lm_head.{k}": v for k, v in packed.items()}}, folder / "model.safetensors")
    output = run("convert", folder, "-o", tmp_path / "o.gguf", code=1)
    assert f"quantized by MLX (config.json: quantization, {bits} bits)" in output
    assert "--dequantize" in output
    run("convert", folder, "-o", tmp_path / "o.gguf", "--dequantize", "--type", "F32")
    found = values(tmp_path / "o.gguf")["output.weight"]
    step = np.repeat(packed["scales"].astype("f4"), group, axis=1)
    assert (np.abs(found - original) < 0.5 * step + 2e-3 * np.abs(original).max()).all()


# ---- 05: an importance matrix of another model ----


@shows("05", "none fits", "an error")
def test_05_no_entry_fits(tmp_path: Path, base_gguf: Path) -> None:
    matrix = case("05-imatrix-that-does-not-match") / "no-entry-fits.dat"
    output = run("quantize", "--imatrix", matrix, base_gguf, tmp_path / "o.gguf", "Q4_K_M", code=1)
    assert "none of its 1 entries fits a tensor of the model" in output
    assert "loragraft imatrix" in output
    assert not (tmp_path / "o.gguf").exists()


@shows(
    "05",
    "some tensors have none",
    "a note with counts; for types that need it an error that names the tensor",
)
def test_05_some_tensors_have_none(tmp_path: Path, base_gguf: Path) -> None:
    matrix = case("05-imatrix-that-does-not-match") / "first-block.dat"
    output = run("quantize", "--imatrix", matrix, base_gguf, tmp_path / "o.gguf", "Q4_K_M")
    assert "has no entry for 21 of 28 tensors (blk.1.attn_k.weight, " in output
    output = run("quantize", "--imatrix", matrix, base_gguf, tmp_path / "o.gguf", "IQ2_XS", code=1)
    assert "first-block.dat: the imatrix has no entry for tensor 'blk.1.attn_k.weight'" in output
    assert "--tensor-type blk.1.attn_k.weight=q4_k" in output


@shows("05", "experts one by one", "stacked")
def test_05_entries_of_single_experts_are_stacked(tmp_path: Path) -> None:
    from loragraft.formats.imatrix import Imatrix

    model = data("gguf/qwen3moe-8x-f16.gguf")
    matrix = case("05-imatrix-that-does-not-match") / "per-expert.dat"
    output = run("quantize", "--imatrix", matrix, model, tmp_path / "o.gguf", "IQ2_XXS")
    assert "has no entry" not in output
    assert "fit no tensor" not in output
    single = Imatrix.load(matrix)
    stacked, counts = dict(single.sums), dict(single.counts)
    for layer in range(100):
        for part in ("gate", "up", "down"):
            names = [f"blk.{layer}.ffn_{part}.{expert}.weight" for expert in range(8)]
            if names[0] in stacked:
                target = f"blk.{layer}.ffn_{part}_exps.weight"
                stacked[target] = np.concatenate([stacked.pop(name) for name in names])
                counts[target] = np.concatenate([counts.pop(name) for name in names])
    Imatrix(stacked, counts, single.datasets, 1, 512).save_gguf(tmp_path / "stacked.gguf")
    run("quantize", "--imatrix", tmp_path / "stacked.gguf", model, tmp_path / "e.gguf", "IQ2_XXS")
    same(values(tmp_path / "o.gguf"), values(tmp_path / "e.gguf"), atol=0)


# ---- 06: an adapter that lies deeper ----


@shows("06", "several `checkpoint-N`", "the command that takes one")
def test_06_checkpoints_of_a_trainer() -> None:
    folder = case("06-adapter-in-a-subfolder") / "trainer-output"
    output = run("merge", BASE, "--lora", folder, "-o", "o.gguf", code=1)
    assert f"{folder}: holds several adapters: found checkpoint-10, checkpoint-20" in output
    assert f"name it: {folder}/checkpoint-20" in output


@shows("06", "`default/`; the hub's cache", "taken, with a note")
def test_06_one_level_down_and_in_the_cache(tmp_path: Path) -> None:
    folder = case("06-adapter-in-a-subfolder")
    output = run("merge", BASE, "--lora", folder / "checkpoint-10", "-o", tmp_path / "o.gguf")
    assert "checkpoint-10: default/ in it holds the adapter: taken" in output
    cache = folder / "models--acme--llama-kjv-lora"
    output = run("merge", BASE, "--lora", cache, "-o", tmp_path / "o.gguf")
    assert "snapshots/0123abcd of the hub's cache of acme/llama-kjv-lora: taken" in output
    same(merged(cache, tmp_path / "o.gguf"), expected_plain())
    run("convert", cache, "--base", BASE, "-o", tmp_path / "a.gguf")
    assert lg.inspect(tmp_path / "a.gguf").as_json()["metadata"]["general.name"]["value"] == "Llama Kjv Lora"


@shows("06", "a repository's name", "the command that downloads it")
def test_06_the_name_of_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    output = run("merge", BASE, "--lora", "acme/llama-kjv-lora", "-o", "o.gguf", code=1)
    assert "download it first: hf download acme/llama-kjv-lora" in output


@shows("06", "a base in the cache, its files links", "taken; called as its repository")
def test_06_a_base_in_the_cache(tmp_path: Path) -> None:
    """With files that are links into blobs, as the hub's client leaves them; the model is called as its repository."""
    root = tmp_path / "models--acme--Tiny-KJV-4M"
    snapshot = root / "snapshots" / "0f1e2d3c"
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir()
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0f1e2d3c")
    for number, file in enumerate(sorted(BASE.iterdir())):
        shutil.copy(file, root / "blobs" / f"{number}")
        (snapshot / file.name).symlink_to(os.path.relpath(root / "blobs" / f"{number}", snapshot))
    for path in (root, snapshot):
        run("convert", path, "-o", tmp_path / "o.gguf")
        metadata = open_model(tmp_path / "o.gguf").metadata
        assert metadata["general.name"].data == "Tiny KJV 4M"
        assert metadata["general.basename"].data == "Tiny-KJV"
    same(values(tmp_path / "o.gguf"), values(BASE))


# ---- 07, 08: configurations that are left over ----


@shows("07", "`quantization_config` of bitsandbytes, 16-bit weights", "passed over, with a note")
def test_07_a_merged_model_that_says_it_is_quantized(tmp_path: Path) -> None:
    folder = tmp_path / "llama-kjv"
    shutil.copytree(BASE, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"load_in_4bit": True, "quant_method": "bitsandbytes"}
    (folder / "config.json").write_text(json.dumps(config))
    output = run("convert", folder, "-o", tmp_path / "o.gguf", "--type", "Q4_K_M")
    assert (
        "quantization_config (bitsandbytes) is passed over: all weights are floating-point numbers" in output
    )
    run("convert", BASE, "-o", tmp_path / "e.gguf", "--type", "Q4_K_M")
    assert (tmp_path / "o.gguf").read_bytes() == (tmp_path / "e.gguf").read_bytes()


@shows("07", "a companion tensor beside floats", "refused")
def test_07_a_model_that_is_quantized_is_refused_as_before(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(BASE, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"load_in_4bit": True, "quant_method": "bitsandbytes"}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight.absmax"] = np.ones(4, "f4")
    save_file(tensors, folder / "model.safetensors")
    output = run("convert", folder, "-o", tmp_path / "o.gguf", code=1)
    assert "quantized by bitsandbytes to 4 bits" in output
    output = run("convert", folder, "-o", tmp_path / "o.gguf", "--dequantize", code=1)
    assert "up_proj.weight does not hold codes: found F16" in output


@shows("08", "config.json and tokenizer beside the adapter", "every verb sees the adapter")
def test_08_an_adapter_beside_the_bases_files(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    shutil.copytree(case("08-axolotl-output-folder") / "adapter", folder)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BASE / name, folder)
    run("convert", folder, "--base", BASE, "-o", tmp_path / "a.gguf")
    same(merged(tmp_path / "a.gguf", tmp_path / "o.gguf"), expected_plain())
    output = run("inspect", folder)
    assert "PEFT adapter" in output
    assert "lora_alpha" in output


# ---- 09: GGUF adapters with whole tensors ----


@shows("09", "norms", "in place of the base's")
def test_09_norms_in_a_gguf_adapter(tmp_path: Path, base_gguf: Path) -> None:
    folder = case("09-gguf-adapter-with-norms")
    found = merged(folder / "with-norms.gguf", tmp_path / "o.gguf", base=base_gguf)
    norms = load_file(folder / "peft" / "adapter_model.safetensors")
    for name, hf in (("output_norm.weight", "norm"), ("blk.0.attn_norm.weight", "layers.0.input_layernorm")):
        np.testing.assert_array_equal(found[name], norms[f"base_model.model.model.{hf}.weight"])
    expected = values(BASE)
    changed = {name for name, array in found.items() if not np.array_equal(array, expected[name])}
    assert changed == {"output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_down.weight"}
    ids = list(range(2, 40))
    once = lg.load(tmp_path / "o.gguf").logits(ids)
    at_run_time = lg.load(base_gguf, [folder / "with-norms.gguf"]).logits(ids)
    assert np.abs(once - at_run_time).max() < 1e-3
    assert np.abs(lg.load(base_gguf).logits(ids) - at_run_time).max() > 0.1


def test_09_as_the_converter_writes_it(tmp_path: Path) -> None:
    found = merged(case("09-gguf-adapter-with-norms/by-llama.cpp.gguf"), tmp_path / "o.gguf")
    changed = {name for name, array in values(BASE).items() if not np.array_equal(found[name], array)}
    norms = {"output_norm.weight", *(f"blk.{i}.attn_norm.weight" for i in range(4))}
    assert {name for name in changed if "norm" in name} == norms


def gguf_with(path: Path, **tensors: np.ndarray) -> Path:
    """The case's adapter with more tensors (`__` for dots)."""
    source = GGUFFile.open(case("09-gguf-adapter-with-norms") / "with-norms.gguf")
    arrays = {
        name: tensor.data().view("<f4").reshape(tensor.shape) for name, tensor in source.tensors.items()
    }
    arrays |= {name.replace("__", "."): array for name, array in tensors.items()}
    return write_gguf(path, source.metadata, arrays)


@shows("09", "`rope_freqs.weight`", "left out, with a note")
def test_09_frequencies_of_rope_are_left_out(tmp_path: Path) -> None:
    """Converters of 2024 wrote them into every adapter of Llama 3."""
    adapter = gguf_with(tmp_path / "a.gguf", rope_freqs__weight=np.ones(32, "f4"))
    output = run("merge", BASE, "--lora", adapter, "-o", tmp_path / "o.gguf", "--type", "F32")
    assert "its rope_freqs.weight is left out: frequencies of RoPE do not belong in an adapter" in output
    assert "4 of 5 tensors used" in output
    same(
        values(tmp_path / "o.gguf"),
        merged(case("09-gguf-adapter-with-norms") / "with-norms.gguf", tmp_path / "e.gguf"),
    )


@pytest.mark.parametrize(
    ("name", "array", "says"),
    [
        (
            "blk__1__ffn_norm__weight",
            np.ones(8, "f4"),
            "does not fit any tensor of the base: found (8,), expected (256,",
        ),
        ("blk__9__ffn_norm__weight", np.ones(256, "f4"), "expected a name with .lora_a or .lora_b"),
        ("blk__1__ffn_norm__weight", np.full(256, np.nan, "f4"), "holds NaN or infinity"),
    ],
)
@shows("09", "a tensor of another shape or name, one with NaN", "refused")
def test_09_other_tensors(tmp_path: Path, name: str, array: np.ndarray, says: str) -> None:
    adapter = gguf_with(tmp_path / "a.gguf", **{name: array})
    assert says in run("merge", BASE, "--lora", adapter, "-o", tmp_path / "o.gguf", code=1)


@shows("09", "any tensor of the base's shape", "in place of the base's")
def test_09_any_tensor_of_the_bases_shape(tmp_path: Path) -> None:
    whole = np.random.default_rng(3).standard_normal((128, 256)).astype("f4")
    found = merged(gguf_with(tmp_path / "a.gguf", blk__2__attn_v__weight=whole), tmp_path / "o.gguf")
    np.testing.assert_array_equal(found["blk.2.attn_v.weight"], whole)


# ---- 10, 11: what changes nothing, what matches nothing ----


@shows("10", "B zero everywhere; no tensors", "said; an error that says how to gather shards")
def test_10_an_adapter_that_was_never_trained(tmp_path: Path) -> None:
    folder = case("10-adapter-that-changes-nothing")
    output = run("merge", BASE, "--lora", folder / "untrained", "-o", tmp_path / "o.gguf")
    assert "this adapter changes nothing, as all of its B are zero" in output
    assert (
        "untrained: 4 of 4 tensors used, on 2 weights of the base, 0 of which it changes, at scale 1"
        in output
    )
    output = run("merge", BASE, "--lora", folder / "empty", "-o", tmp_path / "o.gguf", code=1)
    assert "holds no LoRA tensors: found no tensor at all; was it saved from shards (ZeRO-3" in output


@shows("11", "a module that the model lacks", "passed over as in PEFT, with a note")
def test_11_saved_modules_that_the_model_does_not_have(tmp_path: Path) -> None:
    adapter = tmp_path / "wte"
    shutil.copytree(case("11-modules-to-save-that-match-nothing") / "wte", adapter)
    tensors = load_file(case("02-language-model-prefix") / "plain" / "adapter_model.safetensors")
    head = np.random.default_rng(1).standard_normal((2048, 256)).astype("f2")
    tensors["base_model.model.lm_head.weight"] = head
    save_file(tensors, adapter / "adapter_model.safetensors")
    output = run("merge", BASE, "--lora", adapter, "-o", tmp_path / "o.gguf")
    assert "modules_to_save of adapter_config.json names wte" in output
    expected = expected_plain()
    expected["output.weight"] = head.astype(np.float32)
    same(merged(adapter, tmp_path / "o.gguf"), expected)


@shows("11", "one that the file lacks", "refused")
def test_11_a_saved_module_that_is_missing_is_an_error(tmp_path: Path) -> None:
    adapter = tmp_path / "a"
    shutil.copytree(case("02-language-model-prefix") / "plain", adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "modules_to_save": ["lm_head"]}))
    assert "holds no tensor of lm_head" in run("merge", BASE, "--lora", adapter, "-o", "o.gguf", code=1)


@shows("11", "SEQ_CLS with its head", "refused, with its task named")
def test_11_a_classifier() -> None:
    folder = case("11-modules-to-save-that-match-nothing") / "seq-cls"
    output = run("merge", BASE, "--lora", folder, "-o", "o.gguf", code=1)
    assert (
        "is a sequence classifier (task_type SEQ_CLS, score.weight): GGUF generation has no place for"
        in output
    )


# ---- 15 ----


@shows("15", "one token too many", "refused, with the ways out")
def test_15_a_tokenizer_larger_than_the_embedding(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(BASE, folder)
    shutil.copy(case("15-tokenizer-larger-than-embedding") / "tokenizer.json", folder)
    output = run("convert", folder, "-o", tmp_path / "o.gguf", code=1)
    assert "found token id 2048 ('[PAD]')" in output
    assert "added_tokens" in output
    assert "resize_token_embeddings" in output


# ---- pickles ----


@shows("pickles", "what torch writes", "read with `--allow-pickle`, as data alone")
def test_a_pickled_adapter_is_read_on_request(tmp_path: Path) -> None:
    output = run("merge", BASE, "--lora", case("pickled"), "-o", tmp_path / "o.gguf", code=1)
    assert "its weights are pickled, which is not safe to read: found adapter_model.bin" in output
    assert "--allow-pickle" in output
    found = merged(case("pickled"), tmp_path / "o.gguf", "--allow-pickle")
    same(found, expected_plain(), atol=2e-4)  # two of its tensors were rounded to F16
    same(values(tmp_path / "o.gguf"), found)
    lg.convert_adapter(case("pickled"), BASE, tmp_path / "a.gguf", intake=Intake(allow_pickle=True))
    same(merged(tmp_path / "a.gguf", tmp_path / "o2.gguf"), found)

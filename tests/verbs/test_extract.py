"""Adapters from the difference of two models: what is kept is what is said, and logits follow it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

import loragraft as lg
from loragraft.adapters import difference
from loragraft.adapters.spectrum import low_rank
from loragraft.cli import app
from loragraft.errors import AdapterError, LoragraftError
from loragraft.formats.views import float_rows, in_memory, widened
from loragraft.opening import load_adapter, open_model
from loragraft.quants.types import F32
from paths import arrays, data
from peft_golden import adapter_folder, base_folder, golden
from tolerances import nmse

IDS = np.arange(3, 45)


def values(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of the model at `path`, in float32."""
    found = {}
    for name, tensor in open_model(path).tensors.items():
        wide = widened(tensor)
        found[name] = float_rows(wide.rows(0, wide.n_rows), F32).reshape(tensor.shape)
    return found


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "tuned.gguf"
    lg.merge(data("llama-kjv"), data("llama-kjv.shakespeare"), out, type="F32")
    return out


@pytest.mark.parametrize("form", ["peft", "gguf", "mlx"])
def test_a_lora_comes_back(form: str, tuned: Path, tmp_path: Path) -> None:
    """The merged adapter's deltas, from base and merged model: its rank is enough for all of the energy."""
    base = data("llama-kjv")
    report = lg.extract(base, tuned, tmp_path / "a", rank=8, to=form)
    assert len(report.modules) == 28
    assert report.energy > 1 - 1e-9
    model = open_model(base)
    known, found = load_adapter(data("llama-kjv.shakespeare"), model), load_adapter(tmp_path / "a", model)
    for name, pair in known.pairs.items():
        delta = pair.scale * (pair.b @ pair.a)
        other = found.pairs[name]
        assert other.rank == 8
        assert nmse(other.scale * (other.b @ other.a), delta) < 1e-9, name
    logits = lg.load(base, [tmp_path / "a"], backend="reference").logits(IDS)
    assert nmse(logits, lg.load(tuned, backend="reference").logits(IDS)) < 1e-9


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_logits_are_as_near_as_the_energy_says(rank: int, tuned: Path, tmp_path: Path) -> None:
    """What is left of the difference moves the logits by about its part of the energy: (1 - kept) of what the whole
    difference does."""
    base = data("llama-kjv")
    report = lg.extract(base, tuned, tmp_path / "a", rank=rank)
    lg.merge(base, tmp_path / "a", tmp_path / "again.gguf", type="F32")
    plain, wanted, found = (
        lg.load(path, backend="reference").logits(IDS) for path in (base, tuned, tmp_path / "again.gguf")
    )
    predicted = (1 - report.energy) * nmse(plain, wanted)
    assert 0.2 < nmse(found, wanted) / predicted < 5
    assert {one.rank for one in report.modules} == {rank}


def test_the_pairs_are_mergekits(tuned: Path, tmp_path: Path) -> None:
    """golden/mergekit-lora.npz: layer 0 of what mergekit-extract-lora 0.1.5 makes of the two at rank 4. Its halves
    share the singular values, so products are compared."""
    lg.extract(data("llama-kjv"), tuned, tmp_path / "a", rank=4)
    found, expected = (
        load_file(tmp_path / "a" / "adapter_model.safetensors"),
        arrays("golden/mergekit-lora.npz"),
    )
    names = [name for name in expected if "lora_A" in name]
    assert len(names) == 7
    for name in names:
        other = name.replace("lora_A", "lora_B")
        assert nmse(found[other] @ found[name], expected[other] @ expected[name]) < 1e-9, name


def test_the_smallest_rank_that_keeps_the_energy(tuned: Path, tmp_path: Path) -> None:
    base = data("llama-kjv")
    report = lg.extract(base, tuned, tmp_path / "a", energy=0.9)
    before, after = values(base), values(tuned)
    for one in report.modules:
        s = np.linalg.svd((after[one.target] - before[one.target]).astype(np.float64), compute_uv=False)
        kept = np.cumsum(s**2) / np.sum(s**2)
        assert one.rank == int(np.searchsorted(kept, 0.9)) + 1
        assert np.isclose(one.energy, kept[one.rank - 1], rtol=1e-6)
        relative = np.linalg.norm(after[one.target] - before[one.target]) / np.linalg.norm(before[one.target])
        assert np.isclose(one.relative, relative, rtol=1e-4)
    assert len({one.rank for one in report.modules}) > 1
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["rank_pattern"]
    assert nmse(
        lg.load(base, [tmp_path / "a"], backend="reference").logits(IDS),
        lg.load(tuned, backend="reference").logits(IDS),
    ) < nmse(lg.load(base, backend="reference").logits(IDS), lg.load(tuned, backend="reference").logits(IDS))


def test_of_quantized_models(tuned: Path, tmp_path: Path) -> None:
    """Their difference has the rounding of both in it, which no low rank keeps."""
    paths = {"base": data("llama-kjv"), "tuned": tuned}
    for name, path in paths.items():
        lg.merge(path, [], tmp_path / f"{name}.gguf", type="Q8_0")
    report = lg.extract(tmp_path / "base.gguf", tmp_path / "tuned.gguf", tmp_path / "a.gguf", rank=8)
    assert 0.9 < report.energy < 0.9999
    before, wanted, found = (
        lg.load(tmp_path / "base.gguf", adapters, backend="reference").logits(IDS)
        for adapters in ([], [data("llama-kjv.shakespeare")], [tmp_path / "a.gguf"])
    )
    assert nmse(found, wanted) < 0.1 * nmse(before, wanted)


def test_stacks_of_experts(tmp_path: Path) -> None:
    base, adapter = data("qwen3moe-8x"), data("qwen3moe-8x.experts")
    lg.merge(base, adapter, tmp_path / "tuned.gguf", type="F32")
    report = lg.extract(base, tmp_path / "tuned.gguf", tmp_path / "a", rank=4)
    assert report.energy > 1 - 1e-9
    known = load_adapter(adapter, open_model(base))
    found = load_adapter(tmp_path / "a", open_model(base))
    for name, pair in known.pairs.items():
        other = found.pairs[name]
        assert nmse(other.scale * (other.b @ other.a), pair.scale * (pair.b @ pair.a)) < 1e-8, name


def test_norms_and_embeddings_on_request(tmp_path: Path) -> None:
    base = base_folder("llama", tmp_path / "base")
    adapters = [adapter_folder(case, tmp_path / case) for case in ("llama+saved", "llama+embedding")]
    lg.merge(base, adapters, tmp_path / "tuned.gguf", type="F32")
    before, after = values(base), values(tmp_path / "tuned.gguf")
    changed = {name for name, array in after.items() if not np.array_equal(array, before.get(name))}
    assert {"token_embd.weight", "blk.0.attn_norm.weight"} <= changed
    ids = golden()["ids"]
    wanted = lg.load(tmp_path / "tuned.gguf", backend="reference").logits(ids)

    def distance(**options: object) -> tuple[float, list[str], list[str]]:
        out = tmp_path / f"a{len(list(tmp_path.iterdir()))}"
        report = lg.extract(base, tmp_path / "tuned.gguf", out, rank=32, **options)  # type: ignore[arg-type]
        return (
            nmse(lg.load(base, [out], backend="reference").logits(ids), wanted),
            report.left_out,
            report.whole,
        )

    plain, left, whole = distance()
    assert whole == []
    assert {"token_embd.weight", "blk.0.attn_norm.weight"} <= set(left)
    norms, left, whole = distance(norms=True)
    assert "blk.0.attn_norm.weight" in whole
    everything, left, _ = distance(norms=True, embeddings=True)
    assert left == []
    assert everything < 1e-9 < norms
    assert everything < 1e-3 * plain


def test_what_there_is_no_adapter_of(tuned: Path, tmp_path: Path) -> None:
    base = data("llama-kjv")
    with pytest.raises(AdapterError, match=r"does not differ from llama-kjv"):
        lg.extract(base, base, tmp_path / "a", rank=4)
    with pytest.raises(AdapterError, match=r"has another architecture: found qwen2, expected llama"):
        lg.extract(base, base_folder("qwen2", tmp_path / "other"), tmp_path / "a", rank=4)
    with pytest.raises(AdapterError, match=r"has another number of layers: found 2 layers, expected 4"):
        lg.extract(base, base_folder("llama", tmp_path / "small"), tmp_path / "a", rank=4)
    for settings in ({}, {"rank": 0}, {"energy": 1.5}):
        with pytest.raises(LoragraftError):
            lg.extract(base, tuned, tmp_path / "a", **settings)
    assert not (tmp_path / "a").exists()


def test_the_command(tuned: Path, tmp_path: Path) -> None:
    words = ["extract", data("llama-kjv"), tuned, "-o", tmp_path / "a.gguf"]
    result = CliRunner().invoke(app, [*map(str, words), "--energy", "0.5", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["kind"] == "gguf"
    assert len(report["modules"]) == 28
    assert all(0.5 <= one["energy"] <= 1 for one in report["modules"])
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 2
    assert "--rank 16, or --energy 0.95" in result.output


def test_large_differences_are_read_in_blocks(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An embedding's may be larger than memory: the same pairs, without holding it; also on several threads."""
    base = data("llama-kjv")
    once = lg.extract(base, tuned, tmp_path / "a", rank=5, threads=1)
    monkeypatch.setattr(difference, "_MOST_HELD", 1000)
    monkeypatch.setattr(difference, "_CHUNK_WEIGHTS", 5000)
    monkeypatch.setattr("loragraft.verbs.extract._MOST_BYTES", 30_000)
    again = lg.extract(base, tuned, tmp_path / "b", rank=5, threads=3)
    assert [one.target for one in again.modules] == [one.target for one in once.modules]
    model = open_model(base)
    before, after = load_adapter(tmp_path / "a", model), load_adapter(tmp_path / "b", model)
    for name, pair in before.pairs.items():
        other = after.pairs[name]
        assert nmse(other.b @ other.a, pair.b @ pair.a) < 1e-9, name
    for one, other in zip(once.modules, again.modules, strict=True):
        assert np.isclose(one.energy, other.energy, rtol=1e-6)
        assert np.isclose(one.relative, other.relative, rtol=1e-6)


@pytest.mark.parametrize("shape", [(1100, 1500), (1500, 1100)])
def test_blocks_of_what_is_not_small(shape: tuple[int, int]) -> None:
    """Iterated and dense, of matrices with more rows or more columns, where values fall slowly."""
    rng = np.random.default_rng(3)
    values = np.arange(1, 1001) ** -0.5
    u, v = (np.linalg.qr(rng.standard_normal((n, 1000)))[0] for n in shape)
    matrix = ((u * values) @ v.T).astype(np.float32)
    weights = [in_memory("w", array) for array in (np.zeros(shape, np.float32), matrix)]
    kept = np.cumsum(np.square(values)) / np.square(values).sum()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(difference, "_CHUNK_WEIGHTS", 300_000)
        for rank, energy in ((8, None), (None, 0.2), (None, 0.93)):
            found = low_rank(difference.Difference(*weights, 0, shape[0]), rank, energy)
            best = rank or int(np.searchsorted(kept, energy)) + 1
            assert best <= found.rank <= best + (best > 1000 // 4)
            assert np.isclose(found.energy, kept[found.rank - 1], rtol=2e-3 if rank else 1e-4)
            left = np.linalg.norm(matrix.astype(np.float64) - found.b.astype(np.float64) @ found.a)
            assert np.isclose(left**2, (1 - found.energy) * np.square(values).sum(), rtol=1e-4)
            np.testing.assert_allclose(found.a @ found.a.T, np.eye(found.rank), atol=1e-5)

"""Adapters made of adapters, against PEFT's add_weighted_adapter (golden/make_peft_combined.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

import loragraft as lg
from combined_recipes import RECIPES
from loragraft.adapters.combine import METHODS, Combination, combine
from loragraft.adapters.spectrum import low_rank, low_rank_product
from loragraft.cli import app
from loragraft.cli.combine_options import METHODS as OFFERED
from loragraft.errors import AdapterError, LoragraftError
from loragraft.huggingface.tensor_names import TensorNames
from loragraft.opening import load_adapter, open_model
from paths import arrays, data
from peft_golden import adapter_folder, base_folder, golden
from tolerances import REFERENCE, nmse


def recorded() -> dict[str, np.ndarray]:
    return arrays("golden/peft-combined.npz")


def folder_of(name: str, folder: Path) -> Path:
    path = folder / name
    path.mkdir()
    own = {key.partition("/")[2]: value for key, value in recorded().items() if key.startswith(f"{name}/")}
    (path / "adapter_config.json").write_bytes(own.pop("config").tobytes())
    save_file(own, path / "adapter_model.safetensors")
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return base_folder("qwen2", tmp_path / "base")


def made(case: str, base: Path, folder: Path) -> tuple[list[tuple[Path, float]], Combination]:
    weights, settings = RECIPES[case]
    return [(folder_of(name, folder), weight) for name, weight in weights.items()], Combination(**settings)


@pytest.mark.parametrize("case", RECIPES)
def test_deltas_and_logits_are_pefts(case: str, base: Path, tmp_path: Path) -> None:
    adapters, how = made(case, base, tmp_path)
    source = open_model(base)
    one = combine([(load_adapter(path, source), weight) for path, weight in adapters], how)
    names, compared = TensorNames(source.metadata), 0
    for key, expected in recorded().items():
        if key.startswith(f"{case}/delta/"):
            pair = one.pairs[names.places(f"{key.split('/')[2]}.weight")[0].name]
            found = pair.scale * (pair.b @ pair.a)
            assert np.abs(found - expected).max() < 1e-5 * max(1, np.abs(expected).max()), key
            compared += 1
    assert compared >= 2
    logits = lg.load(base, [one], backend="reference").logits(golden()["ids"])
    assert nmse(logits, recorded()[f"{case}/logits"]) < (1e-9 if "svd" in case else REFERENCE)


def test_every_method_has_a_case() -> None:
    assert {settings["method"] for _, settings in RECIPES.values()} == set(METHODS)
    assert OFFERED == METHODS


def test_merged_and_written_are_the_same(base: Path, tmp_path: Path) -> None:
    """`merge --combine` is `combine`, then `merge`; a GGUF and a folder of PEFT's hold the same."""
    adapters, _ = made("ties", base, tmp_path)
    ids, expected = golden()["ids"], recorded()["ties/logits"]
    words = ["--lora", f"{adapters[0][0]}=0.7", "--lora", f"{adapters[1][0]}=1.3"]

    def run(*arguments: object) -> None:
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exit_code == 0, result.output

    run(
        "merge",
        base,
        *words,
        "--combine",
        "ties",
        "--density",
        0.5,
        "--type",
        "F32",
        "-o",
        tmp_path / "m.gguf",
    )
    run("combine", base, *words, "--method", "ties", "--density", 0.5, "-o", tmp_path / "c.gguf")
    run("combine", base, *words, "--combine", "ties", "--density", 0.5, "-o", tmp_path / "c")
    run("combine", base, *words, "--method", "ties", "--density", 0.5, "--to", "mlx", "-o", tmp_path / "mlx")
    found = [lg.load(tmp_path / "m.gguf", backend="reference").logits(ids)]
    found += [
        lg.load(base, [tmp_path / one], backend="reference").logits(ids) for one in ("c.gguf", "c", "mlx")
    ]
    for logits in found:
        assert nmse(logits, expected) < REFERENCE
    receipts = open_model(tmp_path / "m.gguf").metadata["loragraft.adapters.name"].data
    assert receipts == ["one", "two"]


def test_cat_is_the_sum(tmp_path: Path) -> None:
    """Of stacked experts too."""
    base, adapter = data("qwen3moe-8x"), data("qwen3moe-8x.experts")
    one = load_adapter(adapter, open_model(base))
    both = combine([(one, 0.75), (one, -0.5)], Combination("cat"))
    cut = combine([(one, 0.75), (one, -0.5)], Combination("svd", rank=4))
    for name, pair in one.pairs.items():
        expected = 0.25 * pair.scale * (pair.b @ pair.a)
        for other in (both, cut):
            found = other.pairs[name]
            assert np.allclose(found.b @ found.a, expected, rtol=0, atol=1e-6)
        assert cut.pairs[name].rank == 4


def test_a_seed_tells_what_is_dropped(base: Path, tmp_path: Path) -> None:
    adapters, _ = made("dare_linear", base, tmp_path)
    loaded = [(load_adapter(path, open_model(base)), weight) for path, weight in adapters]

    def a_of(seed: int) -> np.ndarray:
        return combine(loaded, Combination("dare_linear", 0.5, seed=seed)).pairs["blk.0.attn_q.weight"].a

    assert np.array_equal(a_of(1), a_of(1))
    assert not np.array_equal(a_of(1), a_of(2))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"method": "mean"}, "no such way to combine"),
        ({"method": "ties"}, "needs a density"),
        ({"method": "ties", "density": 1.5}, "needs a density"),
        ({"method": "cat", "density": 0.5}, "drops no values"),
        ({"method": "linear", "rank": 4}, "takes no rank"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(LoragraftError, match=says):
        Combination(**settings)


def test_what_cannot_be_combined(base: Path, tmp_path: Path) -> None:
    source = open_model(base)
    one, small = (load_adapter(folder_of(name, tmp_path), source) for name in ("one", "small"))
    with pytest.raises(
        AdapterError, match=r"ranks of the adapters' pairs for .* differ: found 2, 4.*--combine cat"
    ):
        combine([(one, 1.0), (small, 1.0)], Combination("linear"))
    for case, what in (
        ("qwen2+dora", "DoRA's magnitudes"),
        ("qwen2+tokens", "rows of tokens"),
        ("qwen2+lora-bias", "biases"),
    ):
        other = load_adapter(adapter_folder(case, tmp_path / case), source)
        with pytest.raises(AdapterError, match=f"holds {what}, so it cannot be combined"):
            combine([(one, 1.0), (other, 1.0)], Combination("cat"))


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (1100, 1300), (1300, 1100)])
def test_low_rank_is_the_best(shape: tuple[int, int]) -> None:
    """Eckart and Young: what is left are the other singular values."""
    rng = np.random.default_rng(0)
    values = 0.8 ** np.arange(40)
    u, v = (np.linalg.qr(rng.standard_normal((n, 40)))[0] for n in shape)
    matrix = ((u * values) @ v.T).astype(np.float32)
    for rank in (1, 5, 12):
        found = low_rank(matrix, rank)
        left = np.linalg.norm(matrix.astype(np.float64) - found.b.astype(np.float64) @ found.a)
        assert np.isclose(left, np.linalg.norm(values[rank:]), rtol=1e-4)
        assert np.isclose(found.energy, np.square(values[:rank]).sum() / np.square(values).sum(), rtol=1e-6)
    kept = np.cumsum(np.square(values)) / np.square(values).sum()
    for energy in (0.5, 0.95, 0.9999):
        assert low_rank(matrix, energy=energy).rank == int(np.searchsorted(kept, energy)) + 1
    assert low_rank(matrix, 2, 0.99).rank == 2
    b, a = (u * values).astype(np.float32), v.T.astype(np.float32)
    assert np.allclose(
        low_rank_product(b, a, 3).b @ low_rank_product(b, a, 3).a,
        low_rank(matrix, 3).b @ low_rank(matrix, 3).a,
        atol=1e-6,
    )


def test_low_rank_of_nothing() -> None:
    found = low_rank(np.zeros((6, 4), np.float32), 3)
    assert (found.rank, found.energy) == (1, 1.0)
    assert not found.b.any()

"""`compare` on the example: the figures of llama-perplexity, a verdict, and no file left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import loragraft as lg
from loragraft.compare import Comparison
from loragraft.errors import LoragraftError
from loragraft.evaluate.verdict import kept, verdict
from paths import data

BASE, ADAPTER, TEXT = data("llama-kjv"), data("llama-kjv.shakespeare"), data("shakespeare-valid.txt")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    work = tmp_path_factory.mktemp("work")
    measured = lg.compare(BASE, [(ADAPTER, 1.0)], TEXT.read_text(), context=256, work_dir=work)
    assert os.listdir(work) == []
    return measured


def test_perplexities_are_those_of_llama_perplexity(result: Comparison) -> None:
    # llama-perplexity -c 256 of llama.cpp 0c1e57098 on these 60,000 characters
    measured = {name: row.perplexity for name, row in result.deployments.items()}
    assert measured["merged"].value == pytest.approx(62.2, rel=0.01)
    assert measured["full"].value == pytest.approx(61.949, rel=1e-3)
    assert measured["full"].error == pytest.approx(1.39128, rel=1e-3)
    assert measured["runtime"].value == pytest.approx(62.2, rel=0.01)
    assert measured["base"].value > 300
    assert {(row.tokens, row.windows) for row in measured.values()} == {(11557, 91)}


def test_divergences_are_those_of_llama_perplexity(result: Comparison) -> None:
    # --kl-divergence says mean KLD 0.0093, same top p 91.6 % for merged Q4_K_M against merged F16
    merged = result.deployments["merged"].divergence
    assert merged is not None
    assert merged.mean == pytest.approx(0.0093, rel=0.05)
    assert merged.same_top == pytest.approx(0.916, abs=0.006)
    base = result.deployments["base"].divergence
    assert base is not None
    assert base.mean > 1
    assert result.deployments["full"].divergence is None


def test_sizes(result: Comparison) -> None:
    size = {name: row.size for name, row in result.deployments.items()}
    assert size["full"] == size["base"]
    assert size["merged"] < 0.32 * size["full"]
    pairs = 28 * 8  # modules times rank
    assert size["runtime"] - size["merged"] >= 4 * pairs * 2 * 256 // 2


def test_command_line(tmp_path: Path) -> None:
    args = ["compare", "--base", BASE, "--lora", ADAPTER, "--text", TEXT, "--context", "64", "--windows", "3"]
    command = [sys.executable, "-m", "loragraft", *map(str, args), "--work-dir", str(tmp_path)]
    table = subprocess.run(command, capture_output=True, text=True, check=True)
    for part in (
        "(a) merged, Q4_K_M",
        "(b) Q4_K_M + adapter",
        "(c) merged, F16",
        "(d) base alone",
        "perplexity",
        "kept",
    ):
        assert part in table.stdout
    measured = json.loads(
        subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout
    )
    assert set(measured["deployments"]) == {"merged", "runtime", "full", "base"}
    assert measured["verdict"] == table.stdout.rstrip().rpartition("\n")[2]
    assert measured["deployments"]["merged"]["perplexity"]["tokens"] == 3 * 31
    assert os.listdir(tmp_path) == []
    assert not any(line.endswith(" ") for line in table.stdout.split("\n"))


def test_nothing_to_keep_and_an_importance_matrix(tmp_path: Path) -> None:
    args = ["compare", "--base", BASE, "--lora", f"{ADAPTER}=0", "--text", TEXT, "-c", "64", "--windows", "2"]
    matrix = data("gguf/llama-kjv.merged.imatrix.gguf")
    command = [
        sys.executable,
        "-m",
        "loragraft",
        *map(str, args),
        "--type",
        "IQ2_XXS",
        "--imatrix",
        str(matrix),
    ]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "nan" not in table
    assert "The adapter changes nothing on this text" in table
    refused = subprocess.run(command[:-2], capture_output=True, text=True)
    assert refused.returncode == 1
    assert "--imatrix" in refused.stderr


def test_no_adapter_is_an_error() -> None:
    with pytest.raises(LoragraftError, match="nothing to compare"):
        lg.compare(BASE, [], "x")


def test_files_go_when_it_fails(tmp_path: Path) -> None:
    with pytest.raises(LoragraftError, match="too short"):
        lg.compare(BASE, [(ADAPTER, 1.0)], "short", work_dir=tmp_path)
    assert os.listdir(tmp_path) == []


BASE_KL = np.full(1000, 1.0)
NOISE = np.random.default_rng(0).normal(0, 0.01, 1000)


@pytest.mark.parametrize(
    ("merged", "runtime", "says"),
    [
        (
            0.1 + NOISE,
            0.02 + NOISE,
            "The adapter at run time keeps more of the fine-tune: 98.0 % of what it changed",
        ),
        (0.02 + NOISE, 0.1 + NOISE, "Merging before quantizing keeps more of the fine-tune: 98.0 %"),
        (0.05 + NOISE, 0.05 - NOISE, "Both keep the fine-tune equally well"),
        (1.5 + NOISE, 1.2 + NOISE, "Neither keeps the fine-tune"),
    ],
)
def test_verdicts(merged: np.ndarray, runtime: np.ndarray, says: str) -> None:
    assert verdict(merged, runtime, BASE_KL).startswith(says)


def test_an_adapter_that_does_nothing() -> None:
    assert verdict(NOISE**2, NOISE**2, np.zeros(1000)).startswith("The adapter changes nothing on this text")
    assert kept(np.full(3, 0.25), np.full(3, 1.0)) == 0.75

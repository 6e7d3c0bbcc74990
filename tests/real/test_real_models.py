"""Real models, against what llama.cpp and transformers computed of them (`make test-real`)."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loragraft as lg
from loragraft.inference.model import Model
from paths import arrays, data
from real.models import MODELS
from tolerances import NATIVE_F32, nmse

pytestmark = pytest.mark.real

TEXT, SHORT, LONG = "shakespeare-valid.txt", 20_000, 60_000
#: How far below our best llama.cpp's choice may be: its activations have 8 bits, so near ties fall either way.
NEAR_TIE = 0.5


def golden(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(data("golden/real-models.json").read_text())[name]
    return record


def path_of(name: str) -> Path:
    folder = os.environ.get("LORAGRAFT_REAL_MODELS")
    if folder is None:
        pytest.skip("name the folder of real models in LORAGRAFT_REAL_MODELS, or run make test-real")
    return Path(folder) / MODELS[name].file


@cache
def exact(name: str) -> Model:
    return lg.load(path_of(name), activations="f32")


@pytest.mark.parametrize("name", MODELS)
def test_texts_are_cut_as_llama_cpp_cuts_them(name: str) -> None:
    text, ids = data(TEXT).read_text()[:SHORT], golden(name)["ids"]
    assert exact(name).tokenizer.encode(text).tolist()[: len(ids)] == ids


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(name: str) -> None:
    """On the same weights, in float32; longer than Gemma's window."""
    logits = exact(name).logits(np.array(golden(name)["ids"], np.int32))
    assert nmse(logits[::100, ::64], arrays("golden/real-models.npz")[name]) < NATIVE_F32


@pytest.mark.parametrize("name", MODELS)
def test_perplexity_is_llama_cpps(name: str) -> None:
    """Both with 8-bit activations."""
    found = lg.load(path_of(name)).perplexity(data(TEXT).read_text()[:LONG], context=1024)
    assert found.value == pytest.approx(golden(name)["perplexity"], rel=0.01)


@pytest.mark.parametrize("name", MODELS)
def test_greedy_text_is_llama_cpps_but_for_near_ties(name: str) -> None:
    for prompt, ids in golden(name)["greedy"].items():
        start = len(exact(name).tokenizer.encode(prompt))
        logits = exact(name).logits(np.array(ids, np.int32))[start - 1 : -1]
        chosen = np.array(ids[start:])
        assert len(chosen) > 40
        lost = logits.max(axis=-1) - logits[np.arange(len(chosen)), chosen]
        assert lost.max() < NEAR_TIE, prompt
        assert (lost == 0).mean() > 0.9, prompt

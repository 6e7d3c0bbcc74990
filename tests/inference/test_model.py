"""`load`: the object a library user works with."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import loragraft as lg
from loragraft.errors import LoragraftError
from paths import arrays, data

BASE, ADAPTER = data("llama-kjv"), data("llama-kjv.shakespeare")


@pytest.fixture(scope="module", params=["native", "reference"])
def tuned(request: pytest.FixtureRequest) -> lg.Model:
    return lg.load(BASE, adapters=[(ADAPTER, 1.0)], backend=request.param)


def test_logits_of_base_and_adapter(tuned: lg.Model) -> None:
    golden = arrays("golden/hf-logits.npz")
    logits = tuned.logits(golden["ids"])
    assert logits.dtype == np.float32
    error = np.square(logits - golden["llama+lora"]).sum() / np.square(golden["llama+lora"]).sum()
    assert error < 1e-6
    np.testing.assert_allclose(tuned.logits(golden["ids"], last_only=True)[0], logits[-1], rtol=0, atol=1e-4)


def test_long_sequences_go_in_batches(tuned: lg.Model) -> None:
    ids = np.random.default_rng(0).integers(0, 2048, 700).astype(np.int32)
    whole = tuned.logits(ids)
    assert whole.shape == (700, 2048)
    np.testing.assert_allclose(whole[:100], tuned.logits(ids[:100]), rtol=0, atol=1e-4)
    for first in (1, 350, 600, 699):
        np.testing.assert_allclose(tuned.logits(ids, first=first), whole[first:], rtol=0, atol=1e-4)
    with pytest.raises(LoragraftError, match="outside the sequence"):
        tuned.logits(ids, first=700)


def test_generation_streams_and_repeats(tuned: lg.Model) -> None:
    stream = tuned.generate("ROMEO:", max_tokens=20, temperature=0.7, seed=5)
    pieces = list(stream)
    assert len(pieces) > 5
    assert len(stream.ids) == 20
    assert tuned.detokenize(stream.ids) == "".join(pieces)
    assert list(tuned.generate("ROMEO:", max_tokens=20, temperature=0.7, seed=5)) == pieces
    drawn = tuned.generate("ROMEO:", max_tokens=20)
    text = "".join(drawn)
    assert "".join(tuned.generate("ROMEO:", max_tokens=20, seed=drawn.seed)) == text


def test_generations_go_on_side_by_side(tuned: lg.Model) -> None:
    """Each is a sequence of its own: none sees what the others, or `logits`, read meanwhile."""
    prompts = ["ROMEO:", "JULIET:"]
    alone = [list(tuned.generate(prompt, max_tokens=6, temperature=0)) for prompt in prompts]
    first, second = (tuned.generate(prompt, max_tokens=6, temperature=0) for prompt in prompts)
    pieces: tuple[list[str], list[str]] = ([next(first)], [])
    tuned.logits([1, 2, 3])
    for _ in range(3):
        pieces[1].append(next(second))
        pieces[0].append(next(first))
    assert [pieces[0] + list(first), pieces[1] + list(second)] == alone


def test_a_generation_that_is_left_frees_its_sequence(tuned: lg.Model) -> None:
    stream = tuned.generate("ROMEO:", max_tokens=6, temperature=0)
    next(stream)
    held = set(tuned.program._lengths)
    assert held
    del stream
    gc.collect()
    assert not held & set(tuned.program._lengths)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_adapters_can_be_changed(backend: lg.inference.model.BackendName) -> None:
    golden = arrays("golden/hf-logits.npz")
    ids = golden["ids"].astype(np.int32)
    model = lg.load(BASE, backend=backend)
    base, size = model.logits(ids), model.size
    began = model.generate("ROMEO:", max_tokens=4, temperature=0)
    before = list(model.generate("ROMEO:", max_tokens=4, temperature=0))
    model.set_adapters([(ADAPTER, 1.0)])
    assert model.size > size
    for expected, found in (("llama+lora", model.logits(ids)), ("llama", base)):
        assert np.square(found - golden[expected]).sum() / np.square(golden[expected]).sum() < 1e-6
    assert list(began) == before, "a generation goes on under the adapters that it began with"
    model.set_adapters([(ADAPTER, 0.5)])
    np.testing.assert_array_equal(
        model.logits(ids[:5]), lg.load(BASE, [(ADAPTER, 0.5)], backend=backend).logits(ids[:5])
    )
    with pytest.raises(LoragraftError, match="but the base model has no such tensor"):
        model.set_adapters([data("starcoder2-bias.pattern")])
    model.set_adapters([])
    assert model.size == size
    np.testing.assert_array_equal(model.logits(ids), base)


def test_whole_tensors_are_changed_at_the_load_alone() -> None:
    saved = data("llama-kjv.embed")
    model = lg.load(BASE)
    with pytest.raises(LoragraftError, match=r"changes whole tensors.*; load the model with it"):
        model.set_adapters(saved)
    model = lg.load(BASE, [saved, (ADAPTER, 0.5)])
    with_both = model.logits([1, 2, 3])
    with pytest.raises(LoragraftError, match=r"must stay in use: expected strength 1\.0"):
        model.set_adapters([ADAPTER])
    model.set_adapters([saved])
    assert np.abs(model.logits([1, 2, 3]) - with_both).max() > 0.01
    model.set_adapters([saved, (ADAPTER, 0.5)])
    np.testing.assert_array_equal(model.logits([1, 2, 3]), with_both)


def test_greedy_takes_the_likeliest(tuned: lg.Model) -> None:
    stream = tuned.generate("What say you,", max_tokens=5, temperature=0)
    list(stream)
    ids = tuned.tokenize("What say you,").tolist()
    for token in stream.ids:
        assert token == tuned.logits(ids).argmax(axis=1)[-1]
        ids.append(token)


def test_scale_matters() -> None:
    ids = [0, 5, 100, 200]
    base, off, half = (
        lg.load(BASE, adapters=adapters).logits(ids) for adapters in ([], [(ADAPTER, 0.0)], [(ADAPTER, 0.5)])
    )
    np.testing.assert_array_equal(base, off)
    assert np.abs(half - base).max() > 0.1


def test_running_perplexities_of_llama_perplexity(tuned: lg.Model) -> None:
    # llama-perplexity -c 256 on the merged F16 model prints [1]40.7135,[2]43.9493,[3]50.4505
    text = data("shakespeare-valid.txt").read_text()
    for windows, expected in ((1, 40.7135), (3, 50.4505)):
        assert tuned.perplexity(text, context=256, windows=windows).value == pytest.approx(expected, rel=1e-3)


def test_what_cannot_be(tuned: lg.Model) -> None:
    with pytest.raises(LoragraftError, match="longer than the model's context: found 1025 tokens"):
        tuned.generate([0] * 1025)
    with pytest.raises(LoragraftError, match="temperature: out of range"):
        tuned.generate("x", temperature=-1)
    with pytest.raises(LoragraftError, match="ids: not a list of tokens: found shape"):
        tuned.logits([])
    with pytest.raises(LoragraftError, match="no such backend: found abacus, expected native or reference"):
        lg.load(BASE, backend="abacus")  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_predictions_that_are_no_numbers_are_an_error(backend: lg.load.BackendName) -> None:
    broken = lg.load(BASE, adapters=[(ADAPTER, 1e30)], backend=backend)
    with np.errstate(all="ignore"):
        for use in (
            lambda: broken.logits([1, 2, 3]),
            lambda: list(broken.generate("x", max_tokens=2, temperature=0)),
            lambda: broken.perplexity("word " * 200, context=16),
        ):
            with pytest.raises(LoragraftError, match="predictions are not finite: found nan; a weight holds"):
                use()


def test_ids_outside_of_the_vocabulary(tuned: lg.Model) -> None:
    for wrong in (-1, 2048, 2**31 - 1):
        with pytest.raises(LoragraftError, match=f"found {wrong}"):
            tuned.logits([1, wrong])


def test_a_full_context_ends_a_generation(tuned: lg.Model) -> None:
    stream = tuned.generate([5] * 1020, max_tokens=100, temperature=0)
    list(stream)
    assert stream.limit == 4
    assert len(stream.ids) <= 4

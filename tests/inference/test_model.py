"""`load`: the object a library user works with."""

from __future__ import annotations

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
    with pytest.raises(LoragraftError, match="outside of the sequence"):
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


def test_a_generation_is_not_continued_on_another_sequence(tuned: lg.Model) -> None:
    """Its cache would be the other's: better no text than a wrong one."""
    alone = list(tuned.generate("ROMEO:", max_tokens=4, temperature=0))
    first = tuned.generate("ROMEO:", max_tokens=4, temperature=0)
    second = tuned.generate("JULIET:", max_tokens=4, temperature=0)
    assert next(first) == alone[0]
    next(second)
    with pytest.raises(LoragraftError, match="another sequence was begun on this model since"):
        list(first)
    unstarted = tuned.generate("ROMEO:", max_tokens=4, temperature=0)
    tuned.logits([1, 2, 3])
    assert list(unstarted) == alone


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

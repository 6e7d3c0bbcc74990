"""The conformance report on a ModelOpt checkpoint that llama.cpp gets wrong, and what the wrong orders cost."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

import loragraft as lg
from loragraft.errors import AdapterError, LoragraftError
from loragraft.graph.llama_cpp import COMMIT, Outcome
from loragraft.graph.misorder import Mistake
from loragraft.verbs.check import PUBLISHED, RIGHT, WITHOUT, Conformance, check, save_picture
from paths import data
from peft_golden import adapter_folder, base_folder


@pytest.fixture(scope="module")
def report() -> Conformance:
    text = data("shakespeare-valid.txt").read_text()[:6000]
    adapters = [(data("starcoder2-bias.pattern"), 1.0)]
    return check(
        data("starcoder2-bias-nvfp4"),
        adapters,
        text=lg.Measurement(text, context=256, windows=2),
    )


def test_every_linear_is_listed_with_its_order(report: Conformance) -> None:
    linears = {linear.name: linear for linear in report.linears}
    assert len(linears) == 3 * 6 + 2
    up = linears["blk.0.ffn_up"]
    assert (up.type, up.ranks, up.bias) == ("NVFP4", [8], True)
    assert up.order == ["GEMM", "weight scale", "LoRA", "bias"]
    assert up.scale == pytest.approx((5.78e-5, 5.78e-5), rel=1e-2)
    assert (up.llama_cpp, up.source) == (
        Outcome.DROPS,
        "models/starcoder2.cpp:126-129",
    )
    assert linears["blk.0.attn_q"].llama_cpp is Outcome.RIGHT
    assert linears["token_embd"].order == ["lookup"]
    assert (linears["output"].weight, linears["output"].scale) == ("token_embd.weight", None)


def test_wrong_orders_cost_what_theory_says(report: Conformance) -> None:
    runs = {run.name: run for run in report.runs}
    wrong = list(Mistake)[:5]  # of those that need no DoRA and no architectural scale
    assert list(runs) == [RIGHT, WITHOUT, PUBLISHED, *wrong]
    assert report.tokens == 2 * 127
    assert runs[RIGHT].mean_kl == 0
    assert runs[RIGHT].same_top == 1
    # Of an adapter before the scale, s = 5e-5 is left: the same as no adapter.
    lost = runs[Mistake.LORA_BEFORE_SCALE]
    assert lost.perplexity == pytest.approx(runs[WITHOUT].perplexity, rel=1e-3)
    assert lost.mean_kl == pytest.approx(runs[WITHOUT].mean_kl, rel=1e-2)
    assert lost.linears == 18
    assert runs[PUBLISHED].linears == 6
    for mistake in wrong:
        assert runs[mistake].perplexity > 1.1 * runs[RIGHT].perplexity
        assert runs[mistake].mean_kl > 0.1


def test_dora_has_three_mistakes_of_its_own(tmp_path: Path) -> None:
    case = "qwen2+dora"
    base, adapter = base_folder(case, tmp_path / "base"), adapter_folder(case, tmp_path / "adapter")
    report = check(base, [adapter], text=lg.Measurement("DOGHELPFACTLINE" * 30, context=64, windows=2))
    linears = {linear.name: linear for linear in report.linears}
    assert linears["blk.0.attn_q"].order == ["GEMM", "LoRA", "DoRA scale", "bias"]
    assert linears["output"].order == ["GEMM"]
    assert linears["blk.0.ffn_up"].llama_cpp is Outcome.REFUSES
    runs = {run.name: run for run in report.runs}
    wrong = [Mistake.DORA_SCALE_BEFORE_LORA, Mistake.BIAS_BEFORE_DORA_SCALE, Mistake.DORA_SCALE_OMITTED]
    assert list(runs) == [RIGHT, WITHOUT, *wrong]
    assert [runs[mistake].linears for mistake in wrong] == [14, 6, 14]
    assert all(runs[mistake].mean_kl > 1e-4 for mistake in wrong)
    # y = g (s W x + ...) + b: without g it is off by (1 - 1 / g) of what is not bias; g is near 1 for all rows here
    assert 0.01 < report.local[Mistake.DORA_SCALE_OMITTED]["blk.0.ffn_up"] < 0.5


def test_without_the_adapters_is_the_base_itself(tmp_path: Path) -> None:
    """Also where they replace whole tensors; where they resize the vocabulary, it cannot read the text."""
    base, text = base_folder("llama", tmp_path / "base"), "DOGHELPFACTLINE" * 30
    saved, resized = (adapter_folder(f"llama+{kind}", tmp_path / kind) for kind in ("saved", "resized"))
    plain = {run.name: run for run in check(base, text=lg.Measurement(text, context=64, windows=2)).runs}
    adapted = check(base, [saved], text=lg.Measurement(text, context=64, windows=2))
    runs = {run.name: run for run in adapted.runs}
    assert runs[WITHOUT].perplexity == plain[RIGHT].perplexity
    assert runs[WITHOUT].mean_kl > 1e-3
    assert any("there it has to be merged" in note for note in adapted.notes)
    assert [
        run.name for run in check(base, [resized], text=lg.Measurement(text, context=64, windows=2)).runs
    ] == [RIGHT]


def test_local_errors_follow_the_closed_forms(report: Conformance) -> None:
    for linear in report.linears:
        if linear.scale is None:
            continue
        s = linear.scale[0]
        local = {mistake: errors[linear.name] for mistake, errors in report.local.items()}
        # (1 - s) Wq x against s (s - 1) Wq x: their ratio is 1 / s.
        ratio = local[Mistake.SCALE_OMITTED] / local[Mistake.SCALE_TWICE]
        assert ratio == pytest.approx(1 / s, rel=1e-3)
        # The errors of LoRA and bias add up as vectors.
        both = local[Mistake.BOTH_BEFORE_SCALE]
        lora, bias = local[Mistake.LORA_BEFORE_SCALE], local[Mistake.BIAS_BEFORE_SCALE]
        assert abs(lora - bias) < both < lora + bias


def test_without_a_text_nothing_is_measured() -> None:
    report = check(data("starcoder2-bias-nvfp4"))
    assert report.runs == []
    assert report.local == {}
    with pytest.raises(LoragraftError, match=r"x.png: nothing to draw"):
        save_picture(report, Path("x.png"))


def test_a_model_without_scales_has_no_wrong_order() -> None:
    text = data("shakespeare-valid.txt").read_text()[:3000]
    report = check(data("llama-kjv"), text=lg.Measurement(text, context=64, windows=1))
    assert [run.name for run in report.runs] == [RIGHT]
    assert {linear.llama_cpp for linear in report.linears} == {Outcome.RIGHT}


def test_an_adapter_for_another_model_is_refused() -> None:
    with pytest.raises(AdapterError):
        check(data("llama-kjv"), [(data("starcoder2-bias.pattern"), 1.0)])


@pytest.mark.parametrize("name", ["errors.png", "errors.svg"])
def test_the_picture(report: Conformance, tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    save_picture(report, tmp_path / name)
    start = (tmp_path / name).read_bytes()[:8]
    assert start == b"\x89PNG\r\n\x1a\n" or start.startswith(b"<?xml")
    with pytest.raises(LoragraftError, match="no such picture format"):
        save_picture(report, tmp_path / "errors.docx")


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from click.testing import CliRunner

    from loragraft.cli import app

    text = tmp_path / "text.txt"
    text.write_text(data("shakespeare-valid.txt").read_text()[:1500])
    arguments = [
        "check",
        str(data("starcoder2-bias-nvfp4")),
        "--text",
        str(text),
        "--context",
        "64",
        "--windows",
        "1",
    ]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0
    assert "GEMM, weight scale, bias" in shown.stdout
    assert f"llama.cpp {COMMIT}: drops the scale on 6" in shown.stdout
    assert "weight scale applied twice" in shown.stdout
    parsed = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert parsed["runs"][0]["name"] == RIGHT
    assert math.isfinite(parsed["runs"][0]["perplexity"])
    assert np.isclose(parsed["local"]["weight scale applied twice"]["blk.0.attn_q"], 1, atol=0.3)
    wrong = CliRunner().invoke(app, ["check", "model.gguf", "--plot", "x.png"])
    assert wrong.exit_code == 2

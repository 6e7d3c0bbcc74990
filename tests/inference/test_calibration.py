"""The text to round on: plain files, and conversations in the forms that tuning data has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loragraft.errors import LoragraftError, QuantizeError, TextError
from loragraft.formats.gguf.values import Value
from loragraft.formats.source import ModelSource
from loragraft.inference.calibration import calibration_windows
from loragraft.inference.tokenizer import Tokenizer
from loragraft.opening import open_model
from loragraft.streaming.options import QuantizeOptions
from loragraft.verbs.quantize import quantize
from paths import data

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CHAT = [{"role": "user", "content": "Who art thou?"}, {"role": "assistant", "content": "A king."}]


@pytest.fixture(scope="module")
def model() -> ModelSource:
    found = open_model(data("models/llama-kjv-nvfp4"))
    found.metadata["tokenizer.chat_template"] = Value.string(TEMPLATE)
    return found


def text_of(model: ModelSource, windows: Any) -> str:
    tokenizer = Tokenizer(model.metadata)
    return "".join(tokenizer.decode(window, show_special=True) for window in windows)


@pytest.mark.parametrize(
    "entry",
    [
        {"messages": CHAT},
        {"conversations": CHAT},
        {
            "conversations": [
                {"from": "human", "value": "Who art thou?"},
                {"from": "gpt", "value": "A king."},
            ]
        },
        {"prompt": "Who art thou?", "completion": "A king."},
        {"prompt": CHAT[:1], "completion": CHAT[1:]},
        {"text": "<user>Who art thou?\n<assistant>A king.\n", "meta": 1},
    ],
)
def test_conversations_go_through_the_chat_template(model: ModelSource, tmp_path: Path, entry: Any) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_text(f"{json.dumps(entry)}\n\n" * 8)
    windows, _ = calibration_windows(model, [file], 4, 16, held_out=0)
    assert windows.shape == (4, 16)
    text = text_of(model, windows)
    assert "Who art thou?\n<assistant>A king.\n" in text
    assert "<assistant><" not in text  # no reply is left open


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is nested too deeply"),
        ('{"question": "?"}', "line 2: is neither a conversation nor a text: found question"),
        ("[1]", "line 2 does not hold a JSON object: found list"),
        ('{"messages": [1]}', "line 2: has an entry that is not a message"),
    ],
)
def test_a_line_that_is_none_is_named(model: ModelSource, tmp_path: Path, line: str, says: str) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_text(f'{{"text": "a"}}\n{line}\n')
    with pytest.raises(TextError, match=says):
        calibration_windows(model, [file], 1, 4)


def test_windows_are_spread_over_all_files(model: ModelSource, tmp_path: Path) -> None:
    files = []
    for number, word in enumerate(("Lord ", "king ", "sea ")):
        files.append(tmp_path / f"{number}.txt")
        files[-1].write_text(word * 400)
    windows, held_out = calibration_windows(model, files, 6, 16)
    assert windows.shape == (6, 16)
    texts = [text_of(model, [window]) for window in windows]
    for word in ("Lord", "king", "sea"):
        assert any(word in text for text in texts)
    whole, others = calibration_windows(model, files, 10**6, 16)
    assert len(whole) > 40
    assert np.array_equal(others, held_out)
    assert len(others) == 4
    everything, none = calibration_windows(model, files, 10**6, 16, held_out=0)
    assert (len(everything), len(none)) == (len(whole) + 4, 0)
    short, few = calibration_windows(model, files, 10**6, 16 * len(everything) // 9)
    assert (len(short), len(few)) == (8, 1)
    tokenizer = Tokenizer(model.metadata)
    assert tokenizer.add_bos
    assert np.all(windows[:, 0] == tokenizer.bos)


def test_a_text_that_is_too_short_is_refused(model: ModelSource, tmp_path: Path) -> None:
    file = tmp_path / "short.txt"
    file.write_text("In the beginning")
    with pytest.raises(TextError, match="too short to calibrate on"):
        calibration_windows(model, [file], 4)


def test_a_model_without_a_template_cannot_read_conversations(tmp_path: Path) -> None:
    plain = open_model(data("models/llama-kjv-nvfp4"))
    plain.metadata.pop("tokenizer.chat_template", None)
    file = tmp_path / "chats.jsonl"
    file.write_text(json.dumps({"messages": CHAT}))
    with pytest.raises(LoragraftError, match="has no chat template"):
        calibration_windows(plain, [file], 4)


def test_calibrating_for_floats_or_beside_a_matrix_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("In the beginning " * 400)
    base = data("gguf/llama-kjv.merged-f16.gguf")
    with pytest.raises(QuantizeError, match="nothing to calibrate"):
        quantize(base, tmp_path / "out.gguf", "BF16", options=QuantizeOptions(calibrate=[file]))
    with pytest.raises(LoragraftError, match="cannot be used with an importance matrix"):
        QuantizeOptions(calibrate=[file], imatrix="x")
    with pytest.raises(LoragraftError, match="needs a calibration"):
        QuantizeOptions(general=[file])


def test_what_other_text_loses_is_told(tmp_path: Path) -> None:
    text, other = data("text/shakespeare-train.txt"), data("text/kjv-speeches-valid.txt")
    options = QuantizeOptions(calibrate=[text], calibrate_windows=4, general=[other])
    report = quantize(data("gguf/llama-kjv.merged-f16.gguf"), tmp_path / "out.gguf", "Q4_0", options=options)
    told = [note for note in report.notes if note.startswith("KL ")]
    assert ["the text that were held out" in note for note in told] == [True, False]
    assert "on 4 windows of kjv-speeches-valid.txt; rounding to nearest: 0.0" in told[1]


def test_a_line_is_a_line(model: ModelSource, tmp_path: Path) -> None:
    """JSON allows U+2028 and U+0085 within a text, which Python takes for the ends of lines."""
    file = tmp_path / "chats.jsonl"
    file.write_text(json.dumps({"text": "a\u2028b\u0085c " * 40}, ensure_ascii=False), "utf-8")
    assert calibration_windows(model, [file], 1, 16)[0].shape == (1, 16)


def test_small_values_are_bounded(model: ModelSource, tmp_path: Path) -> None:
    """Python makes 64 bytes of `[]`."""
    file = tmp_path / "chats.jsonl"
    file.write_text('{"a":[' + "[]," * 6_000_000 + "[]]}")
    with pytest.raises(TextError, match="line 1 holds too many small values"):
        calibration_windows(model, [file], 1, 16)

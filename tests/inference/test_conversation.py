"""A conversation: what is remembered when something fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import loragraft as lg
from loragraft.errors import LoragraftError
from loragraft.inference.conversation import Conversation
from paths import data
from served import chat_model, scaled_adapter


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> lg.Model:
    return lg.load(chat_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def talk(model: lg.Model) -> Iterator[Conversation]:
    poet = ("poet", data("llama-kjv.shakespeare"), 1.0)
    with Conversation(model, [poet], temperature=0, max_tokens=8) as talk:
        yield talk


def test_an_adapter_stays_when_another_of_its_name_cannot_be_loaded(
    talk: Conversation, tmp_path: Path
) -> None:
    said = "".join(talk.say("What say you?"))
    broken = scaled_adapter(tmp_path / "broken", 1.0, 1)
    (broken / "adapter_config.json").write_text("{")
    with pytest.raises(LoragraftError):
        talk.load("poet", broken)
    talk.restart()
    assert "".join(talk.say("What say you?")) == said
    talk.load("poet", scaled_adapter(tmp_path / "other", 3.0, 2))
    talk.restart()
    assert "".join(talk.say("What say you?")) != said


def test_a_message_without_a_reply_is_forgotten(talk: Conversation) -> None:
    talk.set_strength("poet", 1e38)
    with pytest.raises(LoragraftError, match="not finite"):
        list(talk.say("What say you?"))
    talk.set_strength("poet", 1.0)
    said = "".join(talk.say("And you?"))
    assert talk.messages == [
        {"role": "user", "content": "And you?"},
        {"role": "assistant", "content": said},
    ]


def test_a_reply_that_was_stopped_goes_on_nowhere(talk: Conversation) -> None:
    turn = talk.say("What say you?")
    begun = next(turn)
    turn.cancel()
    assert list(turn) == []
    assert talk.messages[-1] == {"role": "assistant", "content": begun}
    assert "".join(talk.again()).startswith(begun)

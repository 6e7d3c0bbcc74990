"""What an adapter was trained for (`task_type` of adapter_config.json): to generate text, or beside another head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loragraft.adapters.peft import PeftTensors
from loragraft.errors import AdapterError
from loragraft.formats.peft import CONFIG

#: PEFT's task types (utils/peft_types.py) in words.
_TASKS = {
    "SEQ_CLS": "a sequence classifier",
    "TOKEN_CLS": "a token classifier",
    "QUESTION_ANS": "a model that finds answers in a text",
    "SEQ_2_SEQ_LM": "a sequence-to-sequence model",
    "FEATURE_EXTRACTION": "a model of features (embeddings)",
}
_HEADS = frozenset(["score", "classifier", "qa_outputs"])


def check_task(folder: Path, config: Mapping[str, Any], tensors: PeftTensors, notes: list[str]) -> None:
    """A note if the adapter was trained for anything but generating text. Raises AdapterError if it holds the head of a
    classifier."""
    task = config.get("task_type")
    what = _TASKS.get(str(task))
    heads = [name for name in tensors.trained if name.split(".")[-2] in _HEADS]
    if heads:
        raise AdapterError(
            folder,
            f"is {what or 'a classifier'} (task_type {task}, {', '.join(heads[:2])}): GGUF generation has no place for "
            "its head",
            expected="task_type CAUSAL_LM",
            hint=f"run it with transformers; or to have the rest of it, load and save it again as CAUSAL_LM without "
            f"modules_to_save of {CONFIG}",
        )
    if what is not None:
        notes.append(f"{folder}: was trained as {what} (task_type {task}), not to generate text")

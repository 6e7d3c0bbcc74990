"""The text that a model is rounded on: files of plain text or of conversations, as windows of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from loragraft.arrays import Ids
from loragraft.errors import QuantizeError, TextError, naming
from loragraft.formats.jsonfile import parse_json
from loragraft.formats.source import ModelSource
from loragraft.formats.textfile import MAX_TEXT, decoded, read_file
from loragraft.inference.chat import Message, conversation_text, with_bos
from loragraft.inference.devices import accelerator_named
from loragraft.inference.tokenizer import Tokenizer
from loragraft.progress import Noted
from loragraft.quants.accelerator import using
from loragraft.streaming.options import QuantizeOptions
from loragraft.units import count_text, plural

if TYPE_CHECKING:
    from loragraft.streaming.plan import WritePlan
    from loragraft.streaming.spreading import Spreading
    from loragraft.streaming.writing import WholeTensors

#: Tokens of a window.
CONTEXT = 256
#: Windows that are held out to judge by, of the text and of another.
HELD_OUT = 4
#: How ShareGPT calls the roles.
_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


def calibration_windows(
    model: ModelSource, files: Sequence[Path], windows: int, context: int = CONTEXT, held_out: int = HELD_OUT
) -> tuple[Ids, Ids]:
    """Up to `windows` windows of `context` tokens, int32 [n, context], spread evenly over `files`, and up to `held_out`
    others, fewer from a short text; each starts with BOS if the model wants one.

    A file that ends in .jsonl has a conversation on each line (`messages`; `conversations`; `prompt` and `completion`)
    or a `text`; conversations go through the model's chat template. Others are plain text. Raises TextError for files
    that hold less than a window or lines of another kind.
    """
    tokenizer = Tokenizer(model.metadata, model.path)
    ids = np.concatenate([part for file in files for part in _tokens(model, tokenizer, file)])
    count = len(ids) // context
    if not count:
        raise TextError(
            files[0],
            "too short to calibrate on",
            found=plural(len(ids), "token"),
            expected=f"{count_text(context)} or more",
        )
    all_windows = ids[: count * context].reshape(count, context).copy()
    if tokenizer.add_bos and tokenizer.bos is not None:
        all_windows[:, 0] = tokenizer.bos
    kept_back = _spread(np.arange(count), min(held_out, count // 8))
    chosen = _spread(np.setdiff1d(np.arange(count), kept_back), windows)
    return all_windows[chosen], all_windows[kept_back]


def _spread(numbers: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    """`most` of them, spread evenly, or all."""
    if len(numbers) <= most:
        return numbers
    places = (np.arange(most) + 0.5) * (len(numbers) / max(most, 1))
    return np.asarray(numbers[places.astype(np.int64)])


def calibrated(
    model: ModelSource,
    plan: WritePlan,
    options: QuantizeOptions,
    *,
    threads: int,
    spread: Spreading | None = None,
    replan: Callable[[], WritePlan],
    progress: Noted,
) -> tuple[Callable[[WholeTensors], None], bytes]:
    """What rounds the layers of `plan` on the text that the options name, before the rest is written; and what of the
    text decides the bytes. Raises QuantizeError where there is nothing to round."""
    if plan.target.is_float:
        raise QuantizeError(
            model.path,
            "there is nothing to calibrate",
            found=f"type {plan.target}",
            expected="a quantized type",
        )
    if spread is not None and options.calibrate_device != "cpu":
        raise QuantizeError(
            "calibrate_device",
            "works on one machine; workers round on their CPUs",
            found=options.calibrate_device,
            hint="leave one of --workers and --calibrate-device out",
        )
    windows, kept_back = calibration_windows(model, options.calibrate, options.calibrate_windows)
    held_out = {"the text that were held out": kept_back}
    if options.general:
        general, _ = calibration_windows(model, options.general, HELD_OUT, held_out=0)
        held_out[" and ".join(path.name for path in options.general)] = general

    accelerator = accelerator_named(options.calibrate_device)

    def first(tensors: WholeTensors) -> None:
        from loragraft.backends.cpu.program import NativeBackend
        from loragraft.streaming.calibrated import Hands, round_layers
        from loragraft.streaming.calibration import Calibration

        how = Calibration(windows, held_out=held_out)
        hands = None if spread is None else Hands(spread.crew, replan, spread.threads)
        with naming(model.path), using(accelerator):
            report = round_layers(
                plan, how, NativeBackend(), tensors, threads=threads, hands=hands, progress=progress
            )
        for note in report.notes():
            progress.note(note)

    return first, windows.tobytes() + kept_back.tobytes()


def _tokens(model: ModelSource, tokenizer: Tokenizer, file: Path) -> Iterator[Ids]:
    text = decoded(read_file(file, MAX_TEXT, TextError), file, TextError)
    if file.suffix.lower() != ".jsonl":
        yield tokenizer.encode(text)
        return
    for number, line in enumerate(
        text.split("\n"), 1
    ):  # `splitlines` would split at what JSON allows within a text
        if not line.strip():
            continue
        said = _entry(parse_json(line.encode(), file, f"line {number}", TextError), f"{file}, line {number}")
        if isinstance(said, str):
            yield tokenizer.encode(said)
        else:
            chat = conversation_text(model, tokenizer, said, open_reply=False)
            yield with_bos(tokenizer, tokenizer.encode(chat, add_special=False, parse_special=True))


def _entry(entry: Mapping[str, Any], place: str) -> str | list[Message]:
    """A text, or the messages of a conversation."""
    match entry:
        case {"messages": [*messages]}:
            return [_message(one, place) for one in messages]
        case {"conversations": [*messages]}:
            return [_message(one, place) for one in messages]
        case {"prompt": str() as prompt, "completion": str() as completion}:
            return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        case {"prompt": [*prompt], "completion": [*completion]}:
            return [_message(one, place) for one in (*prompt, *completion)]
        case {"text": str() as text}:
            return text
    raise TextError(
        place,
        "is neither a conversation nor a text",
        found=", ".join(list(entry)[:5]),
        expected="messages, conversations, prompt and completion, or text",
    )


def _message(entry: Any, place: str) -> Message:
    match entry:
        case {"role": str()}:
            return dict(entry)
        case {"from": str() as sender, "value": str() as value}:
            return {"role": _ROLES.get(sender, sender), "content": value}
    raise TextError(
        place,
        "has an entry that is not a message",
        found=", ".join(list(entry)[:5]) if isinstance(entry, Mapping) else type(entry).__name__,
        expected="role and content",
    )

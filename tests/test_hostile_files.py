"""Files whose header is well formed and whose content lies: every verb does its work, or raises one line that names the
file; in bounded memory and time."""

from __future__ import annotations

import json
import random
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hostile_models as hostile
import loragraft as lg
from loragraft.errors import LoragraftError
from loragraft.formats.gguf.values import Value, ValueType
from small_models import LAYERS

U32, STRING, FLOAT = ValueType.UINT32, ValueType.STRING, ValueType.FLOAT32


@contextmanager
def bounded(seconds: int = 20, memory: int = 1 << 30) -> Iterator[None]:
    """No more than so much processor time and memory, beyond what the process has already; and no waiting for ever."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError

    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = {number: signal.signal(number, late) for number in (signal.SIGALRM, signal.SIGPROF)}
    resource.setrlimit(resource.RLIMIT_AS, (mapped + memory, hard))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.alarm(15 * seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        for number, handler in before.items():
            signal.signal(number, handler)


def refusal(work: Callable[[], object], *files: Path) -> str | None:
    """What `work` was refused with, in one line that names one of `files`; None if it was done."""
    message = None
    try:
        with bounded(), np.errstate(all="ignore"):
            work()
    except LoragraftError as error:
        message = str(error)
    if message is not None:
        assert "\n" not in message
        assert len(message) < 6000
        assert any(str(file) in message for file in files), message
    return message


def of_model(path: Path, folder: Path) -> dict[str, Callable[[], object]]:
    """What one does with a model, writing into `folder`, which is to be empty but for what is finished."""
    loaded = lambda: lg.load(path, threads=1)  # noqa: E731
    return {
        "inspect": lambda: json.dumps(lg.inspect(path).as_json(), allow_nan=False),
        "quantize": lambda: lg.quantize(path, folder / "quantized", "Q4_K_M", threads=1),
        "merge": lambda: lg.merge(path, [], folder / "merged", type="BF16", threads=1),
        "split": lambda: lg.split(path, folder / "split"),
        "export": lambda: lg.export(path, folder / "exported", threads=1),
        "check": lambda: lg.check(path),
        "generate": lambda: list(loaded().generate("the", max_tokens=2, temperature=0)),
        "imatrix": lambda: lg.imatrix(path, lg.Measurement(hostile.TEXT, context=8, windows=1, threads=1)),
    }


#: Changed metadata (None: removed) by key, without "llama."; the verb that refuses it, and what it says.
LIES: dict[str, tuple[str, Value | None, str, str]] = {
    "layers-2^31": ("block_count", Value.u32(2**31), "export", "llama.block_count: bad metadata value"),
    "head-of-2^31": ("attention.key_length", Value.u32(2**31 - 2), "generate", "dimension_count"),
    "width-2^31": ("embedding_length", Value.u32(2**31 - 8), "generate", "llama.rope.dimension_count"),
    "experts-2^24": ("expert_count", Value.u32(2**24), "export", "llama.expert_count"),
    "heads-as-words": ("attention.head_count", Value.strings(["four"]), "generate", "head_count: bad"),
    "heads-of-lists": (
        "attention.head_count",
        Value(ValueType.ARRAY, [Value.strings(["x"])], ValueType.ARRAY),
        "generate",
        "head_count: bad",
    ),
    "no-heads-listed": (
        "attention.head_count",
        Value.numbers(U32, []),
        "generate",
        "head_count: does not give",
    ),
    "heads-nan": ("attention.head_count", Value.numbers(FLOAT, [np.nan]), "generate", "head_count"),
    "theta-0": ("rope.freq_base", Value.f32(0), "generate", "freq_base: bad metadata value: found 0.0"),
    "eps-negative": ("attention.layer_norm_rms_epsilon", Value.f32(-1), "generate", "epsilon: bad"),
    "context-as-list": ("context_length", Value.numbers(U32, [64]), "generate", ""),
    "scaling-no-word": ("rope.scaling.type", Value.u32(1), "export", "scaling.type: bad metadata value"),
    "tokens-a-number": ("tokenizer.ggml.tokens", Value.u32(7), "generate", "tokens has a wrong type"),
    "types-too-few": (
        "tokenizer.ggml.token_type",
        Value.numbers(ValueType.INT32, [1]),
        "export",
        "token_type is not as long as tokenizer.ggml.tokens: found 1",
    ),
    "types-nan": (
        "tokenizer.ggml.token_type",
        Value.numbers(FLOAT, [np.nan] * len(hostile.TOKENS)),
        "generate",
        "token_type has a wrong type: found ARRAY of FLOAT32, expected an array of integers",
    ),
    "merges-numbers": (
        "tokenizer.ggml.merges",
        Value.numbers(U32, [1]),
        "generate",
        "merges has a wrong type",
    ),
    "merge-of-one": (
        "tokenizer.ggml.merges",
        Value.strings(["th"]),
        "export",
        "'th' does not have two parts",
    ),
    "bos-a-float": ("tokenizer.ggml.bos_token_id", Value.f32(0), "export", "bos_token_id has a wrong type"),
    "no-tokens": ("tokenizer.ggml.tokens", None, "export", "is not as long as tokenizer.ggml.tokens"),
    "more-tokens": (
        "tokenizer.ggml.tokens",
        Value.strings([*hostile.TOKENS, "more"]),
        "generate",
        "token_type is not as long",
    ),
    "token-not-text": (
        "tokenizer.ggml.tokens",
        Value.strings([*hostile.TOKENS[:-1], "\udcff"]),
        "export",
        "is not UTF-8",
    ),
}


@pytest.mark.parametrize("case", LIES)
def test_a_lie_in_the_metadata(tmp_path: Path, case: str) -> None:
    key, value, verb, says = LIES[case]
    small = hostile.model()
    key = key if key.startswith("tokenizer.") else f"llama.{key}"
    small.metadata.pop(key, None)
    if value is not None:
        small.metadata[key] = value
    path = hostile.gguf(tmp_path / "lies.gguf", small)
    message = refusal(of_model(path, tmp_path)[verb], path)
    assert says in (message or ""), message
    assert message or not says


def test_tensors_that_do_not_belong_together(tmp_path: Path) -> None:
    small = hostile.model()
    small.arrays["output.weight"] = small.arrays["output.weight"][:3]
    path = hostile.gguf(tmp_path / "lies.gguf", small)
    message = refusal(of_model(path, tmp_path)["generate"], path)
    assert "output.weight: predicts a different number of tokens than the embedding has: found 3" in str(
        message
    )
    small = hostile.model("qwen3moe")
    small.arrays["blk.1.ffn_gate_inp.weight"] = np.ones((9, 32), np.float32)
    path = hostile.gguf(tmp_path / "lies.gguf", small)
    message = refusal(of_model(path, tmp_path)["generate"], path)
    assert "blk.1.ffn_gate_inp.weight is of a different number of experts: found 4, expected 9" in str(
        message
    )


@pytest.mark.parametrize("tensor", ["blk.0.attn_q.weight", "blk.0.attn_norm.weight", "token_embd.weight"])
def test_no_weight_that_is_not_finite_is_exported(tmp_path: Path, tensor: str) -> None:
    small = hostile.model()
    small.arrays[tensor].flat[-1] = np.inf
    path = hostile.gguf(tmp_path / "infinite.gguf", small)
    message = refusal(of_model(path, tmp_path)["export"], path)
    assert f"tensor '{tensor}', row " in str(message)
    assert "is not finite" in str(message)


def test_half_a_surrogate_pair_is_no_text(tmp_path: Path) -> None:
    jsons = hostile.checkpoint_jsons()
    jsons["tokenizer.json"]["model"]["merges"][0] = ["t", "\ud800"]
    base, _ = hostile.checkpoint(tmp_path, jsons)
    message = refusal(lambda: lg.convert(base, tmp_path / "out.gguf"), base)
    assert (
        message
        == f"{base / 'tokenizer.json'}: the file holds half of a surrogate pair, which is not a character; "
        "was it copied whole, or edited? Take it again from where it comes from"
    )


def test_a_message_is_short_and_printable(tmp_path: Path) -> None:
    """A terminal obeys control sequences, and a name may have any length."""
    small = hostile.model()
    small.metadata["tokenizer.ggml.model"] = Value.string("\x1b[2J" + "x" * 100_000)
    path = hostile.gguf(tmp_path / "long.gguf", small)
    message = str(refusal(of_model(path, tmp_path)["generate"], path))
    assert r"found \x1b[2Jxxxx" in message
    assert len(message) < 1000


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize(
    ("expression", "says"),
    [("([a-z_.0-9]+)+X", None), ("(?i)Q_PROJ", "(?i) is not supported"), ("(", "missing")],
)
def test_a_strangers_expression(tmp_path: Path, key: str, expression: str, says: str | None) -> None:
    jsons = hostile.checkpoint_jsons()
    jsons["adapter_config.json"][key] = {expression: 3}
    base, adapter = hostile.checkpoint(tmp_path, jsons)
    message = refusal(lambda: lg.merge(base, [adapter], tmp_path / "out.gguf", threads=1), adapter)
    assert message is None if says is None else says in str(message), message


def test_a_version_of_many_digits(tmp_path: Path) -> None:
    jsons = hostile.checkpoint_jsons()
    jsons["adapter_config.json"]["peft_version"] = "9" * 5000 + ".1"
    base, adapter = hostile.checkpoint(tmp_path, jsons)
    refusal(lambda: lg.merge(base, [adapter], tmp_path / "out.gguf", threads=1), adapter)


# ---- anything, anywhere ----

INTEGERS = [0, 1, 2, 3, 7, 8, 255, 4095, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1]
NUMBERS = [0.0, -1.0, 0.5, 1e-45, 1e38, float("nan"), float("inf"), float("-inf")]
WORDS = ["", "eight", "none", "yarn", "gpt2", "llama", "a b", "\0", "\udcff", "a\nb", "x" * 5000]


def any_value(rng: random.Random, depth: int = 0) -> Value:
    match rng.choice("iisfwb" + "aaaa" * (depth < 2)):
        case "i":
            return Value.u32(rng.choice(INTEGERS))
        case "s":
            return Value.i32(rng.choice([-(2**31), -2, -1, 0, 1, 2**31 - 1]))
        case "f":
            return Value.f32(rng.choice(NUMBERS))
        case "w":
            return Value.string(rng.choice(WORDS))
        case "b":
            return Value.boolean(rng.random() < 0.5)
        case _:
            count = rng.choice([0, 1, 2, len(hostile.TOKENS)])
            item = rng.choice([U32, FLOAT, ValueType.INT32, STRING, ValueType.ARRAY])
            if item is STRING:
                return Value.strings(rng.choices(WORDS, k=count))
            if item is ValueType.ARRAY:
                inner = any_value(rng, 2)
                items = [Value(ValueType.ARRAY, [inner.data], inner.type)] if inner.type is STRING else []
                return Value(ValueType.ARRAY, items, ValueType.ARRAY)
            pool: Any = NUMBERS if item is FLOAT else [i for i in INTEGERS if item is U32 or i < 2**31]
            return Value.numbers(item, rng.choices(pool, k=count))


ADDED = (
    *("rope.scaling.type", "rope.scaling.factor", "rope.scaling.yarn_beta_fast", "rope.dimension_count"),
    *("attention.key_length", "attention.sliding_window", "expert_count", "expert_used_count"),
)


def test_any_metadata(tmp_path: Path) -> None:
    done = 0
    for seed in range(60):
        rng = random.Random(seed)
        name = rng.choice(list(LAYERS))
        small = hostile.model(name)
        for _ in range(rng.choice([1, 1, 2])):
            arch = name.split("/")[0]
            key = rng.choice([*small.metadata, *small.metadata, *(f"{arch}.{key}" for key in ADDED)])
            small.metadata[key] = any_value(rng)
        path = hostile.gguf(tmp_path / "any.gguf", small)
        folder = tmp_path / str(seed)
        folder.mkdir()
        for work in of_model(path, folder).values():
            done += refusal(work, path) is None
        assert not list(folder.rglob("*partial*"))
    assert 60 < done < 400  # some lies are harmless to some verbs, and most are not


JSON_VALUES = [
    *(None, True, 0, 1, -1, 3, 2**31, 2**63, 10**30, 0.5, -1.0, 1e300, "", "eight", "a\nb", "yarn"),
    *([], [1], [[]], ["x"], {}, {"a": 1}, {"(": 1}, {".*": 0}, {"rope_type": "llama3", "factor": 8.0}),
]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) within a JSON value."""
    for key in list(value if isinstance(value, dict) else range(len(value))):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def test_any_json(tmp_path: Path) -> None:
    done = 0
    for seed in range(90):
        rng = random.Random(seed)
        jsons = hostile.checkpoint_jsons()
        file = jsons[rng.choice(list(jsons))]
        container, key = rng.choice([place for place in places(file) if not str(place[1]).isdigit()][:400])
        if rng.random() < 0.2:
            del container[key]
        else:
            container[key] = rng.choice(JSON_VALUES)
        folder = tmp_path / str(seed)
        base, adapter = hostile.checkpoint(folder, jsons)
        work = {
            "merge": lambda b=base, a=adapter, f=folder: lg.merge(b, [a], f / "merged", threads=1),
            "convert": lambda b=base, a=adapter, f=folder: lg.convert_adapter(a, b, f / "converted"),
            "inspect": lambda b=base: json.dumps(lg.inspect(b).as_json(), allow_nan=False),
        }
        for run in work.values():
            done += refusal(run, base, adapter) is None
        assert not list(folder.rglob("*partial*"))
    assert 75 < done < 255

"""Mutators: of bytes, of JSON values and of texts. Each takes a generator of random numbers, and changes a copy."""

from __future__ import annotations

import marshal
import random
import struct
from collections.abc import Sequence
from typing import Any

#: Numbers at which arithmetic, allocation and comparisons go wrong.
EDGES = [
    0,
    1,
    2,
    3,
    7,
    8,
    31,
    32,
    63,
    64,
    127,
    128,
    255,
    256,
    4095,
    4096,
    65535,
    65536,
    2**24,
    2**31 - 1,
    2**31,
]
EDGES += [2**32 - 1, 2**32, 2**40, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1]
WORDS = [
    *(
        "",
        " ",
        "\0",
        "\n",
        "a\nb",
        "\x1b[2J",
        "\u202e",
        "é",
        "\U0001f600",
        "null",
        "true",
        "nan",
        "-1",
        "1e999",
    ),
    *(
        "../../etc/passwd",
        "/dev/zero",
        "%s%n",
        "{{7*7}}",
        "__class__",
        "a" * 300,
        "x.y.z",
        "none",
        "yarn",
        "llama",
    ),
]
VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        3,
        255,
        2**31,
        2**63,
        10**30,
        0.5,
        -1.0,
        1e-45,
        1e300,
        float("nan"),
        float("inf"),
    ),
    *(
        [],
        [[]],
        [1],
        ["x"],
        [None],
        {},
        {"a": 1},
        {"(": 1},
        {".*": 0},
        {"rope_type": "llama3", "factor": 8.0},
    ),
]


def mutated_bytes(rng: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """`data` with one to eight changes; among them pieces of `others`."""
    result = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        at = rng.randrange(len(result) + 1)
        match rng.randrange(10):
            case 0 if result:
                result[at % len(result)] ^= 1 << rng.randrange(8)
            case 1 if result:
                result[at % len(result)] = rng.randrange(256)
            case 2:
                result[at:at] = rng.randbytes(rng.choice([1, 2, 4, 8, 100]))
            case 3:
                del result[at : at + rng.choice([1, 4, 8, 64, 4096])]
            case 4:
                del result[at:]
            case 5:
                result[at : at + 8] = struct.pack("<Q", (rng.choice(EDGES) + rng.randint(-2, 2)) % 2**64)
            case 6:
                result[at : at + 4] = struct.pack("<I", (rng.choice(EDGES) + rng.randint(-2, 2)) % 2**32)
            case 7:
                length = rng.randrange(64)
                source = rng.randrange(len(result) + 1)
                result[at:at] = result[source : source + length]
            case 8 if others:
                other = rng.choice(others)
                cut = rng.randrange(len(other) + 1)
                result[at:] = other[cut:]
            case _:
                length = rng.choice([4, 8, 16])
                result[at : at + length] = rng.choice([b"\0", b"\xff", b"\x7f", b"\x80"]) * length
    return bytes(result)


def copied(value: Any) -> Any:
    """A copy of a JSON value, of its inner values too; ten times as fast as `copy.deepcopy`."""
    return marshal.loads(marshal.dumps(value, 2))


def places(value: Any, most: int = 2000) -> list[tuple[Any, Any]]:
    """The first `most` (container, key) within a JSON value, and what is left of the last container."""
    left, found = [value] if type(value) in (dict, list) else [], []
    while left and len(found) < most:
        container = left.pop()
        keys = list(container) if type(container) is dict else range(len(container))
        found += [(container, key) for key in keys]
        inner = container.values() if type(container) is dict else container
        left += [one for one in inner if one and type(one) in (dict, list)]
    return found


def any_json(rng: random.Random, depth: int = 0) -> Any:
    match rng.randrange(8 if depth < 4 else 5):
        case 0:
            return rng.choice(EDGES) * rng.choice([1, -1])
        case 1:
            return rng.choice(WORDS)
        case 5:
            return [any_json(rng, depth + 1) for _ in range(rng.choice([0, 1, 2, 50]))]
        case 6 | 7:
            return {rng.choice(WORDS): any_json(rng, depth + 1) for _ in range(rng.choice([0, 1, 3]))}
        case _:
            return copied(rng.choice(VALUES))


def mutated_json(rng: random.Random, value: Any, most: int = 4) -> Any:
    """A copy of `value`, some of whose places hold something else, or another place's value, or nothing."""
    value = copied(value)
    for _ in range(rng.randint(1, most)):
        found = places(value)
        if not found:
            return any_json(rng)
        container, key = rng.choice(found)
        match rng.randrange(8):
            case 0:
                del container[key]
            case 1:
                other, there = rng.choice(found)
                container[key] = copied(other[there])
            case 2 if isinstance(container, dict):
                container[rng.choice(WORDS)] = container.pop(key)
            case 3 if isinstance(container[key], int | float):
                container[key] = rng.choice(
                    [-container[key], container[key] * 2, container[key] + 1, str(container[key])]
                )
            case 4 if isinstance(container, list):
                container.extend(copied(container[key]) for _ in range(rng.choice([1, 2, 30])))
            case 5:
                container[key] = [container[key]] if rng.random() < 0.5 else {"a": container[key]}
            case _:
                container[key] = any_json(rng)
    return value


def mutated_text(rng: random.Random, text: str, tokens: Sequence[str]) -> str:
    """`text` with pieces left out, doubled, nested, or of `tokens` put in."""
    for _ in range(rng.choice([1, 1, 2, 4, 8])):
        at = rng.randrange(len(text) + 1)
        to = min(len(text), at + rng.choice([1, 3, 10, 40]))
        match rng.randrange(6):
            case 0:
                text = text[:at] + text[to:]
            case 1:
                text = text[:to] + text[at:to] * rng.choice([1, 2, 30]) + text[to:]
            case 2:
                text = text[:at] + rng.choice(WORDS) + text[to:]
            case 3:
                text = text[:at] + chr(rng.choice([0, 10, 0x7F, 0xA0, 0x2028, 0xFFFD, 0x1F600])) + text[at:]
            case _:
                text = text[:at] + rng.choice(tokens) + text[at:]
    return text[:20_000]

"""A GGUF file as the pieces that it is made of, so that a mutant is wrong in one thing and right in all others."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field

from fuzz.mutate import EDGES, WORDS, mutated_bytes

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


@dataclass
class Pieces:
    """`numbers`: places of lengths, counts, types, shapes and offsets, with their width; `texts`: places of texts."""

    data: bytes
    numbers: list[tuple[int, int]] = field(default_factory=list)
    texts: list[tuple[int, int]] = field(default_factory=list)
    end: int = 0
    """Of the header."""


def pieces_of(data: bytes) -> Pieces:
    """Of a whole, correct file."""
    found = Pieces(data)
    at = 4

    def number(width: int) -> int:
        nonlocal at
        found.numbers.append((at, width))
        value = int.from_bytes(data[at : at + width], "little")
        at += width
        return value

    def text() -> None:
        nonlocal at
        length = number(8)
        found.texts.append((at, length))
        at += length

    def value(kind: int) -> None:
        nonlocal at
        if kind == 8:
            text()
        elif kind == 9:
            item, count = number(4), number(8)
            for index in range(count):
                if item not in (8, 9) and index > 3:
                    at += _SIZES[item]
                    continue
                value(item)
        else:
            number(_SIZES[kind])

    number(4)
    tensors, entries = number(8), number(8)
    for _ in range(entries):
        text()
        value(number(4))
    for _ in range(tensors):
        text()
        for _ in range(number(4)):
            number(8)
        number(4)
        number(8)
    found.end = at
    return found


def mutated_gguf(rng: random.Random, found: Pieces, others: list[bytes]) -> bytes:
    data = bytearray(found.data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        match rng.randrange(10):
            case 0:
                return mutated_bytes(rng, bytes(data[: found.end]), others) + bytes(data[found.end :])
            case 1:
                return bytes(data[: rng.randrange(len(data))])
            case 2 | 3:
                at, length = rng.choice(found.texts)
                data[at : at + length] = (rng.choice(WORDS).encode() * 20)[:length].ljust(length, b"x")
            case 4:
                (a, wide), (b, other) = rng.choice(found.numbers), rng.choice(found.numbers)
                width = min(wide, other)
                data[a : a + width] = data[b : b + width]
            case 5:
                at, width = rng.choice(found.numbers)
                value = int.from_bytes(data[at : at + width], "little")
                changed = rng.choice(
                    [value + 1, value - 1, value * 2, value // 2, -value, value ^ 1 << rng.randrange(64)]
                )
                data[at : at + width] = (changed % 256**width).to_bytes(width, "little")
            case 6:  # a text of another length, and so everything behind it elsewhere
                at, length = rng.choice(found.texts)
                word = rng.choice(WORDS).encode()
                return (
                    bytes(data[: at - 8]) + struct.pack("<Q", len(word)) + word + bytes(data[at + length :])
                )
            case 7:
                start, stop = sorted(
                    (rng.randrange(found.end, len(data) + 1), rng.randrange(found.end, len(data) + 1))
                )
                data[start:stop] = rng.choice([b"\xff", b"\x7f", b"\0", b"\x7c\x00"]) * ((stop - start) // 2)
            case _:
                at, width = rng.choice(found.numbers)
                edge = (rng.choice(EDGES) + rng.randint(-1, 1)) % 256**width
                data[at : at + width] = edge.to_bytes(width, "little")
    return bytes(data)

"""Speculation by prompt lookup: where the last tokens stood before, what followed then may follow now.

Source: Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding (also in transformers and vLLM). A pass reads the
next token and the guesses behind it; each guess that is what the sampler draws anyway is a token for the price of a
row. The logits of a row do not depend on its batch, and every token is drawn from its own logits in its turn, so a
reply is the same to the bit with guesses and without. It pays where a row costs little beside a pass, and texts repeat
themselves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

GRAM = 3
MOST = 8
"""Guesses in a row."""
_LATEST = 8  # passes of a size that are remembered
_OLD = 256  # passes after which one is forgotten
_TRUST = 0.2  # of a new guess in what is thought of guesses
_AGAIN = 48  # tokens after which guessing is tried again


class PassCosts:
    """What passes cost: of each number of rows the fastest of the latest. The fastest, as others may use the processors
    now and then: a line through all passes was bent so far by a few slow ones that rows seemed to cost nothing."""

    def __init__(self) -> None:
        self._passes = 0
        self._seen: dict[int, deque[tuple[int, float]]] = {}
        self._fastest: dict[int, float] = {}

    def passed(self, rows: int, seconds: float) -> None:
        self._passes += 1
        self._seen.setdefault(rows, deque(maxlen=_LATEST)).append((self._passes, seconds))
        self._look(rows)
        if self._passes % (_OLD // 8) == 0:
            for size in list(self._seen):
                self._look(size)

    def of(self, rows: int) -> float:
        """Of a pass of so many rows, in any unit: between sizes that were seen lately by a line, beyond them as if a
        row cost a third of what a pass costs without any. So a size is tried, and then known."""
        if rows in self._fastest:
            return self._fastest[rows]
        below = max((size for size in self._fastest if size < rows), default=None)
        above = min((size for size in self._fastest if size > rows), default=None)
        if below is not None and above is not None:
            low, high = self._fastest[below], self._fastest[above]
            return low + (high - low) * (rows - below) / (above - below)
        nearest = above if below is None else below
        if nearest is None:
            return _supposed(rows)
        return self._fastest[nearest] * _supposed(rows) / _supposed(nearest)

    def _look(self, rows: int) -> None:
        """Forget what is old of this size."""
        passes = self._seen[rows]
        while passes and passes[0][0] <= self._passes - _OLD:
            passes.popleft()
        if passes:
            self._fastest[rows] = min(seconds for _, seconds in passes)
        else:
            del self._seen[rows], self._fastest[rows]


def _supposed(rows: int) -> float:
    return 1.0 + rows / 3


class Lookup:
    """The guesses of one reply. `tokens`: the prompt."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self._tokens: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}
        self._right = 0.5
        self._since = 0
        for token in tokens:
            self.push(token)

    def push(self, token: int) -> None:
        """A token more, of the prompt or of the reply."""
        if len(self._tokens) >= GRAM:  # what ended before this token is followed by it
            self._ends[tuple(self._tokens[-GRAM:])] = len(self._tokens)
        self._tokens.append(token)

    def guesses(self, rows: int, costs: PassCosts, room: int) -> list[int]:
        """What may follow, at most `room` tokens; empty where guessing is not thought to pay in a pass that has `rows`
        rows without it."""
        at = self._ends.get(tuple(self._tokens[-GRAM:]))
        if at is None:
            return []
        self._since += 1
        right = max(self._right, 0.5) if self._since > _AGAIN else self._right
        best, length = rows / costs.of(rows), 0
        made = float(rows)
        for count in range(1, min(MOST, room, len(self._tokens) - at) + 1):
            made += right**count
            if made / costs.of(rows + count) > best:
                best, length = made / costs.of(rows + count), count
        return self._tokens[at : at + length]

    def judged(self, guessed: int, right: int) -> None:
        """How many of the guesses were right, of those that were looked at."""
        self._since = 0
        for number in range(min(right + 1, guessed)):
            self._right += _TRUST * ((number < right) - self._right)

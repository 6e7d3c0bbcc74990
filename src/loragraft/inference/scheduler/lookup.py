"""Speculation by prompt lookup: where the last tokens stood before, what followed then may follow now.

Source: Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding (also in transformers and vLLM). A pass reads the
next token and the guesses behind it; each guess that is what the sampler draws anyway is a token for the price of a
row. The logits of a row do not depend on its batch, and every token is drawn from its own logits in its turn, so a
reply is the same to the bit with guesses and without. It pays where a row costs little beside a pass, and texts repeat
themselves.
"""

from __future__ import annotations

from collections.abc import Iterable

GRAM = 3
MOST = 8
"""Guesses in a row."""
_WEIGHT = 0.05  # of a new pass in the mean of the passes' costs
_TRUST = 0.2  # of a new guess in what is thought of guesses
_AGAIN = 48  # tokens after which guessing is tried again


class PassCosts:
    """What a pass costs: seconds = fixed + row * rows, fitted to the latest passes (least squares, forgetting)."""

    def __init__(self) -> None:
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    def passed(self, rows: int, seconds: float) -> None:
        keep = 1 - _WEIGHT
        self._n = keep * self._n + 1
        self._x = keep * self._x + rows
        self._y = keep * self._y + seconds
        self._xx = keep * self._xx + rows * rows
        self._xy = keep * self._xy + rows * seconds

    def of(self, rows: int) -> float:
        """Of a pass of so many rows, in any unit; before passes of different sizes were seen, a row is thought to cost
        a third of the fixed part."""
        spread = self._n * self._xx - self._x * self._x
        if self._n < 8 or spread < 1e-9 * self._xx * self._n:
            return 1.0 + rows / 3
        slope = max((self._n * self._xy - self._x * self._y) / spread, 0.0)
        fixed = max((self._y - slope * self._x) / self._n, 0.0)
        return fixed + slope * rows or 1.0


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

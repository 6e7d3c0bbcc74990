"""GET /metrics, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from loragraft.inference.scheduler.telemetry import Telemetry

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_MOST_ADAPTERS = 1000  # with a time series of their own: those that made tokens last


class Metrics(Telemetry):
    """What the scheduler tells, as time series; the rest is asked of it when somebody reads them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._made = Counter(
            "loragraft_tokens", "Tokens made, by adapter", ["adapter"], registry=self.registry
        )
        self._read = Counter("loragraft_prompt_tokens", "Tokens of prompts", registry=self.registry)
        self._cached = Counter(
            "loragraft_prompt_tokens_cached", "Of these, taken from an earlier prompt", registry=self.registry
        )
        self._first = Histogram(
            "loragraft_time_to_first_token_seconds",
            "From submission to the first token",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._rows = Histogram(
            "loragraft_batch_rows",
            "Tokens in one pass",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
            registry=self.registry,
        )
        self._sequences = Histogram(
            "loragraft_batch_sequences",
            "Sequences in one pass",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self._seconds = Counter("loragraft_pass_seconds", "Time spent in passes", registry=self.registry)
        self._ended = Counter(
            "loragraft_requests", "Requests, by how they ended", ["how"], registry=self.registry
        )
        self._guessed = Counter("loragraft_tokens_guessed", "Guessed ahead", registry=self.registry)
        self._right = Counter("loragraft_tokens_guessed_right", "Of these, right", registry=self.registry)
        self._labels: dict[str, None] = {}

    def watch(self, name: str, what: str, value: Callable[[], float]) -> None:
        """A gauge whose value is asked for when the metrics are read."""
        Gauge(name, what, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def passed(self, rows: int, sequences: int, seconds: float) -> None:
        self._rows.observe(rows)
        self._sequences.observe(sequences)
        self._seconds.inc(seconds)

    def made(self, adapters: tuple[str, ...], tokens: int) -> None:
        """Tokens that several adapters made together count for each of them: their combinations have no bound."""
        for name in adapters or ("",):
            if name not in self._labels and len(self._labels) >= _MOST_ADAPTERS:
                oldest = next(iter(self._labels))
                del self._labels[oldest]
                self._made.remove(oldest)
            self._labels.pop(name, None)
            self._labels[name] = None  # the last one now
            self._made.labels(name).inc(tokens)

    def read(self, tokens: int, cached: int) -> None:
        self._read.inc(tokens)
        self._cached.inc(cached)

    def guesses(self, guessed: int, right: int) -> None:
        self._guessed.inc(guessed)
        self._right.inc(right)

    def first_token(self, seconds: float) -> None:
        self._first.observe(seconds)

    def ended(self, how: str) -> None:
        self._ended.labels(how).inc()

"""The scheduler: one thread that passes batches through a program and hands out what comes of them.

Every pass holds one row for each reply under way, and pieces of prompts in what room is left, so that a long prompt
delays replies by no more than `chunk` rows. Prompts are admitted in turn by adapter, so that one popular adapter does
not starve the others. Whatever else is in a batch, a reply's tokens are the same to the bit: the program guarantees it
(docs/engine.md), and every choice has random numbers of its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

import numpy as np

from loragraft.arrays import Floats, Ids
from loragraft.backends.batch import Batch
from loragraft.backends.batch import Piece as Rows
from loragraft.backends.program import Program
from loragraft.errors import BusyError, LoragraftError, PoolError, TimeLimitError
from loragraft.inference.sampling import Sampler
from loragraft.inference.scheduler.embedding import LONGEST, HiddenStates, Pooled
from loragraft.inference.scheduler.job import Choice, Job, being_read, wanted_rows
from loragraft.inference.scheduler.lookup import Lookup, PassCosts
from loragraft.inference.scheduler.outbox import Outbox
from loragraft.inference.scheduler.outputs import Likeliest, Output, outputs, peak_of
from loragraft.inference.scheduler.prefixes import PrefixCache
from loragraft.inference.scheduler.request import (
    Embedded,
    Event,
    Failed,
    Finished,
    FinishReason,
    Piece,
    Request,
    Scored,
    Started,
)
from loragraft.inference.scheduler.shelf import Lease, Shelf
from loragraft.inference.scheduler.stopping import StopTexts
from loragraft.inference.scheduler.telemetry import Telemetry
from loragraft.inference.scheduler.waiting import Waiting
from loragraft.inference.tokenizer import Tokenizer

#: Replies at once beside which guessing is looked into: with more, rows come from them.
_MOST_GUESSING = 4
#: Requests at once whose adapters are being loaded: one is, and the next is ready to be.
_MOST_LOADING = 2

T = TypeVar("T")
Planned = tuple[Job, Choice | None, Rows]
"""Rows of a reply, or of a prompt."""
Plan = Sequence[Planned]
log = logging.getLogger("loragraft.scheduler")


class Scheduler:
    """Runs requests on one program.

    `sequences`: replies at once at most; `chunk`: rows of prompts in a pass that also holds replies; `waiting`:
    requests that may queue, more are refused with `BusyError`; `check` raises what makes the results of a pass
    worthless, such as a model's file that became shorter; `lookup`: guess tokens where the text repeats itself, if that
    pays (`scheduler.lookup`); `pause`: seconds for which pieces of a reply, but the first and the last, may be gathered
    before they are handed out. `start` before the first `submit`.
    """

    def __init__(
        self,
        program: Program,
        tokenizer: Tokenizer,
        shelf: Shelf,
        *,
        context: int,
        subject: str = "the model",
        sequences: int = 64,
        chunk: int = 256,
        waiting: int = 256,
        prefixes: int = 256,
        lookup: bool = True,
        pause: float = 0.01,
        telemetry: Telemetry | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.shelf = shelf
        self.context = context
        self.telemetry = telemetry or Telemetry()
        self._program = program
        self._tokenizer = tokenizer
        self._subject = subject
        self._check = check
        self._sequences = sequences
        self._chunk = chunk
        self._most_waiting = waiting
        self._hidden = HiddenStates(program)
        self.costs = PassCosts()
        self._lookup = lookup and program.rewinds  # wrong guesses are taken back
        self._cache = PrefixCache(program.close_sequence, prefixes, rewinds=program.rewinds)
        self._wake = threading.Condition()
        self._news = False  # whether something came since the thread last began to look for work
        self._waiting = Waiting(self._wake)
        self._running: list[Job] = []
        self._loading = 0
        self._jobs: dict[int, Job] = {}
        self._state = "new"
        self._thread = threading.Thread(target=self._work, name="scheduler", daemon=True)
        self.outbox = Outbox(self.telemetry, pause)
        self._pass_seconds = 0.0
        shelf.changed = self._nudge

    # ---- from any thread ----

    def start(self) -> None:
        self._state = "running"
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Queue `request`; its events come through `request.emit`.

        Raises BusyError when too many wait or the scheduler stops, LoragraftError for a prompt that is empty or leaves
        no room in the model's context.
        """
        request.check(self.context, self._sequences)
        with self._wake:
            if self._state != "running":
                raise BusyError("server", "is stopping")
            if self.queued >= self._most_waiting:
                raise BusyError(
                    "server", "too many requests are waiting", found=self.queued, hint="try again later"
                )
            job = Job(request, time.monotonic())
            self._jobs[request.number] = job
            self._waiting.add(job)
            self._nudge()

    def cancel(self, request: Request) -> None:
        """Stop working on `request`; no event of it follows. One that has ended is left alone."""
        with self._wake:
            if (job := self._jobs.get(request.number)) is not None:
                job.cancelled = True
                self._nudge()

    def stop(self, timeout: float | None = None) -> None:
        """Refuse new requests, finish those that wait or run, end the thread. Those not done after `timeout` seconds
        fail."""
        with self._wake:
            if self._state == "new":
                self._state = "stopped"
                return
            self._state = "draining"
            self._nudge()
        self._thread.join(timeout)
        if self._thread.is_alive():
            with self._wake:
                self._state = "aborting"
                self._nudge()
            self._thread.join()
        self.shelf.close()

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @property
    def active(self) -> int:
        """Requests that run."""
        return len(self._running)

    @property
    def prefixes(self) -> int:
        """Sequences kept for prompts that begin like them."""
        return len(self._cache)

    def _nudge(self) -> None:
        """Wake the scheduler's thread, or keep it from going to sleep."""
        with self._wake:
            self._news = True
            self._wake.notify()

    # ---- the scheduler's thread ----

    def _work(self) -> None:
        while True:
            if not self._jobs:
                self.outbox.hand_out()
            with self._wake:
                while not self._jobs and self._state == "running":
                    self._wake.wait()
                if self._state == "aborting" or (self._state == "draining" and not self._jobs):
                    break
            try:
                self._turn()
            except Exception as bug:  # whatever it is, nobody must wait for an answer that never comes
                error = _bug(bug)
                for job in list(self._jobs.values()):
                    with suppress(Exception):  # what is broken may be what ends a request, too
                        self._fail(job, error)
        for job in list(self._jobs.values()):
            self._fail(job, BusyError("server", "stopped before the request was done"))
        self.outbox.hand_out()
        self._cache.clear()
        self._state = "stopped"

    def _turn(self) -> None:
        self._news = False
        self._sweep()
        self._admit()
        if self._running:
            self._embed()
            self._pass()
        else:
            self.outbox.hand_out()
            with self._wake:  # adapters are being loaded
                if self._jobs and not self._news:
                    self._wake.wait(0.05)

    def _emit(self, job: Job, event: Event, *, urgent: bool = True) -> None:
        self.outbox.put(job.request, event, urgent=urgent)

    def _sweep(self) -> None:
        """End what was cancelled or took too long."""
        now = time.monotonic()
        for job in list(self._jobs.values()):
            if job.cancelled:
                self._end(job, "cancelled")
            elif now > job.deadline:
                self._fail(
                    job, TimeLimitError("request", "not finished in time", found=f"{job.request.timeout:g} s")
                )

    def _admit(self) -> None:
        """Move waiting requests to the running ones while there is room, one of each adapter in turn."""
        if not self._waiting:
            return
        room = self._sequences - sum(job.request.choices for job in self._running)
        self._loading = sum(1 for job in list(self._jobs.values()) if job.lease and not job.lease.ready)
        blocked = False
        while not blocked:
            blocked = True
            for job in self._waiting.firsts():
                try:
                    lease = self._leased(job)
                except LoragraftError as error:
                    self._fail(job, error)
                    blocked = False
                    continue
                if lease is None:
                    continue
                if job.request.choices > room:
                    return  # else requests for one reply took every place that is left, and it never had its turn
                self._waiting.take(job)
                job.admitted = time.monotonic()
                blocked = False
                try:
                    self._program.check_adapters(lease.slots)
                    self._begin(job)
                except LoragraftError as error:
                    self._fail(job, error)  # alone: in a batch it would fail all others with it
                    continue
                room -= job.request.choices

    def _leased(self, job: Job) -> Lease | None:
        """The job's hold on its adapters, once they are loaded. Those of a few jobs are loaded at a time: more would
        hold more memory, and be no faster."""
        if job.lease is None:
            job.lease = self.shelf.lease(job.request.adapters, load=False)
        if job.lease is None:
            if self._loading >= _MOST_LOADING:
                return None
            self._loading += 1
            job.lease = self.shelf.lease(job.request.adapters)
        return job.lease if job.lease is not None and self.shelf.ready(job.lease) else None

    def _begin(self, job: Job) -> None:
        assert job.lease is not None
        self._running.append(job)
        ran = job.invoke()
        if job.request.embed is None:
            self._take_prefix(job)
        if job.sequence is None:
            job.sequence = self._program.open_sequence()
        self.telemetry.read(len(job.request.prompt), job.cached)
        self._emit(job, Started(ran, job.cached))

    def _take_prefix(self, job: Job) -> None:
        """Begin with the states of the longest known sequence that the prompt begins like. Its last token is always
        read anew: the reply follows from its logits."""
        key, _ = job.shared
        prompt, most = job.request.prompt, len(job.request.prompt) - 1
        if job.invoked:
            prompt, most = prompt[: job.invoked], job.invoked
        for sequence, shared in [*being_read(self._running, key, prompt), *self._cache.longest(key, prompt)]:
            length = min(shared, most)
            if length <= job.cached:
                continue
            try:
                fork = self._program.fork_sequence(sequence, length)
            except LoragraftError:
                continue  # a state that cannot be rewound, or no memory: then it is read again
            if job.sequence is not None:
                self._program.close_sequence(job.sequence)
            job.sequence, job.cached, job.read = fork, length, length

    def _embed(self) -> None:
        """Read texts to embed, as many as one pass takes: whole ones, of which nobody wants logits."""
        room = self._chunk if any(job.choices for job in self._running) else LONGEST
        texts: list[Job] = []
        for job in self._running:
            if job.is_text:
                room -= len(job.request.prompt)
                if texts and room < 0:
                    break
                texts.append(job)
        if not texts:
            return
        self.outbox.hand_out()
        plan = [(job, None, job.rows(job.request.prompt, wants="all")) for job in texts]
        try:
            hidden = self._forward(plan, self._hidden.alone)
        except LoragraftError as error:
            for job in texts:
                self._fail(job, error)
            return
        at = 0
        for job in texts if hidden is not None else []:
            assert hidden is not None
            mine = hidden[at : at + len(job.request.prompt)]
            at += len(mine)
            try:
                self._text_read(job, mine)
            except LoragraftError as error:
                self._fail(job, error)

    def _text_read(self, job: Job, hidden: Floats) -> None:
        """Part of a text to embed was read: `hidden` [tokens, d]."""
        request = job.request
        assert request.embed is not None
        if job.pooled is None:
            job.pooled = Pooled(request.embed)
        job.pooled.add(hidden)
        job.read += len(hidden)
        if job.read == len(request.prompt):
            job.first_token = time.monotonic()
            self._emit(job, Embedded(job.pooled.vector(self._subject)))
            self._complete(job)

    def _pass(self) -> None:
        """One batch: every reply's next token, then pieces of prompts."""
        plan = list(self._compose())
        replies_only = all(choice is not None for _, choice, _ in plan)
        embeds = any(job.request.embed is not None for job, _, _ in plan)
        if embeds or not plan:
            self.outbox.hand_out()
        if not plan:
            return
        start = time.perf_counter()
        try:
            found = self._forward(plan, partial(self._outputs, plan, replies_only, embeds))
            if found is None:
                return
            self._check()
        except LoragraftError as error:
            for job in {id(job): job for job, _, _ in plan}.values():
                self._fail(job, error)
            return
        given, hidden = found
        rows = sum(len(rows.tokens) for _, _, rows in plan)
        seconds = time.perf_counter() - start
        if replies_only:
            self.costs.passed(rows, seconds)
            self._pass_seconds = seconds
        self.telemetry.passed(rows, len(plan), seconds)
        at = 0
        for job, choice, piece in plan:
            mine = slice(at, at + wanted_rows(piece))
            at = mine.stop
            if job.request.number not in self._jobs:
                continue  # failed by an earlier row of this pass
            try:
                if choice is not None:
                    self._read_on(job, choice, piece.tokens, given[mine])
                elif job.request.embed is not None:
                    assert hidden is not None
                    self._text_read(job, hidden[mine])
                else:
                    self._prompt_read(job, len(piece.tokens), given[mine])
            except LoragraftError as error:
                self._fail(job, error)
            except Exception as bug:  # of this request: the others go on
                self._fail(job, _bug(bug))

    def _compose(self) -> Iterator[Planned]:
        """The rows of the next pass: every reply's next token with guesses behind it, then pieces of prompts."""
        replies = [
            (job, choice) for job in self._running for choice in job.choices if choice.next is not None
        ]
        for job, choice in replies:
            assert job.lease is not None
            tokens = np.array([choice.next, *self._guesses(job, choice, len(replies))], np.int32)
            yield job, choice, Rows(choice.sequence, tokens, job.lease.slots, "all")
        room = self._chunk if replies else 2 * self._chunk
        reading = [job for job in self._running if not job.choices and not job.is_text]
        for count, job in enumerate(reading):
            piece = job.next_rows(max(1, room // (len(reading) - count)), room)
            if not len(piece.tokens):
                return
            room -= len(piece.tokens)
            yield job, None, piece

    def _guesses(self, job: Job, choice: Choice, replies: int) -> list[int]:
        """What may follow the token to feed, where looking for it is worth a row."""
        if not self._lookup or replies > _MOST_GUESSING:
            return []
        if choice.lookup is None:
            choice.lookup = Lookup([*job.request.prompt.tolist(), *choice.made])
        room = min(job.request.max_tokens, self.context - len(job.request.prompt)) - len(choice.made)
        return choice.lookup.guesses(replies, self.costs, room - 1)

    def _outputs(
        self, plan: Plan, replies_only: bool, embeds: bool, pieces: list[Rows]
    ) -> tuple[Sequence[Output], Floats | None]:
        """What the pass gives of each wanted row, and where texts are embedded, their hidden states."""
        if embeds:
            logits, hidden = self._hidden.beside(pieces)
            return list(logits), hidden
        batch = Batch.of(pieces, self._program.length)
        # Not before: NumPy gives Python's lock away even to count to one, and would wait for whoever was woken.
        if not (replies_only and self.outbox.can_wait(self._pass_seconds)):
            self.outbox.hand_out()
        return outputs(self._program, batch, [job.request for job, _, _ in plan]), None

    def _forward(self, plan: Plan, run: Callable[[list[Rows]], T]) -> T | None:
        """What `run` gives of the batch. Where the memory for states is full, forgets kept prefixes, then fails the
        request that came last; None if the batch must be composed again without it."""
        pieces = [piece for _, _, piece in plan]
        while True:
            try:
                return run(pieces)
            except PoolError as full:
                if self._cache.forget_oldest():
                    continue
                self._fail(max((job for job, _, _ in plan), key=lambda job: job.admitted), full)
                return None

    def _prompt_read(self, job: Job, tokens: int, given: Sequence[Output]) -> None:
        request = job.request
        job.read += tokens
        if job.read == job.invoked:
            self._keep_early(job)
        if job.read < len(request.prompt):
            return
        job.first_token = time.monotonic()
        self.telemetry.first_token(job.first_token - job.submitted)
        assert job.sequence is not None
        for number in range(request.choices):
            constraint = request.constraint() if request.constraint is not None else None
            last = number == request.choices - 1
            sequence = job.sequence if last else self._program.fork_sequence(job.sequence, job.read)
            sampling = request.sampling
            choice = Choice(
                number,
                sequence,
                Sampler(sampling, stream=number),
                self._tokenizer.decoder(show_special=request.show_special),
                StopTexts(request.stop),
                constraint,
            )
            job.choices.append(choice)
        job.sequence = None
        for choice in list(job.choices):
            self._continue(job, choice, given[0])

    def _read_on(self, job: Job, choice: Choice, tokens: Ids, given: Sequence[Output]) -> None:
        """A reply's token and the guesses behind it were read: go on as far as the guesses are what is drawn."""
        start, right = self._program.length(choice.sequence) - len(tokens), 0
        for number in range(len(tokens)):
            choice.valid = start + number + 1
            self._continue(job, choice, given[number])
            if choice.next is None or number + 1 == len(tokens) or choice.next != tokens[number + 1]:
                break
            right += 1
        if len(tokens) == 1:
            return
        if choice.lookup is not None:
            choice.lookup.judged(len(tokens) - 1, right)
        self.telemetry.guesses(len(tokens) - 1, right)
        if choice.sequence >= 0 and self._program.length(choice.sequence) > choice.valid:
            self._program.truncate_sequence(choice.sequence, choice.valid)

    def _continue(self, job: Job, choice: Choice, given: Output) -> None:
        """Choose the next token of a reply and send what can be sent."""
        request = job.request
        if not np.isfinite(peak := peak_of(given)):
            raise LoragraftError(
                self._subject,
                "the model's predictions are not finite",
                found=peak,
                hint="a weight holds NaN or infinity, or an adapter's strength is too large",
            )
        if len(choice.made) >= request.max_tokens:  # asked for none
            self._finish(job, choice, "length")
            return
        token = choice.pick(given, request.penalties)
        ended = token in self._tokenizer.end_ids
        complete = choice.constraint.accept(token) if choice.constraint is not None else False
        if ended:
            self._finish(job, choice, "stop")
            return
        choice.made.append(token)
        if choice.lookup is not None:
            choice.lookup.push(token)
        self.outbox.made(job.adapters)
        told = None if isinstance(given, Likeliest) else given
        choice.unsent.append(Scored.of(token, told, request.logprobs))
        text = choice.stops.push(choice.decoder.push(token))
        full = len(request.prompt) + len(choice.made) >= self.context
        if choice.stops.hit or complete or full or len(choice.made) == request.max_tokens:
            reason: FinishReason = "stop" if choice.stops.hit or complete else "length"
            self._finish(job, choice, reason, text)
            return
        choice.next = token
        if text or request.logprobs is not None:
            self._send(job, choice, text)

    def _send(self, job: Job, choice: Choice, text: str) -> None:
        tokens, choice.unsent = tuple(choice.unsent), []
        if text or tokens:
            self._emit(job, Piece(choice.number, text, tokens), urgent=not choice.begun)
            choice.begun = True

    def _finish(self, job: Job, choice: Choice, reason: FinishReason, text: str = "") -> None:
        if not choice.stops.hit:
            text += choice.stops.push(choice.decoder.finish()) + choice.stops.finish()
        self._send(job, choice, text)
        self._emit(job, Finished(choice.number, reason, choice.stops.found))
        choice.next = None
        job.completed += 1
        self._keep(job, choice)
        if job.completed == job.request.choices:
            self._complete(job)

    def _complete(self, job: Job) -> None:
        assert job.lease is not None
        done = job.done(time.monotonic())
        self._end(job, "done")
        self._emit(job, done)

    def _keep(self, job: Job, choice: Choice) -> None:
        """Leave the states of a finished reply to prompts that begin like it."""
        assert job.lease is not None
        if job.invoked:
            return  # the next prompt invokes elsewhere: what is behind the tokens is of no use
        tokens = np.concatenate([job.request.prompt, np.array(choice.made, np.int32)])
        if choice.valid and self._program.length(choice.sequence) > choice.valid:
            self._program.truncate_sequence(
                choice.sequence, choice.valid
            )  # guesses that nobody needs any more
        sequence, choice.sequence = choice.sequence, -1
        self._cache.add(job.lease.key, tokens[: self._program.length(sequence)], sequence)

    def _keep_early(self, job: Job) -> None:
        """Leave what stands before invocation tokens to all who read it without the adapter."""
        assert job.lease is not None
        assert job.sequence is not None
        with suppress(PoolError):
            fork = self._program.fork_sequence(job.sequence, job.invoked)
            self._cache.add(job.lease.early_key, job.request.prompt[: job.invoked], fork)

    def _fail(self, job: Job, error: LoragraftError) -> None:
        try:
            self._end(job, "failed")
        finally:
            self._emit(job, Failed(error))

    def _end(self, job: Job, how: str) -> None:
        with self._wake:
            if self._jobs.pop(job.request.number, None) is None:
                return
        self._waiting.remove(job)
        if job in self._running:
            self._running.remove(job)
        for sequence in [job.sequence, *(choice.sequence for choice in job.choices)]:
            if sequence is not None and sequence >= 0:
                self._program.close_sequence(sequence)
        job.sequence = None
        job.choices = [choice for choice in job.choices if choice.sequence < 0]
        if job.lease is not None:
            self.shelf.release(job.lease)
        self.telemetry.ended(how)


def _bug(bug: Exception) -> LoragraftError:
    log.error("the scheduler failed", exc_info=bug)
    return LoragraftError("scheduler", f"failed ({type(bug).__name__}); this is a bug")

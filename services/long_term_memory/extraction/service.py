"""ExtractionService: has an LLM read what was said, a batch of an owner at a time, and stores what it finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, tzinfo
from typing import Final, Protocol

import structlog
from keepsake_client.errors import Unavailable
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool

from services.long_term_memory.extraction import outbox, state
from services.long_term_memory.extraction.batch import Batch, Extraction, Usage
from services.long_term_memory.extraction.budget import Budget, Over, Reservation, settle
from services.long_term_memory.extraction.commit import commit
from services.long_term_memory.extraction.outbox import Lease
from services.long_term_memory.extraction.reading import read_batch
from services.long_term_memory.extraction.report import ExtractionReport, SetAside, newest_set_aside, read_report
from services.long_term_memory.postgres.noted_writes import NoteWrites, no_notes
from services.long_term_memory.postgres.pending import BATCH_TOKENS
from services.long_term_memory.postgres.pool import database_errors
from services.long_term_memory.postgres.rows import Vector
from services.runtime.errors import ProviderRefuses, ProviderWaits, UnusableAnswer

#: A lease holds so much longer than a call may take: for waiting in the queue, and for what is read and written.
LEASE_MARGIN_S: Final = 60.0

log = structlog.get_logger()


class Finder(Protocol):
    """Finds facts and changes of slots in a batch, by one call of an LLM; `FactFinder` does."""

    def estimate_tokens(self, batch: Batch) -> int:
        """An estimate of what the call for a batch costs, the answer included."""

    def find(self, batch: Batch) -> Extraction:
        """What the LLM finds in a batch.

        Raises:
            UnusableAnswer, ProviderWaits, ProviderRefuses: it finds nothing out.
        """


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a lease, as numbers.

    Args:
        failed: calls without an answer of use.
        discarded: answers that were not stored, because the batch was another meanwhile.
    """

    calls: int = 0
    tokens: int = 0
    failed: int = 0
    discarded: int = 0
    facts_stored: int = 0
    facts_superseded: int = 0
    facts_confirmed: int = 0
    facts_dropped: int = 0
    messages_set_aside: int = 0


class ExtractionService:
    """Extraction from the messages of the outbox.

    Whatever fails or is killed leaves the messages there; an outcome of a call, and only one, takes them out.

    Args:
        embed: the vectors of texts, as memories have them.
        capacity: how many owners are read at the same time, by all processes together.
        call_s: how long the finder may take.
        zone: of the users.
        note: of the writes of users.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        finder: Finder,
        embed: Callable[[Sequence[str]], Sequence[Vector]],
        budget: Budget,
        *,
        capacity: int,
        call_s: float,
        zone: tzinfo = UTC,
        note: NoteWrites = no_notes,
    ) -> None:
        self._pool = pool
        self._finder = finder
        self._embed = embed
        self._budget = budget
        self._capacity = capacity
        self._lease_s = call_s + LEASE_MARGIN_S
        self._zone = zone
        self._note = note
        self._started = False

    def tick(self) -> list[Lease]:
        """Lease owners who are due; each is to be handed to `extract`, and one that is not is due again later.

        Raises:
            Unavailable: the database does not answer.
        """
        with database_errors(), self._pool.connection() as connection:
            if not self._started:
                state.start_again(connection)
                self._started = True
            allowed = state.leases_allowed(connection, self._capacity)
            return outbox.lease_due(connection, allowed, self._lease_s) if allowed else []

    def report(self) -> ExtractionReport:
        """What waits, and whether it works.

        Raises:
            Unavailable: the database does not answer.
        """
        with database_errors(), self._pool.connection() as connection:
            return read_report(connection)

    def newest_set_aside(self, limit: int) -> list[SetAside]:
        """The messages that were set aside last.

        Raises:
            Unavailable: the database does not answer.
        """
        with database_errors(), self._pool.connection() as connection:
            return newest_set_aside(connection, limit)

    def extract(self, user_number: int, token: str) -> Outcome:
        """Have one batch of an owner read, and store what is found. No transaction is open during the call.

        Raises:
            Unavailable: the database or the embedder does not answer; the batch is read again later.
        """
        lease = Lease(user_number, token)
        with database_errors():
            begun = self._begin(lease)
            if isinstance(begun, Outcome):
                return begun
            batch, reservation = begun
            try:
                found = self._finder.find(batch)
            except UnusableAnswer as error:
                return self._unusable(lease, batch, reservation, str(error), error.usage)
            except ProviderWaits as error:
                return self._wait(lease, batch, reservation, error)
            except ProviderRefuses as error:
                return self._refused(lease, batch, reservation, error)
            return self._store(lease, batch, reservation, found)

    def _begin(self, lease: Lease) -> tuple[Batch, Reservation] | Outcome:
        """The batch of a lease, with the budget for it; or what came of the lease without a call."""
        # No lock is held while the batch is read: those who index its owner's messages would wait for it.
        with self._pool.connection() as connection:
            begun = outbox.begin(connection, lease, self._lease_s)
            if begun is None:
                return Outcome()  # its time was over, and another has it
            if not state.leases_allowed(connection, self._capacity):
                outbox.release(connection, lease)
                return Outcome()
            batch = read_batch(connection, lease.user_number, begun.limit, self._zone)
            if batch is None:
                with connection.transaction():
                    outbox.end(connection, lease)
                return Outcome()
            if begun.abandoned > outbox.MAX_ABANDONED:
                return self._fail(connection, lease, batch, f"the process ended {outbox.MAX_ABANDONED} times")
            tokens = self._finder.estimate_tokens(batch)
            with connection.transaction():
                reserved = self._budget.reserve(connection, lease.user_number, tokens)
            if isinstance(reserved, Reservation):
                return batch, reserved
            return self._over(connection, lease, batch, reserved)

    def _over(self, connection: Connection[TupleRow], lease: Lease, batch: Batch, over: Over) -> Outcome:
        """What comes of a batch that the budget is too small for."""
        first, *others = batch.messages
        # Where a message of ordinary length is too much, all would be set aside.
        if over == "never" and (others or first.tokens > BATCH_TOKENS):
            return self._fail(connection, lease, batch, "it takes more tokens than a day has", final=True)
        if over == "all":
            outbox.release(connection, lease)
            state.over_budget(connection)
        else:
            outbox.release(connection, lease, outbox.OVER_BUDGET_PAUSE_S)
        return Outcome()

    def _store(self, lease: Lease, batch: Batch, reservation: Reservation, found: Extraction) -> Outcome:
        tokens = found.usage.prompt_tokens + found.usage.completion_tokens
        outcome = Outcome(calls=1, tokens=tokens, facts_dropped=sum(found.dropped.values()))
        try:
            vectors = self._embed([fact.text for fact in found.facts]) if found.facts else []
        except Unavailable:
            with self._pool.connection() as connection, connection.transaction():
                outbox.release(connection, lease, outbox.PAUSE_S)
                settle(connection, reservation, found.usage)
            raise
        with self._pool.connection() as connection:
            committed = commit(connection, batch, lease, found, vectors, reservation)
            if committed is None:
                with connection.transaction():
                    outbox.release(connection, lease)
                    settle(connection, reservation, found.usage)
                log.info("extraction_discarded", messages=len(batch.messages))
                return replace(outcome, discarded=1, facts_dropped=0)
        with suppress(Unavailable):  # no request waits for the facts, and the batch is not read again
            self._note([batch.owner.user])
        return replace(
            outcome,
            facts_stored=committed.facts,
            facts_superseded=committed.superseded,
            facts_confirmed=committed.confirmed,
            facts_dropped=outcome.facts_dropped + committed.dropped,
        )

    def _unusable(self, lease: Lease, batch: Batch, reservation: Reservation, reason: str, usage: Usage) -> Outcome:
        with self._pool.connection() as connection, connection.transaction():
            # Others go before a message that fails alone: it may be the provider.
            pause_s = None if len(batch.messages) > 1 else outbox.PAUSE_S
            failed = self._fail(connection, lease, batch, reason, pause_s=pause_s)
            settle(connection, reservation, usage)
            state.unusable(connection, reason)
        return replace(failed, calls=1, tokens=usage.prompt_tokens + usage.completion_tokens, failed=1)

    def _wait(self, lease: Lease, batch: Batch, reservation: Reservation, error: ProviderWaits) -> Outcome:
        with self._pool.connection() as connection, connection.transaction():
            outbox.wait_for_provider(connection, lease, len(batch.messages))
            # A provider that is too slow for the time-out bills what it generates all the same.
            tokens = reservation.tokens if error.may_be_paid else 0
            settle(connection, reservation, Usage(tokens, 0))
            state.failed(connection, str(error), error.retry_after_s)
        return Outcome(calls=1, tokens=tokens, failed=1)

    def _refused(self, lease: Lease, batch: Batch, reservation: Reservation, error: ProviderRefuses) -> Outcome:
        numbers = [message.number for message in batch.messages]
        with self._pool.connection() as connection:
            of_batch = state.refused(connection, str(error), error.status, numbers)
            with connection.transaction():
                failed = Outcome()
                # Others go first: where they are refused too, it is not the batch.
                if of_batch:
                    failed = self._fail(connection, lease, batch, str(error), pause_s=outbox.PAUSE_S)
                else:
                    outbox.release(connection, lease, outbox.PAUSE_S)
                settle(connection, reservation, None)
        return replace(failed, calls=1, failed=1)

    def _fail(
        self,
        connection: Connection[TupleRow],
        lease: Lease,
        batch: Batch,
        reason: str,
        *,
        final: bool = False,
        pause_s: float | None = None,
    ) -> Outcome:
        set_aside = outbox.fail(connection, lease, batch.messages, reason, final=final, pause_s=pause_s)
        if set_aside:
            log.warning("message_set_aside", memory_id=batch.messages[0].memory_id, reason=reason)
        return Outcome(messages_set_aside=set_aside)

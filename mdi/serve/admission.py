"""Who may be answered next: a bounded queue before the KV slots, fair between clients. One event loop; no engine, no network.

A client is whoever `client` names: an API key or an address. Free slots go to the client with the fewest running answers, among these
to the one that has waited longest for its turn. When the queue is full, the client with the most places in it loses its newest one to
a client that would still have fewer: one that floods the queue keeps nobody else out.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus

from mdi.errors import InternalError
from mdi.serve.errors import ApiError, refused

QUEUE_TIMEOUT_S = 600.0  # clients give up after ten minutes by themselves (the openai client's default)
MAX_RETRY_AFTER_S = 60
FIRST_GUESS_S = 5.0  # how long an answer takes, before one has been seen
MEMORY = 0.2  # the weight of the last answer in the running mean of their times


@dataclass(slots=True, eq=False)
class _Ticket:
    """A place in the queue, then a slot. `granted` is set when there is a slot for it."""

    client: str
    reservation: Reservation
    granted: asyncio.Future[None] | None = None
    runs: bool = False


@dataclass(slots=True, eq=False)
class Reservation:
    """The places of one request, one for each answer that it wants."""

    tickets: list[_Ticket] = field(default_factory=list)
    refusal: ApiError | None = None
    """Why it has lost its places."""


class Admission:
    """At most `n_slots` answers at once, and `max_queue` that wait."""

    def __init__(self, n_slots: int, max_queue: int, now_s: Callable[[], float]) -> None:
        self.n_slots = n_slots
        self.max_queue = max_queue
        self._now_s = now_s
        self._waiting: list[_Ticket] = []  # in the order of their coming, at most n_slots + max_queue
        self._running: Counter[str] = Counter()
        self._served: dict[str, int] = {}  # by client: the number of its last turn; only of those who run or wait
        self._turn = 0
        self._mean_s = FIRST_GUESS_S
        self._closed: ApiError | None = None

    @property
    def running(self) -> int:
        return self._running.total()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def closed(self) -> bool:
        return self._closed is not None

    def close(self, refusal: ApiError) -> None:
        """Nobody is admitted any more, and who waits is refused; who runs goes on."""
        self._closed = refusal
        for reservation in {ticket.reservation for ticket in self._waiting}:
            self._refuse(reservation, refusal)

    @contextmanager
    def reserve(self, client: str, n: int) -> Iterator[Reservation]:
        """`n` places; what of them is still waiting when the context is left is given up.

        Raises ApiError: 429 when the queue is full, 503 after `close`, 400 for more places than there are.
        """
        if self._closed is not None:
            raise self._closed
        if n > self.n_slots + self.max_queue:
            raise refused("n", f"{n} answers at once are more than this server has places, {self.n_slots + self.max_queue}")
        self._make_room(client, n)
        reservation = Reservation()
        reservation.tickets += [_Ticket(client, reservation) for _ in range(n)]
        self._waiting += reservation.tickets
        try:
            yield reservation
        finally:
            self._waiting = [ticket for ticket in self._waiting if ticket.reservation is not reservation]
            self._forget(client)

    @asynccontextmanager
    async def slot(self, reservation: Reservation) -> AsyncIterator[None]:
        """Waits for one of the reservation's slots, and holds it while the context is open.

        Raises ApiError when the place is lost meanwhile, or after QUEUE_TIMEOUT_S.
        """
        if reservation.refusal is not None:
            raise reservation.refusal
        ticket = reservation.tickets.pop()
        ticket.granted = asyncio.get_running_loop().create_future()
        self._grant()
        try:
            try:
                async with asyncio.timeout(QUEUE_TIMEOUT_S):
                    await ticket.granted
            except TimeoutError:
                raise self._full("no slot became free in time", HTTPStatus.SERVICE_UNAVAILABLE) from None
            started_s = self._now_s()
            yield
            self._mean_s += MEMORY * (self._now_s() - started_s - self._mean_s)
        finally:
            self._leave(ticket)

    def _make_room(self, client: str, n: int) -> None:
        """Takes places, where they lack, from whoever holds the most. Raises ApiError 429, and takes none, where these would then not
        still hold more than `client`."""
        lacking = self.waiting + n - (self.max_queue + self.n_slots - self.running)
        held = Counter(ticket.client for ticket in self._waiting)
        left = list(self._waiting)
        losers: list[Reservation] = []
        while lacking > 0:
            greedy, most = max(held.items(), key=lambda item: item[1], default=(client, 0))
            if greedy == client or most <= held[client] + n:
                raise self._full("all places in the queue are taken")
            newest = next(ticket.reservation for ticket in reversed(left) if ticket.client == greedy)
            losers.append(newest)
            n_left = len(left)
            left = [ticket for ticket in left if ticket.reservation is not newest]
            held[greedy] -= n_left - len(left)
            lacking -= n_left - len(left)
        for reservation in losers:
            self._refuse(reservation, self._full("others wait too, and the queue is full"))

    def _refuse(self, reservation: Reservation, refusal: ApiError) -> None:
        """Takes a reservation's waiting places away; those of its answers that run already go on until their owner hears of it."""
        reservation.refusal = refusal
        lost = [ticket for ticket in self._waiting if ticket.reservation is reservation]
        self._waiting = [ticket for ticket in self._waiting if ticket.reservation is not reservation]
        for ticket in lost:
            if ticket.granted is not None and not ticket.granted.done():
                ticket.granted.set_exception(refusal)

    def _full(self, why: str, status: int = HTTPStatus.TOO_MANY_REQUESTS) -> ApiError:
        rounds = (self.waiting + 1) / self.n_slots
        wait_s = min(MAX_RETRY_AFTER_S, max(1, math.ceil(rounds * self._mean_s)))
        return ApiError(
            status,
            f"{why}: {self.running} answers run and {self.waiting} wait; try again in about {wait_s} s",
            code="rate_limit_exceeded" if status == HTTPStatus.TOO_MANY_REQUESTS else "queue_timeout",
            retry_after_s=wait_s,
        )

    def _grant(self) -> None:
        while self.running < self.n_slots:
            ready = [ticket for ticket in self._waiting if ticket.granted is not None and not ticket.granted.done()]
            if not ready:
                return
            ticket = min(ready, key=lambda each: (self._running[each.client], self._served.get(each.client, 0)))
            assert ticket.granted is not None
            self._waiting.remove(ticket)
            self._turn += 1
            self._served[ticket.client] = self._turn
            self._running[ticket.client] += 1
            ticket.runs = True
            ticket.granted.set_result(None)

    def _leave(self, ticket: _Ticket) -> None:
        if ticket.runs:
            ticket.runs = False
            self._running[ticket.client] -= 1
        elif ticket in self._waiting:
            self._waiting.remove(ticket)
        if ticket.granted is not None and ticket.granted.done() and not ticket.granted.cancelled():
            ticket.granted.exception()  # whoever was cancelled while it was refused has no one to tell
        self._grant()
        self._forget(ticket.client)

    def _forget(self, client: str) -> None:
        """Of clients that are gone nothing is kept: addresses are many."""
        if not self._running[client]:
            del self._running[client]
            if all(ticket.client != client for ticket in self._waiting):
                self._served.pop(client, None)

    def check_integrity(self) -> None:
        """To be called when nobody is served: nothing is left over."""
        if self.running or self._waiting or self._served or self._running:
            raise InternalError("places or slots were not given back")

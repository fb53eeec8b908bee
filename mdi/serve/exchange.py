"""One request and its reply: what a route's handler is given."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TypeAlias

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from mdi.pipeline import api
from mdi.pipeline.api import Answer
from mdi.serve.admission import Reservation
from mdi.serve.answers import answering
from mdi.serve.service import Service
from mdi.serve.streaming import Dialect, send_json, stream


@dataclass(slots=True)
class Exchange:
    """`client`: who asks, for the queue's fairness; `request_id` stands in the log and in the reply's header."""

    service: Service
    scope: Scope
    receive: Receive
    send: Send
    client: str
    request_id: str
    arrived_s: float = field(default_factory=time.perf_counter)  # when the headers were there
    answers: list[Answer] = field(default_factory=list)  # that came to their ends

    @property
    def request(self) -> Request:
        return Request(self.scope, self.receive)

    def reserve(self, n: int) -> AbstractContextManager[Reservation]:
        """Places in the queue. To be held before anything expensive is done for the request. Raises ApiError (429, 503)."""
        self.service.metrics.sizes["request_params_n"].observe(n)
        return self.service.admission.reserve(self.client, n)

    async def json(self, data: object) -> None:
        await send_json(self.send, data)

    async def whole(
        self, reservation: Reservation, requests: Sequence[api.Request], tell: Callable[[list[Answer]], object]
    ) -> None:
        """All answers at once, as `tell` writes them. Raises ApiError, or what the pipeline failed with, before anything is sent."""
        async with answering(self.service, reservation, requests, self.receive, self.arrived_s) as answers:
            self.answers = answers.finished
            found = await answers.rest()
        await self.json(tell([found[index] for index in range(len(requests))]))

    async def stream(self, reservation: Reservation, requests: Sequence[api.Request], dialect: Dialect) -> None:
        """As they come. Raises as `streaming.stream`."""
        async with answering(self.service, reservation, requests, self.receive, self.arrived_s) as answers:
            self.answers = answers.finished
            await stream(answers, dialect, self.send)


Handler: TypeAlias = Callable[[Exchange], Awaitable[None]]

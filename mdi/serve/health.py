"""`/health`, `/version`, `/v1/models`, `/metrics`: about the server and the chain behind it."""

from __future__ import annotations

import asyncio
import time
from http import HTTPStatus
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from mdi import __version__
from mdi.serve.errors import RETRY_S
from mdi.serve.exchange import Exchange
from mdi.serve.service import Service
from mdi.serve.streaming import send_body, send_json

FRESH_S = 1.0  # so long an answer of the chain holds: whoever asks more often must not burden the nodes
CHECK_TIMEOUT_S = 5.0  # for all nodes to tell; one that is silent for so long does not answer anybody


class Health:
    """What the whole chain says of itself: each worker whether it holds its stage, the ring whether it goes round."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._known: dict[str, str | None] = {}
        self._known_s = -FRESH_S
        self._known_failure: BaseException | None = None  # of the ring, when that was asked
        self._lock = asyncio.Lock()  # one question to the nodes at a time

    async def problems(self) -> dict[str, str | None]:
        """By node, None where all is well."""
        async with self._lock:
            failure = self._service.starter.failure
            if failure is not self._known_failure or time.monotonic() - self._known_s >= FRESH_S:
                self._known = await self._ask()
                self._known_s, self._known_failure = time.monotonic(), failure
        return self._known

    async def _ask(self) -> dict[str, str | None]:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                return await self._service.starter.problems_now()
        except TimeoutError:
            silent = f"not all nodes answered within {CHECK_TIMEOUT_S:.0f} s"
            return {stage.name: silent for stage in self._service.starter.plan.stages}

    async def route(self, call: Exchange, *, details: bool) -> None:
        """200 when an answer could be computed now, else 503. Who has no key is told nothing else."""
        problems = await self.problems()
        well = not any(problems.values()) and not self._service.ending
        told: dict[str, Any] = {"status": "ok" if well else "ending" if self._service.ending else "failed"}
        if details:
            told |= self._details(problems)
        headers = [] if well else [("retry-after", str(RETRY_S))]
        await send_json(call.send, told, HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE, headers)

    def _details(self, problems: dict[str, str | None]) -> dict[str, Any]:
        stages = [
            {"node": stage.name, "start": stage.blocks.start, "stop": stage.blocks.stop, "problem": problems.get(stage.name)}
            for stage in self._service.starter.plan.stages
        ]
        admission = self._service.admission
        return {
            "model": self._service.name,
            "stages": stages,
            "slots": admission.n_slots,
            "running": admission.running,
            "waiting": admission.waiting,
        }


async def version(call: Exchange) -> None:
    await call.json({"version": __version__})


async def models(call: Exchange) -> None:
    """`root` and `max_model_len` as vLLM's clients look for them."""
    service = call.service
    entries = [
        {
            "id": name,
            "object": "model",
            "created": int(service.started_s),
            "owned_by": "mdi",
            "root": service.starter.model.source.name,
            "parent": None,
            "max_model_len": service.starter.ctx,
        }
        for name in service.names
    ]
    await call.json({"object": "list", "data": entries})


async def model(call: Exchange) -> None:
    """One of them, by the name in the path."""
    service, name = call.service, call.scope["path_params"]["name"]
    service.check_name(name)
    told = {"id": name, "object": "model", "created": int(service.started_s), "owned_by": "mdi"}
    await call.json(told)


async def metrics(call: Exchange) -> None:
    await send_body(call.send, generate_latest(call.service.metrics.registry), CONTENT_TYPE_LATEST)

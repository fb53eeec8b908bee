"""What all routes share: the model that is up, who may use it, and what is counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TypeVar

from mdi.errors import UserError
from mdi.pipeline.starter import Starter
from mdi.serve.admission import Admission
from mdi.serve.body import Fields
from mdi.serve.errors import ApiError
from mdi.serve.metrics import Metrics
from mdi.serve.settings import Defaults

PREPARING_AT_ONCE = 2  # prompts that are rendered and cut into tokens, in threads: more would only take the engine's cores

T = TypeVar("T")


@dataclass(slots=True)
class Service:
    """`names`: what the model may be called in requests; the first is the one that it calls itself."""

    starter: Starter
    names: tuple[str, ...]
    admission: Admission
    metrics: Metrics
    defaults: Defaults
    started_s: float = field(default_factory=time.time)
    preparing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PREPARING_AT_ONCE))

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def takes_tools(self) -> bool:
        """Whether the model converses, and was trained to call tools."""
        try:
            return self.starter.model.chat.takes_tools
        except UserError:
            return False

    def encode_once(self) -> None:
        """Compiles the chat template and fills what is lazy, so that the first request takes no longer than the others."""
        with suppress(UserError):  # it continues text only, or wants turns of its own: requests are told so
            self.starter.model.encode_turns([{"role": "user", "content": "Hello"}])

    @property
    def ending(self) -> bool:
        return self.admission.closed

    def check_model(self, body: Fields) -> str:
        """What the request calls the model; left out, it is the one that is here. Raises ApiError for one that is not."""
        return self.check_name(body.text("model", self.name))

    def check_name(self, name: str) -> str:
        """Raises ApiError for a model that is not here. Ollama's clients add `:latest`."""
        if name not in self.names and name.removesuffix(":latest") not in self.names:
            raise ApiError(
                HTTPStatus.NOT_FOUND,
                f"the model {name[:80]!r} is not here; this server has {self.name!r}",
                param="model",
                code="model_not_found",
            )
        return name

    async def prepared(self, function: Callable[[], T]) -> T:
        """What `function` gives, computed in a thread: templates, tokenizers and schemas take milliseconds, and frames must not wait."""
        async with self.preparing:
            return await asyncio.to_thread(function)

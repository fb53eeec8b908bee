"""The stages that a node holds, for whom, and until when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NoReturn

from mdi.engine.backend import ONNX, Backend
from mdi.errors import NoRoom, PeerError
from mdi.node.packs import PackStore
from mdi.node.results import Results
from mdi.node.stage import LoadedStage, StageSpec
from mdi.node.threads import in_thread
from mdi.profile.memory import format_bytes
from mdi.wire.ring import RingTarget

LEASE_S = 30.0  # a starter that vanished gets this long to come back before its stage is freed
MAX_STAGES = 16  # sessions at once; memory is refused long before


@dataclass(slots=True)
class Held:
    """A stage, its results when it is the last one, and its lease.

    `ended` is set when the stage is freed: whoever uses it ends then.
    """

    stage: LoadedStage
    expires_s: float
    watchers: int = 0
    results: Results = field(default_factory=Results)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait_ended(self) -> NoReturn:
        """Raises PeerError once the stage is freed."""
        await self.ended.wait()
        raise self.stage.over()


class Stages:
    """One stage per session. All methods belong to the event loop.

    `offered(used, promised)` says how much memory a new stage may take, when stages hold `used` bytes, of which `promised` are not
    taken from the system yet.
    """

    def __init__(
        self, packs: PackStore, offered: Callable[[int, int], int], now_s: Callable[[], float], backend: Backend = ONNX
    ) -> None:
        self._backend = backend
        self._packs = packs
        self._offered = offered
        self._now_s = now_s
        self._held: dict[str, Held] = {}
        self._loading_bytes: dict[str, int] = {}
        self._dropped = False

    @property
    def used_bytes(self) -> int:
        """Memory that loaded and loading stages take."""
        return sum(held.stage.spec.memory_bytes for held in self._held.values()) + sum(self._loading_bytes.values())

    @property
    def promised_bytes(self) -> int:
        """Of these, what will be missing in the system's available memory only later: stages that load, and what the loaded ones
        have not taken yet."""
        return sum(held.stage.promised_bytes for held in self._held.values()) + sum(self._loading_bytes.values())

    @property
    def offered_bytes(self) -> int:
        return max(0, self._offered(self.used_bytes, self.promised_bytes))

    def __iter__(self) -> Iterator[LoadedStage]:
        return (held.stage for held in self._held.values())

    async def load(self, spec: StageSpec) -> LoadedStage:
        """Loads a stage in place of the session's older one. Raises NoRoom, ModelError, or PeerError for an epoch that is not newer.

        When the caller is cancelled, what is loading is freed as soon as it is there; until then it counts.
        """
        session = spec.target.session
        if session in self._loading_bytes:
            raise PeerError(f"session {session} is loading a stage already")
        if (old := self._held.get(session)) is not None:
            self._check_owner(old, spec.starter_id)
            if spec.target.epoch <= old.stage.spec.target.epoch:
                raise PeerError(f"epoch {spec.target.epoch} is not newer than {old.stage.spec.target.epoch}")
            self._drop(session)
        if len(self._held) + len(self._loading_bytes) >= MAX_STAGES:
            raise NoRoom(f"this node holds {MAX_STAGES} stages already", hint="end another `mdi run` first")
        if spec.memory_bytes > self.offered_bytes:
            raise NoRoom(
                f"{len(spec.blocks)} blocks need {format_bytes(spec.memory_bytes)}, and {format_bytes(self.offered_bytes)} are offered",
                hint="plan again: run the command once more, or lower --ctx",
            )
        self._loading_bytes[session] = spec.memory_bytes
        try:
            packs = [self._packs.open(ref) for ref in spec.packs]
            engine = await in_thread(self._backend.make_engine, spec.config, packs, spec.shape, spec.blocks.start)
        except BaseException:
            self._dropped = True
            raise
        finally:
            del self._loading_bytes[session]
        stage = LoadedStage(spec, engine)
        self._held[session] = Held(stage, self._now_s() + LEASE_S)
        return stage

    def get(self, target: RingTarget) -> Held:
        """Raises PeerError when the session has no stage here, or one of another epoch."""
        held = self._held.get(target.session)
        if held is None:
            raise PeerError(f"session {target.session} has no stage on this node", hint="run the command again")
        if held.stage.spec.target.epoch != target.epoch:
            raise PeerError(f"epoch {target.epoch} is over: this node is at {held.stage.spec.target.epoch}")
        return held

    def results(self, target: RingTarget, starter_id: str) -> Results:
        """What the stage's starter collects. Raises as `get` does, and PeerError when it is another starter's."""
        held = self.get(target)
        self._check_owner(held, starter_id)
        return held.results

    def unload(self, session: str, starter_id: str) -> bool:
        """Frees the session's stage; False when there is none. Raises PeerError when it is another starter's."""
        held = self._held.get(session)
        if held is None:
            return False
        self._check_owner(held, starter_id)
        self._drop(session)
        return True

    @contextmanager
    def watch(self, session: str, starter_id: str) -> Iterator[Held]:
        """Keeps the session's stage while the context is open, and LEASE_S longer; a newer epoch's needs a watch of its own."""
        held = self._held.get(session)
        if held is None:
            raise PeerError(f"session {session} has no stage on this node", hint="run the command again")
        self._check_owner(held, starter_id)
        held.watchers += 1
        try:
            yield held
        finally:
            held.watchers -= 1
            held.expires_s = self._now_s() + LEASE_S

    def expire(self) -> list[str]:
        """Frees stages whose lease is over. Returns their sessions."""
        now_s = self._now_s()
        over = [session for session, held in self._held.items() if not held.watchers and held.expires_s <= now_s]
        for session in over:
            self._drop(session)
        return over

    def close(self) -> None:
        for session in tuple(self._held):
            self._drop(session)

    def take_dropped(self) -> bool:
        """Whether a stage was freed since the last call."""
        dropped, self._dropped = self._dropped, False
        return dropped

    def _drop(self, session: str) -> None:
        self._dropped = True
        held = self._held.pop(session)
        held.stage.free()
        held.ended.set()
        held.results.end()
        self._backend.release()

    def _check_owner(self, held: Held, starter_id: str) -> None:
        if held.stage.spec.starter_id != starter_id:
            raise PeerError(f"that session belongs to node {held.stage.spec.starter_id[:12]}")

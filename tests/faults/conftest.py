"""Real daemons with the built-in model, which tests kill and freeze: the next test finds them alive again."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from mdi.engine.sampling import SamplingParams
from mdi.pipeline.api import Answer, Piece, Progress, Request, StarterOptions
from mdi.pipeline.starter import Starter, open_starter
from tests.cluster.conftest import Daemon, House

CTX = 256
NEW_TOKENS = 40
NO_END = ((1, -100.0),)  # the end of a turn is never sampled: the model goes on talking
GREEDY = SamplingParams(logit_bias=NO_END)
SAMPLED = SamplingParams(0.9, seed=7, logit_bias=NO_END)
PROMPT = "Tell me about the cow and the capital of France."

Hook = Callable[[], None]


class Nodes:
    """Daemons by name."""

    def __init__(self, house: House) -> None:
        self.house = house
        self._daemons: dict[str, Daemon] = {}

    def get(self, name: str, *arguments: str, before: str = "") -> Daemon:
        """It runs, as it was started first, at the port that it had before."""
        daemon = self._daemons.get(name)
        if daemon is None:
            self._daemons[name] = self.house.start(name, *arguments, before=before)
        elif daemon.process.poll() is not None:
            self._daemons[name] = self.house.start(name, *arguments, "--port", str(daemon.node.port), before=before)
        else:
            daemon.signal(signal.SIGCONT)
        return self._daemons[name]

    def kill(self, name: str) -> None:
        daemon = self._daemons[name]
        daemon.signal(signal.SIGKILL)
        daemon.process.wait(10)

    @asynccontextmanager
    async def starter(
        self, *names: str, said: list[str] | None = None, all_work: bool = True, **changes: object
    ) -> AsyncIterator[Starter]:
        """A model over these nodes. `said` hears what the user is told; `all_work`: each node has blocks, as long as it is there."""
        peers = tuple(self.get(name).address for name in names)
        settings = {"discovery": False, "wait_s": 0.1, "threads": 1, "ctx": CTX, "n_slots": 2} | changes
        if all_work:
            settings["min_nodes"] = 1 + len(names)

        def hear(progress: Progress) -> None:
            if said is not None and progress.key == "recovery" and progress.done == progress.total:
                said.append(progress.label)

        options = StarterOptions(peers=peers, **settings)
        async with open_starter(options, self.house.home("starter"), hear) as starter:
            yield starter


async def ask(
    starter: Starter, params: SamplingParams = GREEDY, hooks: dict[int, Hook] | None = None, prompt: str = PROMPT
) -> tuple[int, ...]:
    """The answer's tokens; a hook is called when so many have come."""
    ids, count = starter.model.tokenizer.encode_prompt(prompt), 0
    async for event in starter.generate(Request(tuple(ids), params, max_tokens=NEW_TOKENS)):
        match event:
            case Piece(token_id=int()):
                count += 1
                if hooks and count in hooks:
                    hooks[count]()
            case Answer(token_ids=tokens):
                return tokens
    raise AssertionError("an answer did not end")


def names(starter: Starter) -> set[str]:
    """Of the nodes of the plan, without the starter."""
    return {stage.name for stage in starter.plan.stages[1:]}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    house = House(tmp_path_factory.mktemp("house"))
    yield Nodes(house)
    house.end()

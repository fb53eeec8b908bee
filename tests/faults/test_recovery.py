"""Workers die and freeze in the middle of answers, and no token is lost: real daemons, the built-in model, greedy and sampled."""

from __future__ import annotations

import asyncio
import re
import signal
from contextlib import suppress
from dataclasses import replace

import pytest

from mdi.errors import NoRoom, PeerError
from mdi.pipeline.peer import Peer
from mdi.pipeline.ring import GrpcRing
from mdi.pipeline.starter import Starter
from mdi.plan.costs import Problem, StageTime
from mdi.wire.ring import Flow, RingTarget, collect
from mdi.wire.status import from_rpc_error
from tests.faults.conftest import GREEDY, NEW_TOKENS, PROMPT, SAMPLED, Hook, Nodes, ask, names

DEADLINE_S = 60.0
pytestmark = pytest.mark.timeout(180)

Answers = list[tuple[int, ...]]
_undisturbed: Answers = []


async def both(starter: Starter, hooks: dict[int, Hook] | None = None) -> Answers:
    """A greedy and a sampled answer side by side; `hooks` are called by the tokens of the greedy one."""
    async with asyncio.timeout(DEADLINE_S):
        return list(await asyncio.gather(ask(starter, GREEDY, hooks), ask(starter, SAMPLED)))


@pytest.fixture
async def undisturbed(nodes: Nodes) -> Answers:
    """What the same two answers are when nothing happens."""
    if not _undisturbed:
        async with nodes.starter("one", "two") as starter:
            assert names(starter) == {"one", "two"}
            _undisturbed.extend(await both(starter))
        assert [len(tokens) for tokens in _undisturbed] == [NEW_TOKENS, NEW_TOKENS]
        assert _undisturbed[0] != _undisturbed[1]
    return _undisturbed


@pytest.mark.parametrize(("token", "victim"), [(1, "one"), (8, "two"), (35, "one")])
async def test_a_killed_worker_costs_no_token(nodes: Nodes, undisturbed: Answers, token: int, victim: str) -> None:
    said: list[str] = []
    async with nodes.starter("one", "two", said=said) as starter:
        assert await both(starter, {token: lambda: nodes.kill(victim)}) == undisturbed
        assert victim not in names(starter)
        (recovery,) = starter.recoveries
        assert recovery.node == victim
        assert 0 < recovery.seconds < DEADLINE_S
    (line,) = said
    assert line.startswith(f"{victim} does not answer any more; this device")


async def test_a_frozen_worker_costs_no_token_and_its_old_epoch_is_refused(nodes: Nodes, undisturbed: Answers) -> None:
    async with nodes.starter("one", "two") as starter:
        frozen = nodes.get("one")
        assert await both(starter, {5: lambda: frozen.signal(signal.SIGSTOP)}) == undisturbed
        assert names(starter) == {"two"}
        (recovery,) = starter.recoveries
        assert recovery.node == "one"
        frozen.signal(signal.SIGCONT)  # its frames that were on their way move again
        await _refuses_the_first_epoch(starter)
        assert await both(starter) == undisturbed
        assert len(starter.recoveries) == 1


async def _refuses_the_first_epoch(starter: Starter) -> None:
    """By frames that come late, and by results that are asked for late."""
    (worker,) = starter._epochs.deployment.workers
    current = starter._epochs.deployment.target
    old = RingTarget(current.session, current.epoch - 1)
    steps = (await starter.stage_steps())["two"]
    async with starter._epochs._setting.house.dialler.open(worker.peer.address) as channel, asyncio.timeout(DEADLINE_S):
        flow = Flow(channel, old, "two")
        with suppress(PeerError):  # it may be refused before or after gRPC has taken the frame
            await flow.send(b"a frame of the old epoch")
        late = collect(channel, old)
        for ended in (await flow.ended, await _failure(late)):
            refused = from_rpc_error(ended, "two")
            assert isinstance(refused, PeerError)
            assert f"epoch {old.epoch} is over: this node is at {current.epoch}" in str(refused)
    assert (await starter.stage_steps())["two"] == steps


async def _failure(call: object) -> object:
    try:
        await call.read()  # type: ignore[attr-defined]
    except Exception as error:
        return error
    raise AssertionError("a late call was served")


async def test_a_worker_that_dies_in_the_middle_of_a_prompt(
    nodes: Nodes, undisturbed: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, sent = GrpcRing.send, 0

    async def send_and_kill(ring: GrpcRing, frame: bytes) -> None:
        nonlocal sent
        sent += 1
        if sent == 2:
            nodes.kill("one")
        await send(ring, frame)

    async with nodes.starter("one", "two") as starter:
        starter._core._scheduler._chunk_tokens = len(PROMPT) // 8
        monkeypatch.setattr(GrpcRing, "send", send_and_kill)
        async with asyncio.timeout(DEADLINE_S):
            assert await ask(starter) == undisturbed[0]
        assert names(starter) == {"two"}


async def test_two_die_one_after_the_other_and_the_starter_goes_on_alone(nodes: Nodes, undisturbed: Answers) -> None:
    said: list[str] = []
    async with nodes.starter("one", "two", said=said) as starter:
        deaths = {4: lambda: nodes.kill("two"), 20: lambda: nodes.kill("one")}
        assert await both(starter, deaths) == undisturbed
        assert names(starter) == set()
        assert [recovery.node for recovery in starter.recoveries] == ["two", "one"]
    assert said[-1] == "one does not answer any more; this device goes on alone"


async def test_a_worker_dies_while_the_next_epoch_is_loaded(
    nodes: Nodes, undisturbed: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Peer.load

    async def kill_and_load(peer: Peer, spec: object) -> None:
        if peer.address.name == "two" and spec.target.epoch == 2:  # type: ignore[attr-defined]
            nodes.kill("two")
        await load(peer, spec)  # type: ignore[arg-type]

    monkeypatch.setattr(Peer, "load", kill_and_load)
    async with nodes.starter("one", "two") as starter:
        assert await both(starter, {9: lambda: nodes.kill("one")}) == undisturbed
        assert [recovery.node for recovery in starter.recoveries] == ["one", "two"]
        assert names(starter) == set()


async def test_what_nobody_can_hold_is_named_and_works_again_when_the_node_is_back(nodes: Nodes, undisturbed: Answers) -> None:
    async with nodes.starter("one") as starter:
        most = starter.problem.bytes_needed(0, 4)
    async with nodes.starter("one", max_memory_bytes=most) as starter:
        with pytest.raises(NoRoom, match=r"only 4 of 10 blocks fit: .* missing") as error:
            await both(starter, {6: lambda: nodes.kill("one")})
        assert error.value.exit_code == 1
        assert error.value.hint
        assert "one does not answer" in error.value.__notes__
        with pytest.raises(NoRoom):
            await both(starter)
        nodes.get("one")
        assert await both(starter) == undisturbed
        assert names(starter) == {"one"}


async def test_a_node_that_comes_back_is_used_again_by_the_next_plan(nodes: Nodes, undisturbed: Answers) -> None:
    said: list[str] = []
    async with nodes.starter("one", "two", said=said) as starter:
        assert await both(starter, {6: lambda: nodes.kill("two")}) == undisturbed
        nodes.get("two")
        async with asyncio.timeout(DEADLINE_S):
            while not await starter.replan("two is back"):  # noqa: ASYNC110 (it is out for some seconds, by the clock)
                await asyncio.sleep(0.1)
        assert names(starter) == {"one", "two"}
        assert await both(starter) == undisturbed
    assert re.fullmatch("two is back; this device, (one and two|two and one) go on", said[-1])


async def test_a_plan_changes_in_the_middle_of_answers(nodes: Nodes, undisturbed: Answers) -> None:
    """As adaptation does it: nothing has failed, and no token is lost."""
    changes: list[asyncio.Task[bool]] = []
    async with nodes.starter("one", "two") as starter:
        most = max(starter.plan.stages, key=lambda stage: len(stage.blocks))

        def slowed(problem: Problem) -> Problem:
            index = problem.index(most.node_id)
            node = problem.nodes[index]
            slow = replace(node, decode=StageTime(node.decode.overhead_s, 1000 * node.decode.block_s))
            return replace(problem, nodes=(*problem.nodes[:index], slow, *problem.nodes[index + 1 :]))

        def change() -> None:
            starter._epochs.shown = slowed
            changes.append(asyncio.create_task(starter.replan(f"{most.name} is slow now")))

        assert await both(starter, {3: change}) == undisturbed
        assert await changes[0]
        after = {stage.node_id: len(stage.blocks) for stage in starter.plan.stages}
        assert after[most.node_id] == 1
        assert len(after) == 3
        assert starter.recoveries == ()


async def test_an_idle_ring_recovers_before_the_next_answer(nodes: Nodes, undisturbed: Answers) -> None:
    async with nodes.starter("one", "two") as starter:
        nodes.kill("two")
        async with asyncio.timeout(DEADLINE_S):
            while not starter.recoveries:  # noqa: ASYNC110 (between answers only the terminal is told)
                await asyncio.sleep(0.01)
        assert await both(starter) == undisturbed
        assert len(starter.recoveries) == 1

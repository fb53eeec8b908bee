"""A model over real daemons: the same answer however it is split, and clear errors when it cannot be."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mdi.cluster.home import Home
from mdi.cluster.key import ClusterKey
from mdi.engine.sampling import SamplingParams
from mdi.errors import ClusterError, LinkError, NoRoom, PromptTooLong, UserError, WrongCluster, WrongVersion
from mdi.model.quantise import Quant
from mdi.pipeline.api import Answer, FinishReason, Piece, Request, StarterOptions
from mdi.pipeline.starter import Starter, draw_plan, open_starter
from mdi.pipeline.survey import list_nodes
from tests.cluster.conftest import N_BLOCKS, House
from tools.quoting import make_quoting, text_ids
from tools.shapes import SHAPES

PROMPT = tuple(range(10, 40))
NEW_TOKENS = 24


def options(model: Path, *daemons: object, **changes: object) -> StarterOptions:
    peers = tuple(daemon.address for daemon in daemons)
    settings = {"quant": Quant.NONE, "ctx": 128, "discovery": False, "threads": 1, "wait_s": 0.1} | changes
    return StarterOptions(model=str(model), peers=peers, **settings)


async def ask(starter: Starter, prompt: tuple[int, ...] = PROMPT, **changes: object) -> Answer:
    request = Request(prompt, **({"max_tokens": NEW_TOKENS, "ignore_eos": True, "speculate": False} | changes))
    return [event async for event in starter.generate(request) if isinstance(event, Answer)][-1]


async def answer(options: StarterOptions, home: Home) -> tuple[Answer, Starter]:
    async with open_starter(options, home, lambda _: None) as starter:
        return await ask(starter), starter


async def test_every_split_gives_the_tokens_of_one_device(house: House, model: Path) -> None:
    one, two = house.start("one"), house.start("two")
    home = house.home("starter")
    alone, starter = await answer(options(model), home)
    assert [len(stage.blocks) for stage in starter.plan.stages] == [N_BLOCKS]
    assert len(alone.token_ids) == NEW_TOKENS
    for split in ((1, 2, 2), (3, 2), (0, 4, 1), (2, 0, 3)):
        found, starter = await answer(options(model, one, two, split=split), home)
        assert [len(stage.blocks) for stage in starter.plan.stages] == [split[0], *(n for n in split[1:] if n)]
        assert found.token_ids == alone.token_ids, split


async def test_every_stage_works_and_frees_its_memory_at_the_end(house: House, model: Path) -> None:
    one, two = house.start("one"), house.start("two")
    home = house.home("starter")
    async with open_starter(options(model, one, two, min_nodes=3), home, lambda _: None) as starter:
        blocks = [block for stage in starter.plan.stages for block in range(stage.blocks.start, stage.blocks.stop)]
        assert blocks == list(range(N_BLOCKS))
        assert len(starter.plan.stages) == 3
        await ask(starter)
        steps = await starter.stage_steps()
        assert min(steps.values()) >= NEW_TOKENS
        held = await list_nodes(home, (one.address, two.address), discovery=False, wait_s=0.1)
        assert [len(row.stages) for row in held.rows] == [1, 1]
    freed = await list_nodes(home, (one.address, two.address), discovery=False, wait_s=0.1)
    assert [(len(row.stages), row.memory_used_bytes) for row in freed.rows] == [(0, 0), (0, 0)]


async def test_a_long_prompt_in_chunks_equals_the_same_prompt_alone(house: House, model: Path) -> None:
    one = house.start("one")
    home = house.home("starter")
    prompt = tuple(i % 300 for i in range(100))
    expected, found = [], []
    for split, answers in (((5,), expected), ((2, 3), found)):
        async with open_starter(options(model, one, split=split, ctx=128), home, lambda _: None) as starter:
            starter._core._scheduler._chunk_tokens = 16
            answers.append((await ask(starter, prompt)).token_ids)
    assert found == expected


async def test_the_next_turn_reuses_the_conversation(house: House, model: Path) -> None:
    one = house.start("one")
    async with open_starter(options(model, one, split=(2, 3)), house.home("starter"), lambda _: None) as starter:
        first = await ask(starter)
        turn = (*PROMPT, *first.token_ids, 7, 8, 9)
        second = await ask(starter, turn, max_tokens=5)
        assert second.timings.reused_tokens == len(PROMPT) + NEW_TOKENS - 1
    async with open_starter(options(model, one, split=(2, 3)), house.home("starter"), lambda _: None) as starter:
        fresh = await ask(starter, turn, max_tokens=5)
    assert fresh.timings.reused_tokens == 0
    assert fresh.token_ids == second.token_ids


async def test_guesses_change_no_answer_of_several_conversations_over_any_split(house: House, tmp_path: Path) -> None:
    quoting = make_quoting(SHAPES["tiny"], tmp_path / "quoting")
    one, two = house.start("one"), house.start("two")
    home, text = house.home("starter"), text_ids()
    asked = [
        (text * 2, SamplingParams()),
        ((*text[9:], *text[:20]), SamplingParams(0.8, seed=3)),
        (PROMPT, SamplingParams(1.0)),
    ]
    answers = []
    for split in ((2,), (0, 1, 1)):
        settings = options(quoting, one, two, split=split, n_slots=3, ctx=256)
        async with open_starter(settings, home, lambda _: None) as starter:
            for speculate in (False, True):
                wanted = [ask(starter, prompt, params=params, max_tokens=100, speculate=speculate) for prompt, params in asked]
                found = await asyncio.gather(*wanted)
                answers.append([answer.token_ids for answer in found])
            assert found[0].timings.accepted_tokens > 80
    assert all(each == answers[0] for each in answers)


async def test_right_guesses_save_whole_trips_round_the_ring(house: House, tmp_path: Path) -> None:
    quoting = make_quoting(SHAPES["tiny"], tmp_path / "quoting")
    one, two = house.start("one"), house.start("two")
    trips = []
    async with open_starter(
        options(quoting, one, two, split=(0, 1, 1), ctx=256), house.home("starter"), lambda _: None
    ) as starter:
        for speculate in (False, True):
            before = await starter.stage_steps()
            await ask(starter, text_ids() * 2, max_tokens=100, speculate=speculate)
            after = await starter.stage_steps()
            trips.append({name: after[name] - before[name] for name in ("one", "two")})
    assert trips[0] == {"one": 100, "two": 100}
    assert max(trips[1].values()) < 25


async def test_conversations_side_by_side_do_not_mix(house: House, model: Path) -> None:
    one = house.start("one")
    home = house.home("starter")
    prompts = [PROMPT, PROMPT[::-1], PROMPT[5:20]]
    async with open_starter(options(model, one, split=(2, 3), n_slots=3), home, lambda _: None) as starter:
        together = await asyncio.gather(*(ask(starter, prompt) for prompt in prompts))
        one_by_one = [await ask(starter, prompt) for prompt in prompts]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in one_by_one]


@pytest.mark.parametrize("alone", [True, False])
async def test_cancelling_an_answer_keeps_the_session(house: House, model: Path, alone: bool) -> None:
    chosen = options(model) if alone else options(model, house.start("one"), split=(2, 3))
    async with open_starter(chosen, house.home("starter"), lambda _: None) as starter:
        events = []
        async for event in starter.generate(Request(PROMPT, max_tokens=90, ignore_eos=True)):
            events.append(event)
            if len(events) == 3:
                starter.cancel()
        assert events[-1].finish_reason is FinishReason.CANCELLED
        assert all(isinstance(event, Piece) for event in events[:-1])
        assert len((await ask(starter)).token_ids) == NEW_TOKENS


async def test_stop_strings_end_the_answer_before_them(house: House, model: Path) -> None:
    async with open_starter(options(model), house.home("starter"), lambda _: None) as starter:
        full = await ask(starter)
        stop = full.text[8:10]
        cut = await ask(starter, stop=(stop,))
    assert cut.text == full.text[: full.text.index(stop)]
    assert cut.finish_reason is FinishReason.STOP


async def test_a_node_of_another_cluster_is_named_as_such(house: House, model: Path) -> None:
    stranger = house.start("stranger", key=ClusterKey.generate())
    with pytest.raises(WrongCluster, match="another cluster key"):
        await draw_plan(options(model, stranger), house.home("starter"), lambda _: None)


async def test_a_node_of_another_version_is_named_with_both_versions(house: House, model: Path) -> None:
    newer = house.start("newer", before="import mdi.wire\nmdi.wire.PROTOCOL = 99")
    with pytest.raises(WrongVersion, match=r"newer \(127.0.0.1\) speaks protocol 99") as error:
        await draw_plan(options(model, newer), house.home("starter"), lambda _: None)
    assert "same version" in (error.value.hint or "")


async def test_a_peer_where_nothing_listens_is_named(house: House, model: Path) -> None:
    one = house.start("one")
    one.end()
    house.daemons.clear()
    with pytest.raises(LinkError, match=str(one.node.port)):
        await draw_plan(options(model, one), house.home("starter"), lambda _: None)


async def test_no_room_anywhere_says_what_is_missing(house: House, model: Path) -> None:
    small = house.start("small", "--max-memory", "1MiB")
    with pytest.raises(NoRoom) as error:
        await draw_plan(options(model, small, max_memory_bytes=1 << 20), house.home("starter"), lambda _: None)
    assert "5 blocks" in str(error.value)
    assert error.value.hint


async def test_memory_caps_spread_the_model(house: House, model: Path) -> None:
    """Alone would be fastest; the starter's cap leaves no choice."""
    one = house.start("one")
    planned = await draw_plan(options(model, one), house.home("starter"), lambda _: None)
    assert len(planned.plan.stages) == 1
    cap = planned.problem.bytes_needed(0, 2)
    planned = await draw_plan(options(model, one, max_memory_bytes=cap), house.home("starter"), lambda _: None)
    assert len(planned.plan.stages) == 2
    assert planned.plan.counts[0] <= 2


async def test_a_prompt_longer_than_the_context_is_refused_and_the_session_goes_on(house: House, model: Path) -> None:
    async with open_starter(options(model), house.home("starter"), lambda _: None) as starter:
        with pytest.raises(PromptTooLong, match="128"):
            await ask(starter, tuple(range(128)))
        assert len((await ask(starter)).token_ids) == NEW_TOKENS


async def test_a_split_over_more_nodes_than_there_are_is_refused(house: House, model: Path) -> None:
    with pytest.raises(UserError, match="2 nodes"):
        await draw_plan(options(model, split=(2, 3)), house.home("starter"), lambda _: None)


async def test_a_plan_that_fails_says_which_nodes_were_left_out(house: House, model: Path) -> None:
    home = house.home("starter")
    home.write_peers((house.start("newer", before="import mdi.wire\nmdi.wire.PROTOCOL = 99").address,))
    with pytest.raises(ClusterError) as error:
        await draw_plan(options(model, min_nodes=2), home, lambda _: None)
    (note,) = error.value.__notes__
    assert "newer" in note or "127.0.0.1" in note
    assert "is left out" in note
    assert "protocol 99" in note


async def test_a_split_of_another_number_of_blocks_is_named_as_it_was_typed(house: House, model: Path) -> None:
    with pytest.raises(UserError, match=f"--split 4 adds up to 4, not {N_BLOCKS}"):
        await draw_plan(options(model, split=(4,)), house.home("starter"), lambda _: None)


async def test_min_nodes_that_are_not_there_is_an_error(house: House, model: Path) -> None:
    with pytest.raises((UserError, ClusterError)):
        await draw_plan(options(model, min_nodes=2), house.home("starter"), lambda _: None)

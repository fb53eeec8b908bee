"""A torch stage beside onnxruntime stages, over real daemons: the same tokens."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from mdi.errors import UserError
from mdi.pipeline.starter import draw_plan, open_starter
from mdi.pipeline.survey import list_nodes
from tests.cluster.conftest import House
from tests.cluster.test_run import NEW_TOKENS, answer, ask, options


async def test_a_torch_stage_between_onnxruntime_stages_gives_the_tokens_of_onnxruntime(house: House, model: Path) -> None:
    onnx, torch = house.start("onnx"), house.start("torch", "--device", "torch-cpu")
    home = house.home("starter")
    alone, _ = await answer(options(model), home)
    assert len(alone.token_ids) == NEW_TOKENS
    for split in ((1, 2, 2), (0, 1, 4), (2, 0, 3)):
        found, starter = await answer(options(model, onnx, torch, split=split), home)
        assert starter.plan.stages[-1].name == "torch"
        assert found.token_ids == alone.token_ids, split
    found, _ = await answer(replace(options(model, onnx, torch, split=(2, 1, 2)), device="torch-cpu"), home)
    assert found.token_ids == alone.token_ids


async def test_conversations_side_by_side_on_torch_do_not_mix(house: House, model: Path) -> None:
    torch = house.start("torch", "--device", "torch-cpu")
    prompts = [tuple(range(10, 40)), tuple(range(40, 10, -1)), tuple(range(15, 30))]
    async with open_starter(options(model, torch, split=(2, 3), n_slots=3), house.home("starter"), lambda _: None) as starter:
        together = await asyncio.gather(*(ask(starter, prompt) for prompt in prompts))
        one_by_one = [await ask(starter, prompt) for prompt in prompts]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in one_by_one]


async def test_nodes_say_what_they_compute_on(house: House, model: Path) -> None:
    daemons = house.start("onnx"), house.start("torch", "--device", "torch-cpu")
    found = await list_nodes(house.home("starter"), tuple(each.address for each in daemons), discovery=False, wait_s=0.1)
    assert {row.name: (row.device, row.accelerator) for row in found.rows} == {
        "onnx": ("cpu", None),
        "torch": ("torch-cpu", None),
    }


async def test_a_starter_computes_on_what_its_own_daemon_does(house: House, model: Path) -> None:
    torch = house.start("torch", "--device", "torch-cpu")
    async with open_starter(options(model), torch.home, lambda _: None) as starter:
        assert "Torch" in type(starter._core._head._head).__name__
        assert len((await ask(starter)).token_ids) == NEW_TOKENS


async def test_a_device_that_is_none_ends_the_command_with_a_sentence(house: House, model: Path) -> None:
    with pytest.raises(UserError, match="no device"):
        await draw_plan(replace(options(model), device="abacus"), house.home("starter"), lambda _: None)

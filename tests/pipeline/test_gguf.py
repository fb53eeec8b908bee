"""A GGUF file through the whole pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mdi.cli.progress import quiet
from mdi.cluster.home import Home
from mdi.model.gguf import types
from mdi.model.quantise import Quant
from mdi.pipeline.api import Answer, Request, StarterOptions
from mdi.pipeline.starter import open_starter
from tests.gguf_models import make_twins


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_twins(tmp_path_factory.mktemp("gguf"), types.Q8_0, vocab_size=320)[0]


async def answered(file: Path, home: Home, prompt: str, **options: Any) -> tuple[Answer, tuple[str, ...]]:
    async with open_starter(StarterOptions(model=str(file), discovery=False, ctx=64, **options), home, quiet) as starter:
        ids = tuple(starter.model.tokenizer.encode_prompt(prompt))
        async for event in starter.generate(Request(ids, max_tokens=8, ignore_eos=True)):
            if isinstance(event, Answer):
                return event, starter.problems
    raise AssertionError("no answer came")


async def test_answer_is_that_of_llama_cpp(file: Path, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    answer, problems = await answered(file, Home(tmp_path / "home").create(), "the lighthouse")
    llama = llama_cpp.Llama(str(file), n_ctx=64, n_threads=1, verbose=False)
    ids = llama.tokenize(b"the lighthouse", add_bos=True, special=True)
    assert list(answer.prompt_token_ids) == ids
    theirs = [token for token, _ in zip(llama.generate(ids, temp=0.0, repeat_penalty=1.0), range(8), strict=False)]
    assert list(answer.token_ids)[:4] == theirs[:4]  # both round activations, each in its own way: later tokens may part
    assert problems == ()
    llama.close()


async def test_rounding_again_is_said(file: Path, tmp_path: Path) -> None:
    answer, problems = await answered(file, Home(tmp_path / "home").create(), "a", quant=Quant.INT4, block=32)
    assert len(answer.token_ids) == 8
    assert ["rounded again to int4" in problem for problem in problems] == [True]

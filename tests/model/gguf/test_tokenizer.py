from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from mdi.errors import ModelError
from mdi.model.config import ModelConfig
from mdi.model.gguf.files import Gguf
from mdi.model.gguf.pretokenizers import PRE_TOKENIZERS
from mdi.model.gguf.tokenizer import read_chat, read_tokenizer
from mdi.model.tokenizer import Tokenizer
from tests.checkpoints import TINY
from tests.model.gguf.written import Typed, Written
from tests.model.test_tokenizer import TEXTS, WITH_CONTROL
from tests.model.tokenizers_made import LINES

CONFIG = ModelConfig.from_hf(
    TINY | {"architectures": ["LlamaForCausalLM"], "vocab_size": 1000, "bos_token_id": None, "eos_token_id": None}
)
HARD = (
    *TEXTS,
    *WITH_CONTROL,
    "I'LL can't WE'RE o'clock 'tis ''s",
    "ümlautÄÖ ﬁne ǅ Ⅷ ½ ① ٣٤٥ 一二三",
    "x=1;\r\n\r\n\ty+=2;\n \n  \n   z",
    "a\u00a0b\u2003c\u3000d \u0085e",
    "12345678901234 3,141.59 0x1F 1e-9",
    "!!! ??? ... --- === <<>> $$$ €€€ +−×÷",
    "कखग हिन्दी ไทย לשון ქართული",
    "🏴󠁧󠁢󠁥󠁮󠁧󠁿 ❤️‍🔥 a🙂b🙂🙂",
    " " * 40 + "\t" * 7 + "\n" * 9,
)
# The patterns of the models' own tokenizer.json files, written out as they are there.
THEIRS = {
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen35": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "tekken": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "gpt-4o": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
BOS, EOS, IM_END, THINK = 0, 1, 3, "<think>"


def byte_level(pre: str) -> Backend:
    """A trained byte-level tokenizer that splits as the models of that kind do."""
    tokenizer = Backend(models.BPE(ignore_merges=pre in ("llama-bpe", "tekken")))
    if pre in THEIRS:
        split: list[Any] = [pre_tokenizers.Split(Regex(THEIRS[pre]), "isolated")]
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    else:
        split = [pre_tokenizers.Digits(individual_digits=True)] if pre == "smollm" else []
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, last])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator((*LINES, *HARD), trainer)
    tokenizer.add_tokens([THINK])
    return tokenizer


def byte_level_metadata(tokenizer: Backend, pre: str, **more: Any) -> dict[str, Any]:
    described = json.loads(tokenizer.to_str())
    tokens = [tokenizer.id_to_token(token_id) for token_id in range(tokenizer.get_vocab_size())]
    kinds = [3 if token in SPECIAL else 4 if token == THINK else 1 for token in tokens]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in described["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": BOS,
        "tokenizer.ggml.eos_token_id": EOS,
    }
    return {"general.architecture": "llama"} | metadata | {f"tokenizer.ggml.{name}": value for name, value in more.items()}


def sentencepiece_metadata(directory: Path, **more: Any) -> dict[str, Any]:
    """As llama.cpp's converter writes a tokenizer.model: kinds are numbered alike."""
    proto = sentencepiece_model_pb2.ModelProto.FromString((directory / "tokenizer.model").read_bytes())
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [piece.piece for piece in proto.pieces],
        "tokenizer.ggml.scores": Typed("f32", [piece.score for piece in proto.pieces]),
        "tokenizer.ggml.token_type": [piece.type for piece in proto.pieces],
    }
    return {"general.architecture": "llama"} | metadata | {f"tokenizer.ggml.{name}": value for name, value in more.items()}


def loaded(path: Path, metadata: dict[str, Any]) -> Tokenizer:
    return read_tokenizer(Gguf.open(Written(metadata).save(path / "t.gguf")), CONFIG)


@lru_cache
def trained(pre: str) -> Backend:
    return byte_level(pre)


@pytest.mark.parametrize("pre", [*THEIRS, "gpt-2", "smollm"])
@pytest.mark.parametrize("text", HARD)
def test_byte_level_equals_the_tokenizer_it_was_made_from(tmp_path: Path, pre: str, text: str) -> None:
    theirs = trained(pre)
    ours = loaded(tmp_path, byte_level_metadata(theirs, pre))
    ids = ours.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False).ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_byte_level_equals_transformers(tmp_path: Path) -> None:
    trained("llama-bpe").save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ours = loaded(tmp_path, byte_level_metadata(trained("llama-bpe"), "llama-bpe"))
    for text in HARD:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)


@given(text=st.one_of(st.sampled_from(HARD), st.text(), st.text("aB1é٣ '.\n\t−", max_size=12)))
def test_words_are_those_of_the_models(text: str) -> None:
    """Merges of a small vocabulary hide most differences: digits in threes or alone, for one."""
    for pre in (*THEIRS, "gpt-2", "smollm"):
        theirs = trained(pre).pre_tokenizer
        assert theirs is not None
        assert PRE_TOKENIZERS[pre].build().pre_tokenize_str(text) == theirs.pre_tokenize_str(text), pre


@given(text=st.text())
def test_any_text_is_split_as_the_models_do(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    for pre in (*THEIRS, "smollm"):
        ours = _cached(tmp_path_factory.getbasetemp(), pre)
        assert ours.encode(text) == trained(pre).encode(text, add_special_tokens=False).ids
        assert ours.decode(ours.encode(text)) == text


@lru_cache
def _cached(path: Path, pre: str) -> Tokenizer:
    return loaded(path, byte_level_metadata(trained(pre), pre))


@pytest.mark.parametrize("text", TEXTS)
def test_sentencepiece_equals_the_sentencepiece_library(sentencepiece_model: Path, tmp_path: Path, text: str) -> None:
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model / "tokenizer.model"))
    ours = loaded(tmp_path, sentencepiece_metadata(sentencepiece_model))
    assert ours.encode(text) == theirs.encode(text)
    assert ours.encode_prompt(text) == [theirs.bos_id(), *theirs.encode(text)]
    assert ours.decode(theirs.encode(text)) == text.replace("▁", " ")


def test_sentencepiece_without_a_space_before_text(sentencepiece_model: Path, tmp_path: Path) -> None:
    ours = loaded(tmp_path, sentencepiece_metadata(sentencepiece_model, add_space_prefix=False))
    assert ours.decode(ours.encode("Once upon a time")) == "Once upon a time"
    assert ours.encode("Once")[0] != ours.encode(" Once")[0]


@pytest.fixture(scope="module")
def llama_cpp() -> Any:
    return pytest.importorskip("llama_cpp")


def tokenised(llama_cpp: Any, path: Path, metadata: dict[str, Any]) -> Iterator[tuple[str, list[int], list[int]]]:
    """Texts with llama.cpp's ids without and with what it adds of itself."""
    described = {
        "llama.block_count": 1,
        "llama.context_length": 64,
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 32,
        "llama.attention.head_count": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
    }
    file = Written(metadata | described).save(path / "vocabulary.gguf")
    llama = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    for text in HARD:
        data = text.encode()
        yield text, llama.tokenize(data, add_bos=False, special=True), llama.tokenize(data, add_bos=True, special=True)
    llama.close()


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "qwen35", "gpt-2", "smollm"])
def test_byte_level_equals_llama_cpp(llama_cpp: Any, tmp_path: Path, pre: str) -> None:
    metadata = byte_level_metadata(trained(pre), pre)
    ours = loaded(tmp_path, metadata)
    for text, plain, prompt in tokenised(llama_cpp, tmp_path, metadata):
        assert ours.encode(text) == plain, text
        if not text.startswith("<s>"):
            assert ours.encode_prompt(text) == prompt, text


def test_sentencepiece_equals_llama_cpp(llama_cpp: Any, sentencepiece_model: Path, tmp_path: Path) -> None:
    metadata = sentencepiece_metadata(sentencepiece_model)
    ours = loaded(tmp_path, metadata)
    for text, plain, prompt in tokenised(llama_cpp, tmp_path, metadata):
        if "▁" not in text:
            assert ours.encode(text) == plain, text
            if not text.startswith("<s>"):
                assert ours.encode_prompt(text) == prompt, text


def test_tokens_whose_merges_would_take_long_are_refused(
    sentencepiece_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mdi.model.sentencepiece_bpe.MAX_CHARS", 1000)
    with pytest.raises(ModelError, match="characters in its tokens, more than 1000"):
        loaded(tmp_path, sentencepiece_metadata(sentencepiece_model))


def test_control_tokens_of_phi3_swallow_white_space(sentencepiece_model: Path, tmp_path: Path) -> None:
    metadata = sentencepiece_metadata(sentencepiece_model)
    for key, value in (("tokens", "<|user|>"), ("token_type", 3)):
        metadata[f"tokenizer.ggml.{key}"] = [*metadata[f"tokenizer.ggml.{key}"], value]
    metadata["tokenizer.ggml.scores"] = Typed("f32", [*metadata["tokenizer.ggml.scores"].value, 0.0])
    spaced, tight = "<|user|>\n  hi", "<|user|>hi"
    plain = loaded(tmp_path, metadata)
    assert plain.encode(spaced) != plain.encode(tight)
    phi3 = loaded(tmp_path, metadata | {"general.architecture": "phi3"})
    assert phi3.encode(spaced) == phi3.encode(tight) == plain.encode(tight)
    assert phi3.encode("<s> hi") == plain.encode("<s> hi")


def test_prompts_begin_with_bos_where_the_kind_does_so_or_the_file_says(sentencepiece_model: Path, tmp_path: Path) -> None:
    def begins(metadata: dict[str, Any]) -> bool:
        tokenizer = loaded(tmp_path, metadata)
        return tokenizer.encode_prompt("x") == [tokenizer.bos_id, *tokenizer.encode("x")]

    assert begins(sentencepiece_metadata(sentencepiece_model))
    assert not begins(sentencepiece_metadata(sentencepiece_model, add_bos_token=False))
    assert begins(byte_level_metadata(trained("llama-bpe"), "llama-bpe"))
    assert not begins(byte_level_metadata(trained("qwen2"), "qwen2"))
    assert begins(byte_level_metadata(trained("qwen2"), "qwen2", add_bos_token=True))


def test_stop_ids_are_all_that_end_a_turn(tmp_path: Path) -> None:
    metadata = byte_level_metadata(trained("qwen2"), "qwen2")
    assert loaded(tmp_path, metadata).stop_ids == {EOS, IM_END}
    more = {"tokenizer.ggml.eot_token_id": 20, "tokenizer.ggml.eom_token_id": 21}
    assert loaded(tmp_path, metadata | more).stop_ids == {EOS, IM_END, 20, 21}
    kinds = [1 if token_id == IM_END else kind for token_id, kind in enumerate(metadata["tokenizer.ggml.token_type"])]
    forgotten = loaded(tmp_path, metadata | {"tokenizer.ggml.token_type": kinds})
    assert IM_END in forgotten.stop_ids
    assert "<|im_end|>" in forgotten.control_tokens


def test_tokens_that_are_empty_take_their_ids(tmp_path: Path) -> None:
    metadata = byte_level_metadata(trained("qwen2"), "qwen2")
    tokens = [*metadata["tokenizer.ggml.tokens"], "", ""]
    kinds = [*metadata["tokenizer.ggml.token_type"], 5, 5]
    ours = loaded(tmp_path, metadata | {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds})
    assert ours.encode("Once upon a time") == trained("qwen2").encode("Once upon a time").ids


def test_chat_template_is_the_files_own(tmp_path: Path) -> None:
    metadata = byte_level_metadata(trained("qwen2"), "qwen2")
    gguf = Gguf.open(Written(metadata).save(tmp_path / "none.gguf"))
    assert read_chat(gguf, read_tokenizer(gguf, CONFIG)) is None
    metadata["tokenizer.chat_template"] = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
    )
    gguf = Gguf.open(Written(metadata).save(tmp_path / "some.gguf"))
    chat = read_chat(gguf, read_tokenizer(gguf, CONFIG))
    assert chat is not None
    from mdi.model.chat import Message

    assert chat.render([Message("user", "hi")]) == "<s>[user] hi</s>"


@pytest.mark.parametrize("pre", ["default", "superbpe", "kimi-k2", "", "LLAMA-BPE"])
def test_unknown_way_to_split_is_refused_by_name(tmp_path: Path, pre: str) -> None:
    with pytest.raises(ModelError, match=f"splits text as '{pre}', which is not supported"):
        loaded(tmp_path, byte_level_metadata(trained("qwen2"), pre))


def test_file_that_does_not_say_how_to_split_is_refused(tmp_path: Path) -> None:
    metadata = byte_level_metadata(trained("qwen2"), "qwen2")
    del metadata["tokenizer.ggml.pre"]
    with pytest.raises(ModelError, match="does not say how its tokenizer splits"):
        loaded(tmp_path, metadata)


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_every_known_way_to_split_loses_nothing(pre: str) -> None:
    words = PRE_TOKENIZERS[pre].build()
    for text in HARD:
        assert "".join(word for word, _ in words.pre_tokenize_str(text)) == "".join(
            word for word, _ in pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
        )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "bert"}, "'bert', which is not supported"),
        ({"model": 3}, "tokenizer.ggml.model"),
        ({"tokens": Typed("str", [])}, "0 tokens"),
        ({"tokens": 3}, "lacks 'tokenizer.ggml.tokens'"),
        ({"tokens": ["a", "b", "a"]}, "the token 'a' twice"),
        ({"token_type": [math.nan] * 1000}, "no whole numbers"),
        ({"token_type": [1]}, "'tokenizer.ggml.token_type' is only 1 long"),
        ({"token_type": Typed("f32", [math.nan] * 700)}, "'tokenizer.ggml.token_type' holds no whole numbers"),
        ({"merges": ["ab"]}, "the merge 'ab'"),
        ({"merges": ["never seen"]}, "cannot be used"),
        ({"merges": 1}, "lacks 'tokenizer.ggml.merges'"),
        ({"add_bos_token": 1}, "add_bos_token"),
        ({"model": "llama"}, "lacks its scores"),
        ({"tokens": ["x" * 1025]}, "a token of 1025 characters"),
    ],
)
def test_tokenizer_that_is_damaged_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        loaded(tmp_path, byte_level_metadata(trained("qwen2"), "qwen2", **change))

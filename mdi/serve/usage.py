"""What an answer took, and how sure the model was, as OpenAI's API writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mdi.engine.logits import TokenLogprobs
from mdi.model.tokenizer import Tokenizer
from mdi.pipeline.api import Answer


def usage(answers: Sequence[Answer], n: int) -> dict[str, Any]:
    """Of one request; `answers` holds `n` for each prompt, one prompt after another, and each prompt is counted once."""
    prompt = sum(answer.timings.prompt_tokens for answer in answers[::n])
    new = sum(answer.timings.new_tokens for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": sum(answer.timings.reused_tokens for answer in answers[::n])},
    }


def chat_logprobs(tokens: Sequence[TokenLogprobs], tokenizer: Tokenizer) -> dict[str, Any]:
    return {"content": [_told(token, tokenizer) for token in tokens], "refusal": None}


def _told(token: TokenLogprobs, tokenizer: Tokenizer) -> dict[str, Any]:
    top = [_one(token_id, logprob, tokenizer) for token_id, logprob in token.top]
    return {**_one(token.token_id, token.logprob, tokenizer), "top_logprobs": top}


def _one(token_id: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    data = tokenizer.token_bytes[token_id]
    return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}


def completion_logprobs(tokens: Sequence[TokenLogprobs], tokenizer: Tokenizer, offset: int) -> tuple[dict[str, Any], int]:
    """The older form, of tokens that begin at character `offset` of the text; and the offset after them."""
    offsets, texts = [], []
    for token in tokens:
        texts.append(_text(token.token_id, tokenizer))
        offsets.append(offset)
        offset += len(texts[-1])
    told = {
        "tokens": texts,
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{_text(token_id, tokenizer): logprob for token_id, logprob in token.top} for token in tokens],
        "text_offset": offsets,
    }
    return told, offset


def _text(token_id: int, tokenizer: Tokenizer) -> str:
    return tokenizer.token_bytes[token_id].decode(errors="replace")

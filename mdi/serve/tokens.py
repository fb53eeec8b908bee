"""`/tokenize` and `/detokenize`, as vLLM has them."""

from __future__ import annotations

from mdi.serve.body import read_body
from mdi.serve.completions import check_ids
from mdi.serve.exchange import Exchange
from mdi.serve.messages import read_messages
from mdi.serve.tools import read_tools


async def tokenize(call: Exchange) -> None:
    """Of a `prompt`, or of `messages` as the chat template writes them."""
    service, body = call.service, await read_body(call.request)
    service.check_model(body)
    model = service.starter.model
    if "messages" in body:
        turns, tools = read_messages(body), read_tools(body)
        ids = await service.prepared(lambda: model.encode_turns(turns, tools.offered or None))
    else:
        prompt, special = body.text("prompt"), body.flag("add_special_tokens", True)
        encode = model.tokenizer.encode_prompt if special else model.tokenizer.encode
        ids = await service.prepared(lambda: encode(prompt))
    told = {"count": len(ids), "max_model_len": service.starter.ctx, "tokens": ids}
    if body.flag("return_token_strs"):
        told["token_strs"] = [model.tokenizer.token_bytes[token].decode(errors="replace") for token in ids]
    await call.json(told)


async def detokenize(call: Exchange) -> None:
    service, body = call.service, await read_body(call.request)
    service.check_model(body)
    ids = check_ids(service, body.values.get("tokens"), "tokens")
    text = await service.prepared(lambda: service.starter.model.tokenizer.decode(ids))
    await call.json({"prompt": text})

"""A SentencePiece BPE `tokenizer.model`, turned into the same tokenizer in the form of the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from mdi.errors import ModelError
from mdi.model.fields import read_bounded

SPACE = "▁"  # how SentencePiece writes a space inside a piece
MAX_FILE_BYTES = 32 << 20  # Gemma's has 4 MB
MAX_TOKEN_CHARS = 1024  # the longest published ones, of spaces or dashes, have 512
MAX_CHARS = 1 << 23  # every place in a token is a merge to try; Gemma's 262,144 tokens have 1.9 million
CONVERT = "use a revision of the model that has a tokenizer.json"

spm: Any = sentencepiece_model_pb2  # generated: it has no types
Piece = spm.ModelProto.SentencePiece


def read_sentencepiece(path: Path, *, legacy: bool = True) -> Tokenizer:
    """Encodes as SentencePiece itself does, except that control tokens named in the text become their ids.

    legacy: text after a control token begins with a space too, not only the first (`legacy` in tokenizer_config.json).
    Raises ModelError for a file that is not SentencePiece BPE, or that rewrites text before splitting it.
    """
    proto = spm.ModelProto()
    try:
        proto.ParseFromString(read_bounded(path, MAX_FILE_BYTES))
    except ModelError:
        raise
    except Exception as error:  # protobuf raises different types by backend
        raise ModelError(f"{path} is not a SentencePiece model: {error}", hint=CONVERT) from error
    if proto.trainer_spec.model_type != spm.TrainerSpec.BPE or not proto.pieces:
        raise ModelError(f"{path} is not a SentencePiece BPE model, the only kind that is supported", hint=CONVERT)
    if proto.normalizer_spec.precompiled_charsmap or proto.normalizer_spec.remove_extra_whitespaces:
        raise ModelError(f"{path} rewrites text before splitting it, which is not supported", hint=CONVERT)
    pieces = {piece.piece: token_id for token_id, piece in enumerate(proto.pieces)}
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == Piece.NORMAL}
    tokenizer = sentencepiece_bpe(
        pieces,
        scores,
        unknown=next((piece.piece for piece in proto.pieces if piece.type == Piece.UNKNOWN), None),
        byte_fallback=proto.trainer_spec.byte_fallback,
        prefix=proto.normalizer_spec.add_dummy_prefix,
        legacy=legacy,
        origin=str(path),
    )
    tokenizer.add_special_tokens(_tokens(proto, Piece.CONTROL) + _tokens(proto, Piece.UNKNOWN))
    tokenizer.add_tokens(_tokens(proto, Piece.USER_DEFINED))
    bos = proto.trainer_spec.bos_piece
    if bos in pieces:
        tokenizer.post_processor = processors.TemplateProcessing(single=[bos, "$A"], special_tokens=[(bos, pieces[bos])])
    return tokenizer


def sentencepiece_bpe(
    pieces: Mapping[str, int],
    scores: Mapping[str, float],
    *,
    unknown: str | None,
    byte_fallback: bool,
    prefix: bool,
    legacy: bool = True,
    origin: str,
) -> Tokenizer:
    """SentencePiece's BPE over `pieces` (ids by text), of which those in `scores` may be merged; without added tokens yet.

    prefix: text begins with a space of the tokenizer's own. Raises ModelError naming `origin` for pieces whose merges would take forever.
    """
    if (longest := max(map(len, pieces))) > MAX_TOKEN_CHARS:
        raise ModelError(f"{origin} has a token of {longest} characters, more than {MAX_TOKEN_CHARS}")
    if (n_chars := sum(map(len, pieces))) > MAX_CHARS:
        raise ModelError(f"{origin} has {n_chars} characters in its tokens, more than {MAX_CHARS}")
    bpe = models.BPE(
        vocab=dict(pieces), merges=_merges(pieces, scores), unk_token=unknown, fuse_unk=True, byte_fallback=byte_fallback
    )
    tokenizer = Tokenizer(bpe)
    if legacy:
        steps = [normalizers.Prepend(SPACE)] if prefix else []
        tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    else:
        scheme = "first" if prefix else "never"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme, split=False)
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return tokenizer


def _tokens(proto: Any, kind: int) -> list[AddedToken]:
    return [AddedToken(piece.piece, normalized=False) for piece in proto.pieces if piece.type == kind]


def _merges(pieces: Mapping[str, int], scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """SentencePiece keeps no merges: it joins the neighbours whose joint piece scores highest. Hence every split, by score."""
    splits = [
        (-score, pieces[whole[:at]], pieces[whole[at:]], whole, at)
        for whole, score in scores.items()
        for at in range(1, len(whole))
        if whole[:at] in scores and whole[at:] in scores
    ]
    return [(piece[:at], piece[at:]) for _, _, _, piece, at in sorted(splits)]

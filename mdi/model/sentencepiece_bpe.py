"""A SentencePiece BPE `tokenizer.model`, turned into the same tokenizer in the form of the `tokenizers` library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from mdi.errors import ModelError

SPACE = "▁"  # how SentencePiece writes a space inside a piece
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
        proto.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf raises different types by backend
        raise ModelError(f"{path} is not a SentencePiece model: {error}", hint=CONVERT) from error
    if proto.trainer_spec.model_type != spm.TrainerSpec.BPE or not proto.pieces:
        raise ModelError(f"{path} is not a SentencePiece BPE model, the only kind that is supported", hint=CONVERT)
    if proto.normalizer_spec.precompiled_charsmap or proto.normalizer_spec.remove_extra_whitespaces:
        raise ModelError(f"{path} rewrites text before splitting it, which is not supported", hint=CONVERT)
    pieces = {piece.piece: token_id for token_id, piece in enumerate(proto.pieces)}
    unknown = next((piece.piece for piece in proto.pieces if piece.type == Piece.UNKNOWN), None)
    bpe = models.BPE(
        vocab=pieces,
        merges=_merges(proto, pieces),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
    )
    tokenizer = Tokenizer(bpe)
    prefix = proto.normalizer_spec.add_dummy_prefix
    if legacy:
        steps = [normalizers.Prepend(SPACE)] if prefix else []
        tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    else:
        scheme = "first" if prefix else "never"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme, split=False)
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    tokenizer.add_special_tokens(_tokens(proto, Piece.CONTROL) + _tokens(proto, Piece.UNKNOWN))
    tokenizer.add_tokens(_tokens(proto, Piece.USER_DEFINED))
    bos = proto.trainer_spec.bos_piece
    if bos in pieces:
        tokenizer.post_processor = processors.TemplateProcessing(single=[bos, "$A"], special_tokens=[(bos, pieces[bos])])
    return tokenizer


def _tokens(proto: Any, kind: int) -> list[AddedToken]:
    return [AddedToken(piece.piece, normalized=False) for piece in proto.pieces if piece.type == kind]


def _merges(proto: Any, pieces: dict[str, int]) -> list[tuple[str, str]]:
    """SentencePiece keeps no merges: it joins the neighbours whose joint piece scores highest. Hence every split, by score."""
    mergeable = {piece.piece for piece in proto.pieces if piece.type == Piece.NORMAL}
    splits = [
        (-whole.score, pieces[whole.piece[:at]], pieces[whole.piece[at:]], whole.piece, at)
        for whole in proto.pieces
        if whole.type == Piece.NORMAL
        for at in range(1, len(whole.piece))
        if whole.piece[:at] in mergeable and whole.piece[at:] in mergeable
    ]
    return [(piece[:at], piece[at:]) for _, _, _, piece, at in sorted(splits)]

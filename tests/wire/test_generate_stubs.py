"""The committed protobuf stubs are those of proto/mdi.proto."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdi.wire import mdi_pb2, mdi_pb2_grpc
from tools.generate_stubs import NAMES, PROTO, STUBS, generate, is_stale


def test_the_committed_stubs_are_current() -> None:
    assert not is_stale(generate(PROTO), STUBS), "run `make proto`"


def test_a_changed_proto_makes_them_stale(tmp_path: Path) -> None:
    changed = tmp_path / "mdi.proto"
    changed.write_text(PROTO.read_text() + "\nmessage Another { uint32 field = 1; }\n")
    assert is_stale(generate(changed), STUBS)


def test_a_missing_stub_is_stale(tmp_path: Path) -> None:
    texts = generate(PROTO)
    for name in NAMES[:-1]:
        (tmp_path / name).write_text(texts[name])
    assert is_stale(texts, tmp_path)


def test_a_broken_proto_is_an_error(tmp_path: Path) -> None:
    broken = tmp_path / "mdi.proto"
    broken.write_text("message {")
    with pytest.raises(SystemExit):
        generate(broken)


def test_the_stubs_can_be_used() -> None:
    info = mdi_pb2.NodeInfo(node_id="a", threads=4)
    assert mdi_pb2.NodeInfo.FromString(info.SerializeToString()) == info
    assert mdi_pb2_grpc.NodeStub

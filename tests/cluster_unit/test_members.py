from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdi.cluster.interfaces import MAX_ADDRESSES
from mdi.cluster.members import MAX_MEMBERS, Member, MemberTable, Source, clean_name
from mdi.errors import PeerError

OURS, OTHERS = "0123abcd", "deadbeef"


def member(n: int = 0, **changes: object) -> Member:
    known = Member(f"{n:032x}", f"pi{n}", ("10.0.0.7",), 52700, 1, OURS, Source.MDNS)
    return replace(known, **changes)  # type: ignore[arg-type]


def test_clusters_are_kept_apart() -> None:
    table = MemberTable(OURS)
    assert table.put("a", member(1))
    assert not table.put("a", member(1))
    assert table.put("b", member(2, fingerprint=OTHERS))
    assert table.members() == (member(1),)
    assert table.strangers() == (member(2, fingerprint=OTHERS),)
    assert table.put("b", member(2))  # it got our key
    assert table.strangers() == ()
    assert table.members() == (member(1), member(2))
    assert table.remove("b")
    assert not table.remove("b")
    assert table.members() == (member(1),)


def test_strangers_cannot_crowd_out_members_and_both_have_a_bound() -> None:
    table = MemberTable(OURS)
    for n in range(2 * MAX_MEMBERS):
        assert table.put(f"s{n}", member(n, fingerprint=OTHERS)) == (n < MAX_MEMBERS)
    for n in range(2 * MAX_MEMBERS):
        table.put(f"m{n}", member(n))
    assert len(table.strangers()) == len(table.members()) == MAX_MEMBERS
    assert table.put("m0", member(0, port=1))  # who is in can still change


def test_a_node_is_listed_once_and_self_first() -> None:
    table = MemberTable(OURS)
    table.put("static", member(1, source=Source.STATIC, name="pi.example.org", addresses=("pi.example.org",), protocol=None))
    table.put("heard", member(1, addresses=("10.6.6.6",)))
    table.put("me", member(9, source=Source.SELF, name="zz"))
    table.put("other", member(2))
    assert [(m.node_id[-1], m.source) for m in table.members()] == [("9", "self"), ("1", "static"), ("2", "mdns")]


@pytest.mark.parametrize(
    "changes",
    [
        {"node_id": "0" * 31},
        {"node_id": "G" * 32},
        {"node_id": "0" * 31 + "\n"},
        {"fingerprint": ""},
        {"fingerprint": "0123ABCD"},
        {"name": ""},
        {"name": "\x1b[2Jpi"},
        {"name": "x" * 41},
        {"addresses": ()},
        {"addresses": ("evil.example.org",)},
        {"addresses": ("10.0.0.1",) * (MAX_ADDRESSES + 1)},
        {"port": 0},
        {"port": 65536},
        {"protocol": 0},
        {"protocol": 65536},
    ],
)
def test_hostile_fields_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(PeerError):
        member(**changes)


@settings(deadline=None)
@given(st.text())
def test_every_device_name_becomes_one_that_may_be_announced(text: str) -> None:
    assert member(name=clean_name(text))


def test_names_stay_readable() -> None:
    assert clean_name("Anna's MacBook Pro.local") == "Anna-s-MacBook-Pro"
    assert clean_name("raspberrypi") == "raspberrypi"
    assert clean_name("居間") == "node"

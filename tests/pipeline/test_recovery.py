"""Who is blamed, for how long, and when it is too much."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi.errors import (
    ClusterError,
    FrameError,
    InternalError,
    LinkError,
    MdiError,
    ModelError,
    NoRoom,
    PeerError,
    UserError,
)
from mdi.pipeline.recovery import (
    FIRST_OUT_S,
    FORGIVEN_S,
    MAX_ATTEMPTS,
    MAX_REASON_CHARS,
    MOST_OUT_S,
    PAUSES_S,
    FailureLog,
    Fault,
    Verdict,
    classify,
    sentence,
    stalled,
)

RING = ("a", "b", "c")
GONE = LinkError("b cannot be reached")


def from_peer(error: MdiError) -> MdiError:
    error.peer = "b"
    return error


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (LinkError("x"), Fault.LINK),
        (FrameError("x"), Fault.LINK),
        (from_peer(FrameError("x")), Fault.LINK),
        (PeerError("x"), Fault.PEER),
        (from_peer(InternalError("x")), Fault.PEER),
        (from_peer(ModelError("x")), Fault.PEER),
        (from_peer(NoRoom("x")), Fault.PEER),
        (UserError("x"), Fault.USER),
        (NoRoom("x"), Fault.OURS),
        (ClusterError("x"), Fault.OURS),
        (InternalError("x"), Fault.OURS),
        (RuntimeError("x"), Fault.OURS),
    ],
)
def test_whose_fault_it_is(error: BaseException, fault: Fault) -> None:
    assert classify(error) is fault


@pytest.mark.parametrize("error", [InternalError("a bug"), UserError("typed wrong"), RuntimeError("a bug")])
def test_no_other_plan_is_tried_for_what_is_ours_or_the_users(error: BaseException) -> None:
    with pytest.raises(type(error)):
        FailureLog().judge(error, RING, ["b"], "b", 0.0)


def test_who_does_not_answer_is_out_at_once_and_nobody_waits() -> None:
    log = FailureLog()
    assert log.judge(GONE, RING, ["b"], "c", 100.0) == Verdict(("b",), True, False, None, 0.0)
    assert log.out(100.0) == log.out(100.0 + FIRST_OUT_S - 0.1) == {"b"}
    assert log.out(100.0 + FIRST_OUT_S) == frozenset()


def test_two_who_do_not_answer_are_out_together() -> None:
    log = FailureLog()
    assert log.judge(GONE, RING, ["c", "a"], None, 0.0).culprits == ("a", "c")
    assert log.out(0.0) == {"a", "c"}


def test_while_all_answer_the_first_failure_is_a_second_chance() -> None:
    log = FailureLog()
    verdict = log.judge(FrameError("a flipped byte"), RING, [], "b", 0.0)
    assert verdict.second_chance
    assert log.out(0.0) == log.broken(0.0) == frozenset()


def test_a_second_failure_of_a_link_takes_the_link_out_and_a_third_the_node() -> None:
    log = FailureLog()
    verdicts = [log.judge(LinkError("no way"), RING, [], "b", 0.0) for _ in range(3)]
    assert [(verdict.second_chance, verdict.hop) for verdict in verdicts] == [(True, None), (False, ("a", "b")), (False, None)]
    assert log.broken(0.0) == {("a", "b")}
    assert log.out(0.0) == {"b"}


def test_the_first_workers_link_is_the_starters_own_and_so_the_worker_is_out() -> None:
    log = FailureLog()
    log.judge(LinkError("no way"), RING, [], "a", 0.0)
    log.judge(LinkError("no way"), RING, [], "a", 0.0)
    assert log.out(0.0) == {"a"}


def test_a_node_that_fails_again_is_out_and_each_time_for_longer() -> None:
    log, now_s, waits = FailureLog(), 0.0, []
    for _ in range(8):
        log.judge(from_peer(PeerError("refused")), RING, [], "b", now_s)
        log.progressed()
        waits.append(next(wait for wait in range(1000) if not log.out(now_s + wait)))
        now_s += waits[-1] + 1
    assert waits[:4] == [0, 20, 80, 320]
    assert max(waits) == MOST_OUT_S


def test_what_nobody_is_named_for_is_the_last_workers() -> None:
    """And of those before it, when the failure comes back without it."""
    log = FailureLog()
    verdicts = [log.judge(FrameError("not finite"), ring, [], None, 0.0) for ring in (RING, RING, ("a", "b"), ("a",))]
    assert [verdict.culprits for verdict in verdicts] == [("c",), ("c",), ("b",), ("a",)]
    assert [verdict.second_chance for verdict in verdicts] == [True, False, False, False]
    assert log.out(0.0) == set(RING)
    assert log.broken(0.0) == frozenset()


def test_attempts_without_a_token_are_bounded_and_the_pauses_between_them_grow() -> None:
    log = FailureLog()
    pauses = [log.judge(GONE, RING, [], "b", 0.0).pause_s for _ in range(MAX_ATTEMPTS)]
    assert tuple(pauses) == PAUSES_S
    assert pauses == sorted(pauses)
    with pytest.raises(LinkError) as error:
        log.judge(LinkError("once more"), RING, [], "b", 0.0)
    assert error.value.__notes__ == [f"given up after {MAX_ATTEMPTS} attempts without a token between them"]


def test_a_token_makes_the_next_failure_the_first_again() -> None:
    log = FailureLog()
    for _ in range(5 * MAX_ATTEMPTS):
        assert log.judge(GONE, RING, ["b"], None, 0.0).pause_s == 0.0
        log.progressed()


def test_a_node_that_behaved_for_long_starts_over() -> None:
    log = FailureLog()
    for _ in range(3):
        log.judge(GONE, RING, ["b"], None, 0.0)
    later_s = 1000.0 + FORGIVEN_S
    log.judge(GONE, RING, ["b"], None, later_s)
    assert log.out(later_s + FIRST_OUT_S) == frozenset()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(RING), st.booleans(), st.booleans(), st.floats(0, 300), st.sampled_from([LinkError, PeerError])
        ),
        max_size=40,
    )
)
def test_every_failure_is_bounded_and_remembered_no_longer_than_needed(events) -> None:
    log, now_s = FailureLog(), 0.0
    for node, gone, progressed, later_s, kind in events:
        now_s += later_s
        if progressed:
            log.progressed()
        try:
            verdict = log.judge(kind("x"), RING, [node] if gone else [], node, now_s)
        except MdiError:
            log.progressed()
            continue
        assert set(verdict.culprits) == {node}
        assert verdict.gone == gone
        assert verdict.pause_s in PAUSES_S
        assert log.out(now_s) <= set(RING)
        assert log.out(now_s + MOST_OUT_S) == frozenset()
        assert len(log._records) <= len(RING) + len(RING) - 1


@pytest.mark.parametrize(
    ("sent", "steps", "found"),
    [
        (5, {"a": 5, "b": 5, "c": 5}, None),
        (5, {"a": 4, "b": 4, "c": 4}, "a"),
        (5, {"a": 5, "b": 4, "c": 4}, "b"),
        (5, {"a": 5, "b": 5, "c": 3}, "c"),
        (5, {"b": 5, "c": 5}, "a"),
        (0, {}, None),
    ],
)
def test_where_a_step_got_stuck(sent: int, steps: dict[str, int], found: str | None) -> None:
    assert stalled(RING, sent, steps) == found


@pytest.mark.parametrize(
    ("verdict", "line"),
    [
        (Verdict(("b",), True, False, None, 0.0), "attic does not answer any more; desk and kitchen go on"),
        (Verdict(("b",), False, False, ("a", "b"), 0.0), "the link to attic fails (no way); desk and kitchen go on"),
        (Verdict(("b",), False, False, None, 0.0), "attic failed (no way); desk and kitchen go on"),
        (Verdict(("b",), False, True, None, 0.0), "the ring broke (no way); desk and kitchen go on"),
    ],
)
def test_the_line_for_the_user(verdict: Verdict, line: str) -> None:
    assert sentence(["attic"], verdict, LinkError("no way."), ["desk", "kitchen"]) == line


def test_the_line_stays_a_line() -> None:
    verdict = Verdict(("a", "b"), True, False, None, 0.0)
    assert sentence(["attic", "shed"], verdict, GONE, ["desk"]) == "attic and shed do not answer any more; desk goes on alone"
    assert sentence(["attic"], verdict, GONE, list("abcd")).endswith("; 4 nodes go on")
    second = Verdict(("b",), False, True, None, 0.0)
    assert len(sentence(["attic"], second, LinkError("x" * 1000), ["desk"])) < MAX_REASON_CHARS + 60

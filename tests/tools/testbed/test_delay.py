from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tools.testbed.delay import DelayLine

times = st.lists(st.floats(0, 10), max_size=50).map(sorted)


@given(arrivals=times, delay_s=st.floats(0, 1), jitter_s=st.floats(0, 1))
def test_every_frame_comes_out_once_in_order_and_never_early(arrivals: list[float], delay_s: float, jitter_s: float) -> None:
    line = DelayLine(delay_s, jitter_s)
    came: list[tuple[float, bytes]] = []
    clock = 0.0

    def run_to(now_s: float) -> None:
        nonlocal clock
        while (wait_s := line.wait_s(clock)) is not None and clock + wait_s <= now_s:
            clock += wait_s
            if (frame := line.due(clock)) is None:
                clock += 1e-9  # the sum of clock and wait fell short of the due time by a rounding
                continue
            came.append((clock, frame))
        clock = max(clock, now_s)

    for i, at_s in enumerate(arrivals):
        run_to(at_s)
        assert line.push(at_s, bytes([i]))
    run_to(20.0)
    assert [frame for _, frame in came] == [bytes([i]) for i in range(len(arrivals))]
    for (out_s, frame), in_s in zip(came, arrivals, strict=True):
        assert in_s + delay_s - 1e-6 <= out_s, frame
    if jitter_s == 0:
        assert all(out_s <= in_s + delay_s + 1e-6 for (out_s, _), in_s in zip(came, arrivals, strict=True))


def test_a_full_queue_loses_frames_and_says_so() -> None:
    line = DelayLine(1.0, max_frames=2)
    assert [line.push(0.0, b"x") for _ in range(3)] == [True, True, False]
    assert line.due(0.5) is None
    assert (line.due(1.0), line.due(1.0), line.due(1.0)) == (b"x", b"x", None)
    assert line.wait_s(1.0) is None

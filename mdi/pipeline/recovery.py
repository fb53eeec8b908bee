"""Who is blamed for a failure, and what follows from it. Pure: it takes times, and knows no network.

A failure ends the epoch. What is left then decides: a node that does not answer is out; when all answer, the same nodes get a second
chance, for a glitch is likelier than a fault; after that the link or the node that the failure points at is out, for longer each time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from mdi.errors import FrameError, LinkError, MdiError, PeerError, UserError

# Attempts in a row without a single token between them. Each takes at least one node out from the second on, and a home that
# loses more than this many within one token has another problem.
MAX_ATTEMPTS = 6
# Before each of them, in seconds. The first is at once, for the answer waits; the others leave a network time to settle.
PAUSES_S = (0.0, 0.1, 0.5, 1.0, 2.0, 4.0)
FIRST_OUT_S = 5.0  # a node that came back from the dead is used again within 10 s
OUT_FACTOR = 4.0
MOST_OUT_S = 320.0
FORGIVEN_S = 600.0  # a node without failures for so long starts over

Hop = tuple[str, str]  # node ids, sender first


class Fault(StrEnum):
    """Whose fault a failure is, before anyone is blamed."""

    OURS = "ours"
    USER = "user"
    PEER = "peer"
    LINK = "link"


def classify(error: BaseException) -> Fault:
    """What another node raised is never the user's fault: the user typed nothing there."""
    if not isinstance(error, MdiError):
        return Fault.OURS
    if isinstance(error, LinkError | FrameError):
        return Fault.LINK
    if error.peer is not None or isinstance(error, PeerError):
        return Fault.PEER
    return Fault.USER if isinstance(error, UserError) else Fault.OURS


@dataclass(frozen=True, slots=True)
class Verdict:
    """`culprits` (node ids) are held responsible; `gone`: they do not answer. `hop`: only their link is out. Then wait `pause_s`.

    `second_chance`: nobody is out.
    """

    culprits: tuple[str, ...]
    gone: bool
    second_chance: bool
    hop: Hop | None
    pause_s: float


@dataclass(slots=True)
class _Record:
    failures: int = 0
    last_s: float = 0.0
    out_until_s: float = 0.0


class FailureLog:
    """Failures so far, and who is out until when. Holds one record for each node or hop that failed within FORGIVEN_S."""

    def __init__(self) -> None:
        self._records: dict[str | Hop, _Record] = {}
        self._in_a_row = 0

    def progressed(self) -> None:
        """A token came since the last failure."""
        self._in_a_row = 0

    def judge(
        self, error: BaseException, ring: Sequence[str], gone: Collection[str], suspect: str | None, now_s: float
    ) -> Verdict:
        """`ring` are the workers' ids in order, `gone` those of them that do not answer, `suspect` the one that the error points at.

        Raises `error` itself when no other plan would help: it is ours or the user's, or it is one too many.
        """
        if classify(error) in (Fault.OURS, Fault.USER):
            raise error
        self._in_a_row += 1
        if self._in_a_row > MAX_ATTEMPTS:
            error.add_note(f"given up after {MAX_ATTEMPTS} attempts without a token between them")
            raise error
        pause_s = PAUSES_S[self._in_a_row - 1]
        self._forgive(now_s)
        if lost := tuple(node_id for node_id in ring if node_id in gone):
            for node_id in lost:
                self._put_out(node_id, now_s)
            return Verdict(lost, True, False, None, pause_s)
        if not ring:
            return Verdict((), False, True, None, pause_s)
        # What nobody is named for, such as numbers that are none, came from the last worker; it may have come to it from another. Then
        # the failure comes back without this one, and the next one from the end is out: each costs an attempt.
        culprit = suspect or ring[-1]
        fault = Fault.PEER if suspect is None else classify(error)
        return self._among_the_living(culprit, ring, fault, now_s, pause_s)

    def _among_the_living(self, culprit: str, ring: Sequence[str], fault: Fault, now_s: float, pause_s: float) -> Verdict:
        record = self._records.setdefault(culprit, _Record())
        if not record.failures and self._in_a_row == 1:
            record.failures, record.last_s = 1, now_s
            return Verdict((culprit,), False, True, None, pause_s)
        hop = next((hop for hop in pairwise(ring) if hop[1] == culprit), None)
        if fault is Fault.LINK and hop is not None and hop not in self._records:
            self._put_out(hop, now_s)  # both ends may serve elsewhere in the ring
            return Verdict((culprit,), False, False, hop, pause_s)
        self._put_out(culprit, now_s)
        return Verdict((culprit,), False, False, None, pause_s)

    def out(self, now_s: float) -> frozenset[str]:
        """Nodes that no plan takes now."""
        return frozenset(key for key, each in self._records.items() if isinstance(key, str) and each.out_until_s > now_s)

    def broken(self, now_s: float) -> frozenset[Hop]:
        """Links that no plan takes now, in neither direction."""
        return frozenset(key for key, each in self._records.items() if not isinstance(key, str) and each.out_until_s > now_s)

    def _put_out(self, key: str | Hop, now_s: float) -> None:
        record = self._records.setdefault(key, _Record())
        out_s = min(MOST_OUT_S, FIRST_OUT_S * OUT_FACTOR**record.failures)
        record.failures += 1
        record.last_s, record.out_until_s = now_s, now_s + out_s

    def _forgive(self, now_s: float) -> None:
        for key in [key for key, each in self._records.items() if now_s - max(each.last_s, each.out_until_s) > FORGIVEN_S]:
            del self._records[key]


def stalled(ring: Sequence[str], sent: int, steps: Mapping[str, int]) -> str | None:
    """The first worker that has computed fewer steps than came to it, by what each says of itself. None: all computed as many."""
    for node_id in ring:
        done = steps.get(node_id, 0)
        if done < sent:
            return node_id
        sent = done
    return None


@dataclass(frozen=True, slots=True)
class Recovery:
    """A failure that cost no token. `node` is the name of who failed, None: nobody in particular. `seconds` without a ring."""

    node: str | None
    reason: str
    seconds: float


def sentence(names: Sequence[str], verdict: Verdict, error: BaseException, left: Sequence[str]) -> str:
    """The one line for the user: who failed and who goes on. `names` of the culprits, `left` of the nodes of the new plan."""
    if verdict.second_chance:
        return f"the ring broke ({_first_words(error)}); {going_on(left)}"
    who = listed(names)
    if verdict.gone:
        return f"{who} {'does' if len(names) == 1 else 'do'} not answer any more; {going_on(left)}"
    if verdict.hop is not None:
        return f"the link to {who} fails ({_first_words(error)}); {going_on(left)}"
    return f"{who} failed ({_first_words(error)}); {going_on(left)}"


def going_on(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"{names[0]} goes on alone"
    return f"{listed(names)} go on" if len(names) <= 3 else f"{len(names)} nodes go on"


def listed(names: Sequence[str]) -> str:
    """desk; desk and attic; desk, attic and kitchen."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _first_words(error: BaseException) -> str:
    text = str(error).rstrip(".") or type(error).__name__
    return text if len(text) <= MAX_REASON_CHARS else text[: MAX_REASON_CHARS - 3] + "..."


MAX_REASON_CHARS = 120  # one line of a terminal, beside who goes on

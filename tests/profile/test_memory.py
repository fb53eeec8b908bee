from __future__ import annotations

import contextlib
import ctypes
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi.errors import UserError
from mdi.profile.memory import HEADROOM_BYTES, MAX_BYTES, available_bytes, format_bytes, offered_bytes, parse_bytes

MIB = 1 << 20


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("0", 0),
        ("2000", 2000),
        ("17B", 17),
        ("2GiB", 2 << 30),
        ("2G", 2 << 30),
        ("2gib", 2 << 30),
        ("2GB", 2 * 10**9),
        ("800MB", 800 * 10**6),
        ("1.5G", 3 << 29),
        (" 1.5 GiB ", 3 << 29),
        ("1k", 1024),
        ("4TiB", 4 << 40),
        ("0.1KiB", 102),
    ],
)
def test_a_size_is_read_as_people_write_it(text: str, n_bytes: int) -> None:
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize(
    "text", ["", "G", "-1G", "1.G", ".5G", "1,5G", "2 apples", "1e9", "٣G", "2GiBs", "9" * 31, "5000000T", "nan", "2bG"]
)
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_bytes(text)
    assert "2GiB" in (refused.value.hint or "")


@given(st.text(max_size=40))
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    with contextlib.suppress(UserError):
        assert 0 <= parse_bytes(text) <= MAX_BYTES


@given(st.integers(0, MAX_BYTES))
def test_what_is_shown_reads_back_within_five_percent(n_bytes: int) -> None:
    assert abs(parse_bytes(format_bytes(n_bytes)) - n_bytes) <= 0.05 * n_bytes


@given(st.integers(0, 1023), st.sampled_from("KMGT"))
def test_whole_binary_sizes_are_shown_exactly(count: int, letter: str) -> None:
    n_bytes = parse_bytes(f"{count}{letter}iB")
    assert parse_bytes(format_bytes(n_bytes)) == n_bytes


def test_sizes_are_shown_short() -> None:
    assert [format_bytes(n) for n in (0, 900, 1536, 100 * MIB, 1023 * MIB, 3 << 29, 7 << 40)] == [
        "0 B",
        "900 B",
        "1.5 KiB",
        "100 MiB",
        "1023 MiB",
        "1.5 GiB",
        "7 TiB",
    ]


def test_without_control_groups_the_system_answers(tmp_path: Path) -> None:
    assert 0 < available_bytes(tmp_path) <= psutil.virtual_memory().total


def test_this_process_has_less_than_all_memory() -> None:
    assert 0 < available_bytes() < psutil.virtual_memory().total


def test_a_version_2_group_bounds_what_is_available(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/user/app"
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user/app\n",
            f"{group}/memory.max": f"{50 * MIB}\n",
            f"{group}/memory.current": f"{30 * MIB}\n",
            f"{group}/memory.stat": f"anon {20 * MIB}\ninactive_file {8 * MIB}\n",
        },
    )
    assert available_bytes(tmp_path) == 28 * MIB  # file pages out of use can be dropped


def test_an_ancestor_bounds_a_group_without_a_limit(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user/app\n",
            "sys/fs/cgroup/user/app/memory.max": "max\n",
            "sys/fs/cgroup/user/app/memory.current": "1\n",
            "sys/fs/cgroup/user/memory.max": f"{40 * MIB}\n",
            "sys/fs/cgroup/user/memory.current": f"{30 * MIB}\n",
        },
    )
    assert available_bytes(tmp_path) == 10 * MIB


def test_a_version_1_group_in_a_container_is_found_at_the_mount(tmp_path: Path) -> None:
    mount = "sys/fs/cgroup/memory"
    write(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n",
            f"{mount}/memory.limit_in_bytes": f"{64 * MIB}",
            f"{mount}/memory.usage_in_bytes": f"{60 * MIB}",
            f"{mount}/memory.stat": f"inactive_file 1\ntotal_inactive_file {2 * MIB}\n",
        },
    )
    assert available_bytes(tmp_path) == 6 * MIB


def test_a_group_over_its_limit_has_nothing(tmp_path: Path) -> None:
    write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "10", "sys/fs/cgroup/memory.current": "20"})
    assert available_bytes(tmp_path) == 0


@pytest.mark.parametrize("text", ["", "\n", "garbage", "0:::::", "4:memory"])
def test_odd_group_files_limit_nothing(tmp_path: Path, text: str) -> None:
    write(tmp_path, {"proc/self/cgroup": text, "sys/fs/cgroup/memory.max": "many", "sys/fs/cgroup/memory.current": "20"})
    assert available_bytes(tmp_path) > 0


def test_the_offer_is_what_the_owner_allows_minus_what_is_used() -> None:
    assert offered_bytes(30 * MIB, 20 * MIB) == 10 * MIB
    assert offered_bytes(30 * MIB, 40 * MIB) == 0


def test_the_offer_leaves_headroom_however_generous_the_owner() -> None:
    assert 0 < offered_bytes(None, 0) <= psutil.virtual_memory().total - HEADROOM_BYTES
    assert offered_bytes(1 << 60, 0) <= psutil.virtual_memory().total - HEADROOM_BYTES


def test_the_offer_leaves_room_for_what_stages_were_promised_and_have_not_taken() -> None:
    much = offered_bytes(None, 0)
    assert 0 <= offered_bytes(None, 0, promised=much // 2) <= much * 3 // 4
    assert offered_bytes(None, 0, promised=2 * psutil.virtual_memory().total) == 0


# Frees one large block, as after measuring; then blocks with a smaller one behind each, so that no heap shrinks by itself. Prints what
# stays resident of them.
FREED_BETWEEN_OTHERS = """
import ctypes, psutil
from mdi.profile.memory import keep_large_blocks_apart
{call}
c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
c.malloc.argtypes = [ctypes.c_size_t]
c.free.argtypes = [ctypes.c_void_p]
c.free(c.malloc(24 << 20))
before = psutil.Process().memory_info().rss
blocks = []
for _ in range(16):
    block = c.malloc(4 << 20)
    ctypes.memset(block, 1, 4 << 20)
    blocks.append(block)
    c.malloc(512 << 10)
for block in blocks:
    c.free(block)
print(psutil.Process().memory_info().rss - before)
"""


def left_resident(call: str) -> int:
    script = FREED_BETWEEN_OTHERS.format(call=call)
    return int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_large_blocks_that_are_freed_between_others_return_to_the_system() -> None:
    assert left_resident("keep_large_blocks_apart()") < 4 * MIB
    assert left_resident("") > 40 * MIB, "the C library gives them back by itself: keep_large_blocks_apart can go"

from __future__ import annotations

from pathlib import Path

from mdi.profile.cpu import FEATURES, cpu_features, cpu_model, last_level_cache_bytes, physical_cores, usable_cpus
from mdi.profile.device import DeviceInfo

PI_5_CORE = """processor\t: {n}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes crc32 atomics asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b

"""
PI_4 = """processor\t: 0
Features\t: fp asimd evtstrm crc32 cpuid
CPU part\t: 0xd08

Revision\t: c03111
Model\t\t: Raspberry Pi 4 Model B Rev 1.1
"""
LAPTOP = "processor : 0\nmodel name : Some Laptop CPU @ 2 GHz\nflags : fpu avx2 avx512_vnni avx_vnni_int8\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_pi_5_is_named_by_its_device_tree_and_cores(tmp_path: Path) -> None:
    write(tmp_path / "proc/cpuinfo", "".join(PI_5_CORE.format(n=n) for n in range(4)))
    write(tmp_path / "proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0")
    assert cpu_model(tmp_path) == "Raspberry Pi 5 Model B Rev 1.0 (4x Cortex-A76)"
    assert cpu_features(tmp_path) == ("asimd", "asimddp")


def test_a_pi_4_has_no_dot_product(tmp_path: Path) -> None:
    write(tmp_path / "proc/cpuinfo", PI_4)
    assert cpu_model(tmp_path) == "Raspberry Pi 4 Model B Rev 1.1 (1x Cortex-A72)"
    assert cpu_features(tmp_path) == ("asimd",)


def test_big_and_little_cores_are_both_named(tmp_path: Path) -> None:
    write(tmp_path / "proc/cpuinfo", "CPU part : 0xd05\n\nCPU part : 0xd05\n\nCPU part : 0xd0b\n")
    assert cpu_model(tmp_path) == "2x Cortex-A55 + 1x Cortex-A76"


def test_an_x86_processor_is_named_by_its_model(tmp_path: Path) -> None:
    write(tmp_path / "proc/cpuinfo", LAPTOP)
    assert cpu_model(tmp_path) == "Some Laptop CPU @ 2 GHz"
    assert cpu_features(tmp_path) == ("avx2", "avx512_vnni")


def test_a_system_that_says_nothing_still_has_a_name(tmp_path: Path) -> None:
    assert cpu_model(tmp_path)
    assert last_level_cache_bytes(tmp_path) == 0
    assert physical_cores(frozenset({0}), tmp_path) == 1


def test_siblings_of_one_core_count_once(tmp_path: Path) -> None:
    for cpu, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        write(tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", siblings + "\n")
    assert physical_cores(frozenset({0, 1, 2, 3}), tmp_path) == 2
    assert physical_cores(frozenset({0, 2}), tmp_path) == 1


def test_the_last_level_cache_is_the_largest(tmp_path: Path) -> None:
    for index, size in enumerate(("32K", "1024K", "2M", "odd")):
        write(tmp_path / f"sys/devices/system/cpu/cpu0/cache/index{index}/size", size + "\n")
    assert last_level_cache_bytes(tmp_path) == 2 << 20


def test_this_device_describes_itself() -> None:
    info = DeviceInfo.of_this_device()
    assert info.cpu
    assert 1 <= info.usable_cores <= info.usable_cpus == len(usable_cpus())
    assert set(info.features) <= set(FEATURES)
    assert info.memory_bytes > 0

"""python -m tools.arm64 [--cache DIRECTORY] [--wheels-only]: does the base install work on 64-bit Arm?

Exit code 77: the wheels are fine, but this machine cannot have the emulator; the reason is printed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import platformdirs

from mdi.cli.failures import report
from mdi.errors import MdiError
from tools.arm64.cluster import EXPECTED, answer_on
from tools.arm64.emulator import Emulator, Unobtainable, obtain
from tools.arm64.wheels import TARGET_BYTES, download, own_bytes, unpack

CORES = {"cortex-a72": "Raspberry Pi 4", "cortex-a76": "Raspberry Pi 5"}
MOST_SHOWN = 8
UNOBTAINABLE = 77


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.arm64", description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path(platformdirs.user_cache_dir("mdi-arm64", appauthor=False)))
    parser.add_argument("--wheels-only", action="store_true", help="resolve and measure the wheels, emulate nothing")
    args = parser.parse_args()
    try:
        fits = _wheels(args.cache)
        works = args.wheels_only or _emulated(args.cache)
    except Unobtainable as error:
        print(f"not emulated: {error}{f' ({error.hint})' if error.hint else ''}", file=sys.stderr)
        return UNOBTAINABLE if fits else 1
    except MdiError as error:
        return report(error, debug=False)
    return 0 if fits and works else 1


def _wheels(cache: Path) -> bool:
    """Whether the base install keeps to its size."""
    wheels = download(cache / "wheels")
    shutil.rmtree(cache / "site", ignore_errors=True)
    unpack(cache / "wheels", cache / "site")
    for wheel in wheels[:MOST_SHOWN]:
        print(
            f"{wheel.name:20} {wheel.download_bytes / 1e6:6.1f} MB to download {wheel.installed_bytes / 1e6:6.1f} MB installed"
        )
    downloaded = sum(wheel.download_bytes for wheel in wheels)
    installed = sum(wheel.installed_bytes for wheel in wheels) + own_bytes()
    print(f"{len(wheels)} wheels, {downloaded / 1e6:.0f} MB to download; with MDI itself {installed / 1e6:.0f} MB installed")
    if installed > TARGET_BYTES:
        print(f"that is more than {TARGET_BYTES / 1e6:.0f} MB", file=sys.stderr)
    return installed <= TARGET_BYTES and not any(wheel.name == "torch" for wheel in wheels)


def _emulated(cache: Path) -> bool:
    emulator: Emulator = obtain(cache, cache / "site")
    right = True
    for cpu, board in CORES.items():
        outcome = answer_on(emulator, cpu)
        dot = "with" if outcome.dot_product else "without"
        print(
            f"{cpu} ({board}), {dot} dot-product instructions: a daemon computed {outcome.worker_blocks} int4 blocks,"
            f" the answer is {outcome.text!r} ({outcome.seconds:.0f} s)",
            flush=True,
        )
        right = right and EXPECTED in outcome.text and outcome.worker_blocks > 0
    return right


if __name__ == "__main__":
    sys.exit(main())

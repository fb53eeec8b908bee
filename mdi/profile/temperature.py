"""How hot the processor is."""

from __future__ import annotations

from pathlib import Path

THERMAL = Path("/sys/class/thermal")


def temperature_c(root: Path = THERMAL) -> float | None:
    """The hottest thermal zone in degrees Celsius; None where the system does not tell (virtual machines)."""
    found: list[float] = []
    for zone in root.glob("thermal_zone*/temp"):
        try:
            found.append(int(zone.read_text()) / 1000)
        except (OSError, ValueError):
            continue  # a zone that is switched off answers with an error
    return max(found, default=None)

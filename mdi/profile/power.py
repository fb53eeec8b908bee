"""Where this device's power comes from."""

from __future__ import annotations

import psutil


def on_battery() -> bool:
    """Whether the system says that it runs on its battery. Devices without one, and systems that do not tell, do not."""
    sensors = getattr(psutil, "sensors_battery", None)  # missing on some systems
    try:
        battery = sensors() if sensors is not None else None
    except (OSError, ValueError):  # a broken driver's files
        return False
    return battery is not None and battery.power_plugged is False  # None: not known

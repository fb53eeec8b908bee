from __future__ import annotations

import pytest

from tools.testbed.machine import Machine, this_machine


@pytest.fixture(scope="session")
def machine() -> Machine:
    """What this machine allows; the test is skipped where it allows no testbed."""
    machine = this_machine()
    if machine.refusal is not None:
        pytest.skip(machine.refusal)
    return machine

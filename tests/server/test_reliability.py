"""Short forms of `make attack`, `make fuzz`, `make overload` and `make soak`.

The long forms measure times. Here only outcomes count: answers, memory, processes.
"""

from __future__ import annotations

import pytest

from tests.reliability import attack, fuzz, overload, soak
from tests.reliability.attacks import ATTACKS
from tests.reliability.watching import GIBIBYTE
from tests.support.servers import Server

STANDSTILL_S = 20
"""Without its bounds, the server stood still for 26 to 88 s."""


@pytest.mark.parametrize("name", ATTACKS)
def test_nobody_else_notices_an_attack(server: Server, name: str) -> None:
    row = attack.row_of(server.options, name, rounds_s=0)
    assert row["failures"] == []
    assert not row["status"].startswith("5")
    assert row["healthz_s"] < STANDSTILL_S
    assert row["click_s"] < STANDSTILL_S
    assert row["clicks"]
    assert row["gateway"] < attack.GATEWAY_BYTES / GIBIBYTE
    assert 0.1 < row["worker"] < attack.WORKER_BYTES / GIBIBYTE


def test_random_requests(server: Server) -> None:
    result = fuzz.run(server.options, 200)
    assert result["wrong"] == []
    assert result["ended"] == []
    assert {"200", "400", "422"} <= result["statuses"].keys()
    assert not result["schema"].startswith("FAILED"), result["schema"]


def test_more_clients_than_the_server_can_answer(server: Server) -> None:
    row = overload.row_of(server.options, 64, 3)
    assert row["others"] == []
    assert row["answers"] > 0


def test_mixed_traffic(server: Server) -> None:
    result = soak.run(server.options, 8)
    assert result["wrong"] == []
    assert result["ended"] == []
    assert result["samples"][-1]["requests"] > 10
    assert "Log:" in soak.text(result)

"""The `Server-Timing` header, as browsers read it."""

from __future__ import annotations

import re

from samserve.timing import ServerTiming


def test_steps_in_their_order() -> None:
    timing = ServerTiming()
    with timing.step("embed") as described:
        described.append("memory")
    own = timing.copy()
    with own.step("masks"):
        pass
    assert re.fullmatch(r'embed;desc="memory";dur=\d+\.\d, masks;dur=\d+\.\d', str(own))
    assert "masks" not in str(timing)

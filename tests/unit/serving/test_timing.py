"""The `Server-Timing` header, as browsers read it."""

from __future__ import annotations

import re

from samserve.serving.timing import ServerTiming


def test_steps_in_their_order() -> None:
    timing = ServerTiming()
    with timing.step("embed") as described:
        described.append("memory")
    own = timing.copy()
    with own.step("masks"):
        pass
    assert re.fullmatch(r'embed;desc="memory";dur=\d+\.\d, masks;dur=\d+\.\d', str(own))
    assert "masks" not in str(timing)


def test_each_step_is_observed_once() -> None:
    seen: list[tuple[str, float]] = []
    timing = ServerTiming(lambda name, seconds: seen.append((name, seconds)))
    with timing.step("embed"):
        pass
    timing.add("decode", 0.25)
    own = timing.copy()
    with own.step("outline"):
        pass
    assert [name for name, _ in seen] == ["embed", "decode", "outline"]
    assert seen[1][1] == 0.25
    assert "decode;dur=250.0" in str(own)

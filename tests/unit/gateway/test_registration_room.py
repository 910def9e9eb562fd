"""More weights are refused if there are too many, or if their workers would not fit."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from samserve.errors import NoRoom
from samserve_gateway import registration_room
from samserve_gateway.registration_room import check_memory, check_number
from tests.support.registration import Bench, Lanes


def test_the_number_of_weights_is_bounded(tmp_path: Path) -> None:
    for name in ("vit_t.one", "vit_b.two"):
        (tmp_path / f"{name}.pt").touch()
        (tmp_path / f"{name}.json").touch()
    check_number(tmp_path, 3)
    with pytest.raises(NoRoom) as refused:
        check_number(tmp_path, 2)
    said = refused.value.message
    assert "2 weights are registered: vit_b.two, vit_t.one. The limit is 2" in said
    assert "SAMSERVE_MAX_WEIGHTS" in said
    assert "To remove weights" in said


def test_too_many_weights_are_refused_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAMSERVE_MAX_WEIGHTS", "8")
    bench = Bench(tmp_path, monkeypatch)
    folder = bench.weights_dir / "registered"
    folder.mkdir()
    names = [f"vit_t.n{number}.pt" for number in range(8)]
    for name in names:
        (folder / name).touch()
    bench.job("raise SystemExit('it must not run')")
    with pytest.raises(NoRoom):
        bench.register()
    assert bench.left() == set(names)


@pytest.mark.parametrize("available", [2**40, 1000, None])
def test_workers_must_fit_into_memory(
    monkeypatch: pytest.MonkeyPatch, available: int | None
) -> None:
    monkeypatch.setattr(registration_room, "available_memory", lambda: available)
    lanes = Lanes()
    asyncio.run(check_memory(lanes, "vit_t"))  # no worker runs: nothing is known
    for lane in lanes.there.values():
        lane["workers"] = [{"pid": str(os.getpid()), "status": "READY"}]
    if available != 1000:
        asyncio.run(check_memory(lanes, "vit_t"))
        return
    with pytest.raises(NoRoom, match=r"^4 workers of vit_t take \d+ MiB of memory, and 0 MiB are"):
        asyncio.run(check_memory(lanes, "vit_t"))

"""Whose turn it is: prompts on known pictures do not wait behind new pictures."""

from __future__ import annotations

import asyncio

import pytest

from samserve_gateway import turns
from tests.unit.gateway.test_queues import Lane, description, run, settle


@pytest.mark.parametrize("client", ["alice", "bob"])
def test_a_known_picture_does_not_wait_behind_new_ones(client: str) -> None:
    """Whoever sends them: without keys on loopback, all clients have one name."""

    async def work() -> None:
        lane = Lane("vit_t", workers=2)
        asked = [lane.ask("alice", f"new{n}", picture=f"p{n}") for n in range(20)]
        await settle()
        assert lane.begun == ["new0", "new1"]  # one for each worker
        asked += [lane.ask(client, f"click{n}") for n in range(2)]
        await settle()
        assert lane.begun[2:] == ["click0", "click1"]
        asked += [lane.ask(client, f"click{n}") for n in range(2, 4)]
        await settle()
        assert len(lane.begun) == 4  # now TorchServe has two batches for each worker
        await lane.release("new1")
        assert lane.begun[4:] == ["click2"]  # one of the two workers is for clicks now
        await lane.release("click0", "click1", "click2", "click3", "new0")
        for number in range(2, 20):
            await lane.release(f"new{number}")
        assert len(lane.begun) == 24
        await asyncio.gather(*asked)
        assert not lane.queue._turns._pictures

    run(work())


def test_if_nobody_clicks_all_workers_embed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        lane = Lane("vit_t", workers=3)
        asked = [
            lane.ask("alice", "click"),
            *(lane.ask("bob", f"n{i}", 60, f"p{i}") for i in range(6)),
        ]
        await settle()
        assert lane.begun == ["click", "n0", "n1"]
        monkeypatch.setattr(turns, "QUIET_S", -1.0)
        await lane.release("click")
        assert lane.begun[3:] == ["n2"]
        for number in range(6):
            await lane.release(f"n{number}")
        await asyncio.gather(*asked)

    run(work())


def test_one_worker_embeds_a_picture_that_several_clients_send() -> None:
    async def work() -> None:
        lane = Lane("vit_t", workers=2)
        asked = [lane.ask("alice", "a0", picture="p"), lane.ask("bob", "b0", picture="q")]
        asked += [lane.ask("carol", f"c{n}", picture="p") for n in range(3)]
        asked += [lane.ask("carol", f"d{n}", picture="r") for n in range(3)]
        await settle()
        assert lane.begun == ["a0", "b0"]
        await lane.release("a0")  # now the workers know the picture
        assert set(lane.begun[2:]) == {"c0", "c1", "c2"}
        await lane.release("c0", "c1", "c2")
        assert len(lane.begun) == 5  # somebody clicks, so one worker stays free
        await lane.release("b0")
        assert lane.begun[5:] == ["d0"]
        await lane.release("d0", "d1", "d2")
        await asyncio.gather(*asked)
        assert not lane.queue._turns._pictures

    run(work())


def test_a_picture_that_was_answered_long_ago_is_new_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "MAX_RECENT", 2)

    async def work() -> None:
        lane = Lane("vit_t", workers=1)
        for name in "pqr":
            asked = lane.ask("alice", name, picture=name)
            await settle()
            await lane.release(name)
            await asked
        again = [lane.ask("alice", f"again {name}", picture=name) for name in "spqr"]
        await settle()
        assert lane.begun[3:] == ["again s", "again q"]  # there is a place for one more
        await lane.release("again s", *(f"again {name}" for name in "qrp"))
        await asyncio.gather(*again)

    run(work())


@pytest.mark.parametrize("leaves", ["waits", "inside", "fails"])
def test_the_place_of_a_new_picture_is_given_back(leaves: str) -> None:
    async def work() -> None:
        lane = Lane("vit_t", workers=1)
        first, second, third = (
            lane.ask("alice", name, picture=name) for name in ("fails", "second", "third")
        )
        await settle()
        if leaves == "waits":
            second.cancel()
            await lane.release("fails")
            assert lane.begun == ["fails", "third"]
            await lane.release("third")
        else:
            if leaves == "inside":
                first.cancel()
                await settle()
                assert lane.begun == ["fails"]  # TorchServe has it still
            await lane.release("fails")
            assert lane.begun == ["fails", "second"]
            await lane.release("second", "third")
        await asyncio.gather(first, second, third, return_exceptions=True)
        assert not lane.queue._turns._pictures
        assert lane.queue.unanswered == 0

    run(work())


def test_new_pictures_on_a_gpu_are_not_held_back() -> None:
    async def work() -> None:
        lane = Lane("vit_t", workers=1)
        described = description(1, batch_size=4)
        described["workers"][0]["gpu"] = True
        lane.queue.resize(described)
        asked = [lane.ask("alice", f"new{n}", picture=f"p{n}") for n in range(8)]
        await settle()
        assert len(lane.begun) == 8
        await lane.release(*lane.begun)
        await asyncio.gather(*asked)

    run(work())

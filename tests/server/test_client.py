"""The same calls at a real server, by both clients, and in process; each against the reference."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import shapely
from PIL import Image

import samserve
from samserve.errors import InvalidField, NotFound, TimedOut
from samserve.objects.interface import SegmentablePicture
from samserve_client.errors import ServerUnreachable
from tests.support.geometry import same_mask
from tests.support.sample_pictures import new_picture, picture
from tests.support.segmenters import segmenter_of
from tests.support.servers import Server

COINS = picture("coins")
BOX = (20, 30, 70, 78)


class Waited:
    """A picture of the asynchronous client whose calls are waited for."""

    def __init__(self, found: Any, run: Callable[[Any], Any]) -> None:
        self._found, self._run = found, run
        self.size, self.pages, self.frame = found.size, found.pages, found.frame

    def segment(self, *arguments: Any, **keywords: Any) -> Any:
        return self._run(self._found.segment(*arguments, **keywords))

    def prepare(self) -> None:
        self._run(self._found.prepare())

    def automask(self, **keywords: Any) -> Any:
        return self._run(self._found.automask(**keywords))


Open = Callable[..., SegmentablePicture]


@pytest.fixture(scope="module", params=["client", "async client", "in process"])
def opened(request: pytest.FixtureRequest, server: Server, model: Any) -> Iterator[Open]:
    """Return the function `picture` of each of the three places."""
    if request.param == "in process":
        yield segmenter_of(model).picture
        return
    if request.param == "client":
        with samserve.Client(server.options.url) as client:
            yield client.picture
        return
    with asyncio.Runner() if hasattr(asyncio, "Runner") else _Runner() as runner:
        waiting = samserve.AsyncClient(server.options.url)
        yield lambda *words, **more: Waited(runner.run(waiting.picture(*words, **more)), runner.run)
        runner.run(waiting.close())


class _Runner:
    """`asyncio.Runner` for Python 3.10."""

    def __enter__(self) -> _Runner:
        self._loop = asyncio.new_event_loop()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.close()

    def run(self, coroutine: Any) -> Any:
        return self._loop.run_until_complete(coroutine)


def test_a_box(opened: Open, reference_masks: Any) -> None:
    found = opened(COINS).segment(box=BOX)
    [mask], [quality] = reference_masks("coins", list(BOX))
    assert same_mask(found.full(), mask)
    assert found.quality == pytest.approx(quality, abs=1e-3)
    assert found.area == found.polygon.area == found.full().sum()
    assert found.properties["sam_model"] == "vit_t"
    x0, y0, x1, y1 = found.box
    assert found.mask.shape == (y1 - y0, x1 - x0)


def test_a_picture_is_sent_ahead(opened: Open) -> None:
    noise = np.random.default_rng(time.time_ns()).integers(0, 255, (64, 64, 3), np.uint8)
    ahead = opened(noise)
    ahead.prepare()
    ahead.prepare()
    assert ahead.segment(box=(5, 5, 60, 60)).full().shape == (64, 64)


def test_points_of_both_kinds(opened: Open, model: Any) -> None:
    from mobile_sam import SamPredictor

    reference = SamPredictor(model)
    reference.set_image(COINS)
    points, labels = np.array([[45, 55], [5, 5]]), np.array([1, 0])
    [mask], _, _ = reference.predict(points, labels, multimask_output=False)
    assert same_mask(opened(COINS).segment(points=points, labels=labels).full(), mask)


def test_three_masks_and_several_boxes(opened: Open, reference_masks: Any) -> None:
    coins = opened(COINS)
    three = coins.segment(box=BOX, multimask_output=True)
    masks, qualities = reference_masks("coins", list(BOX), multimask_output=True)
    assert [found.quality for found in three] == pytest.approx(qualities, abs=1e-3)
    assert all(same_mask(f.full(), m) for f, m in zip(three, masks, strict=True))
    boxes = [BOX, (80, 30, 130, 78), BOX]
    several = coins.segment(boxes=boxes)
    assert [found.prompt_idx for found in several] == [0, 1, 2]
    assert same_mask(several[2].full(), several[0].full())
    assert not same_mask(several[1].full(), several[0].full())
    assert len(coins.segment(boxes=[])) == 0


def test_a_click_refines_the_last_mask(opened: Open, model: Any) -> None:
    from mobile_sam import SamPredictor

    coins = opened(COINS)
    first = coins.segment(points=[(45, 55)], return_logits=True)
    second = coins.segment(points=[(45, 55), (30, 40)], labels=[1, 0], refine=first)
    reference = SamPredictor(model)
    reference.set_image(COINS)
    one = np.array([[45, 55]])
    _, _, logits = reference.predict(one, np.array([1]), multimask_output=False)
    rounded = logits.astype(np.float16).astype(np.float32)
    two = np.array([[45, 55], [30, 40]])
    [mask], _, _ = reference.predict(two, np.array([1, 0]), None, rounded, multimask_output=False)
    assert same_mask(second.full(), mask)
    assert second.low_res_logits is not None
    with pytest.raises(InvalidField, match="return_logits=True"):
        coins.segment(points=[(45, 55)], refine=coins.segment(box=BOX))


def test_automask_with_its_progress(opened: Open, model: Any) -> None:
    from mobile_sam import SamAutomaticMaskGenerator

    seen: list[tuple[int, int]] = []
    coins = opened(COINS)
    found = coins.automask(points_per_side=8, progress=lambda *counted: seen.append(counted))
    expected = SamAutomaticMaskGenerator(model, points_per_side=8).generate(COINS)
    assert len(found) == len(expected) > 10
    for one, wanted in zip(found, expected, strict=True):
        assert same_mask(one.full(), wanted["segmentation"])
        assert one.properties["stability_score"] == pytest.approx(
            wanted["stability_score"], abs=1e-3
        )
    assert seen[0][0] < seen[-1][0] == seen[-1][1] == 64
    quiet = coins.automask(points_per_side=np.int64(8))  # type: ignore[arg-type]
    assert [one.area for one in quiet] == [one.area for one in found]
    assert found.labels().max() == len(found)
    assert found.overlay().size == (COINS.shape[1], COINS.shape[0])
    assert found.to_geodataframe().geometry.is_valid.all()


def test_automask_in_a_region_and_by_area(opened: Open) -> None:
    coins = opened(COINS)
    disc = shapely.Point(100, 100).buffer(80)
    inside = coins.automask(points_per_side=8, region=disc)
    assert 0 < len(inside) < len(coins.automask(points_per_side=8))
    large = coins.automask(points_per_side=8, region=disc, min_area=1500)
    assert [one.area for one in large] == [one.area for one in inside if one.area >= 1500]


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"points_per_sid": 8}, TypeError, "points_per_side"),
        ({"points_per_side": 0}, InvalidField, "points_per_side"),
        ({"points_per_side": 3200}, InvalidField, "10240000 points"),
        ({"output_type": "none"}, InvalidField, "output_type"),
        ({"tile_size": 1}, InvalidField, "tile_size"),
        ({"timeout_s": 0.001}, TimedOut, "Stopped after"),
    ],
    ids=str,
)
def test_wrong_parameters(
    opened: Open, wrong: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        opened(COINS).automask(**wrong)
    with pytest.raises(error, match=words):
        opened(COINS).automask(progress=lambda *counted: None, **wrong)


def test_a_stack(opened: Open, tmp_path: Path) -> None:
    coins = Image.fromarray(COINS[:, :, 0])
    more = [coins.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    coins.save(tmp_path / "stack.tif", save_all=True, append_images=more)
    with pytest.raises(InvalidField, match=r"stack\.tif has 2 pages"):
        opened(tmp_path / "stack.tif")
    first, second = (opened(tmp_path / "stack.tif", page=page) for page in (0, 1))
    assert (second.pages, second.size) == (2, COINS.shape[:2])
    width = COINS.shape[1]
    mirrored = second.segment(box=(width - 70, 30, width - 20, 78)).full()[:, ::-1]
    assert np.mean(mirrored != first.segment(box=BOX).full()) < 0.001


def test_16_bits_and_floats(opened: Open) -> None:
    grey = COINS[:, :, 0]
    expected = opened(COINS).segment(box=BOX).area
    for pixels in (grey.astype(np.uint16) * 257, grey / 255):
        assert opened(pixels).segment(box=BOX).area == pytest.approx(expected, rel=0.03)


def _in_work(server: Server) -> int:
    with samserve.Client(server.options.url) as client:
        return client.info().in_work or 0


def _wait_until_free(server: Server) -> None:
    deadline = time.monotonic() + 60
    while _in_work(server):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_error_of_the_callback_ends_the_work_of_the_server(server: Server) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with samserve.Client(server.options.url) as client:
        coins = client.picture(COINS)
        with pytest.raises(KeyboardInterrupt):
            coins.automask(points_per_side=128, progress=stop)
        _wait_until_free(server)
        assert coins.segment(box=BOX).area > 1000


def test_a_cancelled_task_ends_the_work_of_the_server(server: Server) -> None:
    async def run() -> None:
        async with samserve.AsyncClient(server.options.url) as client:
            coins = await client.picture(COINS)
            begun = asyncio.Event()
            task = asyncio.create_task(
                coins.automask(points_per_side=128, progress=lambda *counted: begun.set())
            )
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())
    _wait_until_free(server)


def test_close_ends_the_work_of_the_server(server: Server) -> None:
    client = samserve.Client(server.options.url)
    ended: list[Exception] = []

    def work() -> None:
        try:
            client.picture(COINS).automask(points_per_side=128)
        except (RuntimeError, ServerUnreachable) as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while not _in_work(server):
        time.sleep(0.05)
    client.close()
    thread.join()
    assert len(ended) == 1
    _wait_until_free(server)


def test_a_picture_that_the_server_has_forgotten_is_sent_again(server: Server) -> None:
    with samserve.Client(server.options.url) as client:
        coins = client.picture(COINS)
        coins._sent.known = True  # as after a restart of the server
        coins._sent.content += new_picture().encode()[:8]  # behind a PNG's end; a new digest
        assert coins.segment(box=BOX).area > 1000


def test_a_model_that_is_not_loaded(server: Server) -> None:
    client = samserve.Client(server.options.url, model_type="vit_h")
    with client, pytest.raises(NotFound, match="vit_h is not loaded"):
        client.picture(COINS).segment(box=BOX)


def test_the_info_of_the_server(server: Server) -> None:
    with samserve.Client(server.options.url) as client:
        status = client.info()
    assert (status.version, status.ready) == (samserve.__version__, True)
    assert {lane.name: lane.state for lane in status.lanes} == {
        "vit_t": "ready",
        "vit_t-automask": "ready",
    }
    assert all(lane.waiting == 0 for lane in status.lanes)
    assert [weights["type"] for weights in status.weights] == ["vit_t"]


def test_what_the_server_was_sent(server: Server) -> None:
    """The second call about a picture carries no picture."""

    def received() -> float:
        page = requests.get(f"{server.options.url}/metrics", timeout=60).text
        [line] = [x for x in page.splitlines() if x.startswith(RECEIVED)]
        return float(line.split()[1])

    pixels = np.random.default_rng(time.time_ns()).integers(0, 255, (200, 200, 3), np.uint8)
    with samserve.Client(server.options.url) as client:
        noise = client.picture(pixels)
        before = received()
        noise.segment(box=(10, 10, 100, 100))
        sent = received() - before
        noise.segment(box=(10, 10, 100, 100))
        assert sent > 120_000
        assert received() - before - sent < 1000


RECEIVED = 'samserve_gateway_received_bytes_total{route="/sam/"}'

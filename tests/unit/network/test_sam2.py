"""SAM 2 answers every prompt as the package `sam2` does, with the same random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samserve.network.decoder import MAX_EXACT_POINTS
from samserve.segmenter import EmbeddedPicture
from tests.support.sam2_reference import PICTURES, Pair, pair

pytestmark = pytest.mark.slow

Prompt = dict[str, NDArray[Any]]

SEEN = [
    *(("sam2_t", name) for name in PICTURES),
    ("sam2_s", "wide"),
    ("sam2_bp", "wide"),
    ("sam2_bp", "a strip"),
    ("sam2_l", "a strip"),
]
"""Model types, and the pictures that each of them sees."""


@pytest.fixture(scope="module", params=["sam2_t", "sam2_s", "sam2_bp", "sam2_l"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=PICTURES)
def embedded(request: pytest.FixtureRequest, both: Pair) -> EmbeddedPicture:
    """A picture that both programs have encoded."""
    if (both.segmenter.model.model_type, request.param) not in SEEN:
        pytest.skip("this type sees fewer pictures")
    return both.see(PICTURES[request.param])


def prompts(size: tuple[int, int]) -> dict[str, Prompt]:
    """Return a prompt of each form, without a mask, on a picture of this (height, width)."""
    frame = np.array(size[::-1], np.float64)
    shares = np.random.default_rng(7).random((MAX_EXACT_POINTS + 6, 2))

    def points(count: int) -> Prompt:
        labels = np.arange(count) % 3 != 1  # the second point is background
        return {"point_coords": shares[:count] * frame, "point_labels": labels.astype(int)}

    box = {"box": np.concatenate([frame * 0.21, frame * 0.83])}
    return {
        "box": box,
        "box over the edge": {"box": np.concatenate([frame * -0.1, frame * 0.5])},
        "point": points(1),
        "points": points(4),
        "most points": points(MAX_EXACT_POINTS),
        "more points": points(MAX_EXACT_POINTS + 6),
        "box and point": {**box, **points(1)},
        "box and points": {**box, **points(5)},
    }


def with_masks(size: tuple[int, int], logits: NDArray[np.float32]) -> dict[str, Prompt]:
    """Return a prompt of each form with a mask."""
    plain = prompts(size)
    forms = ("box", "point", "points", "more points", "box and points")
    mask = {"mask_input": logits}
    return {"mask": mask} | {f"mask and {form}": {**plain[form], **mask} for form in forms}


def differing(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    assert one.shape == other.shape
    return np.count_nonzero(one != other) / one.size


def is_answered_alike(both: Pair, embedded: EmbeddedPicture, prompt: Prompt, several: bool) -> Any:
    """Compare both programs' answers, and return the reference's."""
    masks, ious, low_res = both.reference.predict(**prompt, multimask_output=several)
    arguments: dict[str, Any] = {**prompt, "multimask_output": several}
    found = both.segmenter.prompt(embedded, **arguments)
    with_logits = both.segmenter.prompt(embedded, **arguments, return_logits=True)
    assert len(found) == len(with_logits) == len(masks) == (3 if several else 1)
    for ours, refinable, mask, iou, logits in zip(
        found, with_logits, masks, ious, low_res, strict=True
    ):
        for answer in (ours, refinable):
            # One pixel of a small picture is more than a hundred thousandth.
            assert differing(answer.array, mask.astype(bool)) <= max(1e-5, 1.5 / mask.size)
            assert answer.predicted_iou == pytest.approx(float(iou), abs=1e-4)
        assert refinable.low_res_logits is not None
        assert refinable.low_res_logits.dtype == np.float16
        np.testing.assert_allclose(refinable.low_res_logits, logits, rtol=1e-3, atol=1e-3)
    return masks, low_res


def test_every_prompt(both: Pair, embedded: EmbeddedPicture) -> None:
    shares = []
    for prompt in prompts(embedded.size).values():
        for several in (False, True):
            masks, low_res = is_answered_alike(both, embedded, prompt, several)
            shares += [float(mask.mean()) for mask in masks]
            crossings = np.diff(low_res > 0, axis=2).sum((1, 2))
            assert crossings.min() > 500, "the masks are trivial"
    assert 0.05 < np.mean(shares) < 0.95


def test_every_prompt_with_a_mask(both: Pair, embedded: EmbeddedPicture) -> None:
    """A mask refines the one before, three times."""
    box = prompts(embedded.size)["box"]
    _, _, logits = both.reference.predict(**box, multimask_output=False)
    for prompt in with_masks(embedded.size, logits).values():
        for several in (False, True):
            is_answered_alike(both, embedded, prompt, several)
    for _ in range(3):
        _, logits = is_answered_alike(both, embedded, {**box, "mask_input": logits}, False)


def test_logits(both: Pair, embedded: EmbeddedPicture) -> None:
    """The logits that masks are made of are within a thousandth, beside the clamped ones."""
    decoder, image = both.segmenter.model.decoder, embedded.image
    frame = image.embedding

    def in_frame(coords: NDArray[np.float64]) -> torch.Tensor:
        return torch.as_tensor(frame.to_input_frame(coords.reshape(1, -1, 2)), dtype=torch.float)

    for prompt in prompts(embedded.size).values():
        boxes = points = None
        if "box" in prompt:
            boxes = in_frame(prompt["box"]).flatten(1)
        if "point_coords" in prompt:
            points = in_frame(prompt["point_coords"]), torch.tensor(prompt["point_labels"])[None]
        for several in (False, True):
            _, ious, low_res = both.reference.predict(**prompt, multimask_output=several)
            for whole in (False, True):
                decoded = decoder.decode(image, points=points, boxes=boxes, whole=whole)
                channels = decoded.channels(several)[0].tolist()
                found = decoded.low_res_masks(0, channels).numpy()
                assert np.abs(found.clip(-32, 32) - low_res).max() < 1e-3
                assert np.abs(decoded.iou_predictions[0, channels].numpy() - ious).max() < 1e-4


def test_the_choice_of_a_single_mask(both: Pair) -> None:
    """Some first masks are stable, and some are not and the best of three replaces them."""
    if both.segmenter.model.model_type != "sam2_t":
        pytest.skip("all types have the same decoder")
    embedded = both.see(PICTURES["wide"])
    decoder, height, width = both.segmenter.model.decoder, *embedded.size
    coords = np.random.default_rng(3).random((24, 2)) * (width, height)
    frame = torch.as_tensor(embedded.image.embedding.to_input_frame(coords[:, None]))
    decoded = decoder.decode(
        embedded.image, points=(frame.float(), torch.ones(24, 1, dtype=torch.int))
    )
    channels = decoded.channels(False)[:, 0].tolist()
    assert 3 < channels.count(0) < 21, "both cases must occur"
    for number, (channel, point) in enumerate(zip(channels, coords, strict=True)):
        _, ious, low_res = both.reference.predict(point[None], np.array([1]), multimask_output=True)
        mask, [iou], single = both.reference.predict(
            point[None], np.array([1]), multimask_output=False
        )
        found = decoded.low_res_masks(number, [channel])[0].numpy()
        assert np.abs(found.clip(-32, 32) - single[0]).max() < 1e-3
        if channel:
            assert channel == 1 + ious.argmax()
            np.testing.assert_array_equal(single[0], low_res[channel - 1])
        [ours] = both.segmenter.prompt(embedded, point_coords=point[None], point_labels=[1])
        assert differing(ours.array, mask[0].astype(bool)) <= 1e-5
        assert ours.predicted_iou == pytest.approx(float(iou), abs=1e-4)

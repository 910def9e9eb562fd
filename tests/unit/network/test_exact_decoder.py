"""The exact decoder equals the original modules, with trained and with scrambled weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from samserve.network.checkpoints import blank_model
from samserve.network.decoder import Decoder, decode_plain
from samserve.network.encoder import Embedding, Encoder
from samserve.network.exact_decoder import ExactDecoder
from tests.support.sample_pictures import picture


@pytest.fixture(scope="module")
def coins(model: Any) -> Embedding:
    return Encoder(model).encode(picture("coins"))


def scrambled(seed: int) -> Any:
    """Return a network with no norm, bias or token at its initial value, so none can be missed."""
    model = blank_model("vit_t")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in [*model.mask_decoder.parameters(), *model.prompt_encoder.parameters()]:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.5 * noise * (parameter.std() if parameter.numel() > 1 else 1))
    return model.eval().requires_grad_(False)


POINTS = torch.tensor([[[300.0, 400.0]], [[10.5, 700.25]], [[1000.0, 3.0]]], dtype=torch.double)
PAIRS = torch.cat([POINTS, POINTS.flip(0)], dim=1)
BOXES = torch.tensor([[10.0, 20, 300, 400], [500, 500, 501, 502], [0, 0, 1024, 680]])
PROMPTS: dict[str, dict[str, Any]] = {
    "points": {"points": (POINTS, torch.ones(3, 1, dtype=torch.int))},
    "points of both kinds": {"points": (PAIRS, torch.tensor([[1, 0]] * 3))},
    "boxes": {"boxes": BOXES},
    "a box each and points": {"boxes": BOXES, "points": (PAIRS, torch.tensor([[1, 0]] * 3))},
    "one": {"boxes": BOXES[:1]},
}


@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS.keys())
@pytest.mark.parametrize("weights", ["the model's", "scrambled"])
def test_equal_to_the_plain_decoder(
    model: Any, coins: Embedding, prompts: dict[str, Any], weights: str
) -> None:
    if weights == "scrambled":
        model = scrambled(seed=1)
    decoder = Decoder(model)
    plain = decode_plain(model, coins, **prompts)
    ours = decoder.decode(decoder.prepare(coins), **prompts)
    iou_error = (ours.iou_predictions - plain.iou_predictions).abs().max()
    assert iou_error <= 1e-4 * plain.iou_predictions.abs().max()
    for prompt in range(len(plain.masks)):
        masks = ours.low_res_masks(prompt, slice(0, 4))
        # The coins are 384 x 303 pixels, so a fifth of the network's input is padding.
        assert masks.shape == (4, 204, 256)
        expected = plain.masks[prompt, :, :204]
        assert (masks - expected).abs().max() <= 1e-4 * expected.abs().max()
        assert ((masks > 0) != (expected > 0)).float().mean() <= 2e-5


@pytest.mark.parametrize("at_once", [2, None], ids=["two at once", "all at once"])
@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS.keys())
def test_prompts_together_are_as_prompts_alone(
    coins: Embedding, prompts: dict[str, Any], at_once: int | None
) -> None:
    """A GPU decodes prompts together, a CPU one by one."""
    model = scrambled(seed=2)
    given = {"points": None, "boxes": None, "masks": None, **prompts}
    sparse, _ = model.prompt_encoder(**given)
    together, alone = (ExactDecoder(model, at_once=n) for n in (at_once, 1))
    ours = together.decode(together.prepare(coins.features, coins.input_size), sparse)
    theirs = alone.decode(alone.prepare(coins.features, coins.input_size), sparse)
    assert_close(ours.iou_predictions, theirs.iou_predictions)
    numbers = list(range(len(sparse)))[::-1]
    masks = ours.of_several(numbers, slice(1, 4))
    for number, several in zip(numbers, masks, strict=True):
        assert_close(several, theirs.low_res_masks(number, slice(1, 4)))


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_an_image_serves_any_number_of_prompts(model: Any, coins: Embedding) -> None:
    """Decoding a prompt does not change the image."""
    decoder = Decoder(model)
    image = decoder.prepare(coins)
    first = decoder.decode(image, boxes=BOXES[:1])
    before = first.low_res_masks(0, slice(1, 4)).clone()
    for _ in range(2):
        decoder.decode(image, boxes=BOXES).low_res_masks(1, slice(1, 4))
    again = decoder.decode(image, boxes=BOXES[:1])
    assert torch.equal(again.low_res_masks(0, slice(1, 4)), before)
    assert torch.equal(first.low_res_masks(0, slice(1, 4)), before)


def test_the_images_part_is_measured(model: Any, coins: Embedding) -> None:
    """The bytes that the cache counts are those in memory."""
    image = Decoder(model).prepare(coins)
    held = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in [coins.features, *vars(image.prepared).values()]
        if isinstance(t, torch.Tensor)
    }
    assert image.nbytes == sum(held.values())
    assert 20e6 < image.nbytes < 50e6


def test_masks_are_where_they_should_be(model: Any, coins: Embedding) -> None:
    """The mask covers the coin at the picture's top left, whose centre is near (45, 52)."""
    decoder = Decoder(model)
    box = coins.to_input_frame(np.array([[20.0, 30.0], [70.0, 78.0]])).reshape(1, 4)
    masks = decoder.decode(decoder.prepare(coins), boxes=torch.tensor(box, dtype=torch.float))
    mask = masks.low_res_masks(0, slice(0, 1))[0] > 0
    rows, columns = np.nonzero(mask.numpy())
    scale = max(coins.original_size) / 256
    assert abs(columns.mean() * scale - 45) < 4
    assert abs(rows.mean() * scale - 54) < 4

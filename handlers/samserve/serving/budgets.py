"""This module bounds the work of requests before it is done: decoding, masks and outlines.

A request has a budget (`Limits`). Beyond it the request is refused. In the prompt lane a batch has
a smaller budget, too (`LightWork`), because TorchServe sends the answers of a batch together: a
click waits for the heaviest request of its batch. What exceeds that is answered `Heavy`, with
nothing or little done. The gateway then sends it to the automask lane.

How much work a mask is shows only by and by. The size of the picture tells the least, then the
logits tell how many pixels lie along the outline, then the pixels tell how many vertices it has.
So the budget is asked before each step, and measures the time that the steps took.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from samserve.answers.features import Allow
from samserve.errors import Heavy, InvalidImage, TooLarge
from samserve.masks.mask import Compact
from samserve.network.decoder import needs_original
from samserve.pictures.decoder_process import DecoderProcess, OutOfTime, TooHeavy
from samserve.pictures.decoding import Decode, Decoded

from .headers import MODE
from .model_settings import LightWork, Limits
from .requests import AutomaskRequest, EmbedRequest, PromptRequest

WHERE_HEAVY_GOES = f"Send it to the automask lane, with the header `{MODE}: prompt`."

_T = TypeVar("_T")


class DecodingBudget:
    """The CPU time in which the pictures of a batch are decoded, in a process of their own.

    Drawn masks are pictures, too. The prompt lane decodes so many pixels for a whole batch, because
    each of them is copied and scaled after it was decoded.

    It is called like `decode_page`.

    Args:
        process: the process that decodes.
        limits: the limits of one request. Without `light`, a batch has one request.
        light: the limits of the prompt lane; None in the automask lane.
    """

    def __init__(self, process: DecoderProcess, limits: Limits, light: LightWork | None) -> None:
        self._process = process
        self._limits = limits
        self._light = light
        self._left_s = limits.max_decode_s if light is None else light.batch_decode_s
        self._left_pixels = None if light is None else light.max_image_pixels

    def __call__(self, data: bytes, max_pixels: int, field: str, page: int) -> Decoded:
        """Decode a page of an image file.

        Raises:
            Heavy: it takes longer than the prompt lane allows, or has more pixels.
            SamserveError: see `decode_page`; also if it takes longer than a request may.
        """
        light = self._light
        cpu_s = self._left_s if light is None else min(self._left_s, light.decode_s)
        if cpu_s <= 0:
            raise self._refusal(field)
        pixels = self._left_pixels
        try:
            decoded = self._process.decode(
                data, max_pixels, field, page, cpu_s=cpu_s, light_pixels=pixels
            )
        except OutOfTime as exc:
            raise self._refusal(field) from exc
        except TooHeavy as exc:
            raise Heavy(
                f"the image has {exc.pixels} pixels, and the prompt lane decodes {pixels} more for "
                "the requests that it answers together. " + WHERE_HEAVY_GOES,
                field,
            ) from exc
        finally:
            self._left_s -= self._process.used_s
        if pixels is not None:
            height, width, _ = decoded.pixels.shape
            self._left_pixels = max(0, pixels - height * width)
        return decoded

    def _refusal(self, field: str) -> Heavy | InvalidImage:
        if self._light is None:
            return InvalidImage(
                f"decoding the request's pictures takes more than {self._limits.max_decode_s:g} s "
                "of CPU time, this server's limit",
                field,
            )
        return Heavy(
            f"decoding takes more than {self._light.decode_s:g} s of CPU time, or more than the "
            f"{self._light.batch_decode_s:g} s of all requests that the prompt lane answers "
            "together. " + WHERE_HEAVY_GOES,
            field,
        )


def decode_for(
    requests: Sequence[PromptRequest | AutomaskRequest | EmbedRequest],
    decode: Decode,
    limits: Limits,
) -> Decode:
    """Return a function that decodes the picture of these requests, unless its masks are too large.

    The header tells the picture's size. So nothing is decoded or embedded for a request that
    `check_masks` would refuse.
    """
    most, masks = 0, 0
    for request in requests:
        count = number_of_masks(request) if isinstance(request, PromptRequest) else 1
        if limits.max_mask_pixels // count >= most:
            most, masks = limits.max_mask_pixels // count, count

    def checked(data: bytes, max_pixels: int, field: str, page: int) -> Decoded:
        try:
            return decode(data, min(most, max_pixels), field, page)
        except TooLarge as exc:
            if most >= max_pixels:
                raise
            raise TooLarge(
                f"{exc.message}, because {masks} masks may have {limits.max_mask_pixels} pixels "
                "together. Send fewer prompts in a request.",
                "prompts",
            ) from exc

    return checked


def number_of_masks(request: PromptRequest) -> int:
    """Return how many masks answer a request."""
    return len(request.each_prompt()) * (3 if request.multimask_output else 1)


def check_masks(prompts: int, three_masks: bool, size: tuple[int, int], limits: Limits) -> None:
    """Check the number of pixels of all masks that answer so many prompts.

    Args:
        three_masks: whether each prompt is answered by three masks instead of one.
        size: (height, width) of the image in pixels.

    Raises:
        TooLarge: there are more than `limits.max_mask_pixels`; the message names both numbers.
    """
    masks, (height, width) = prompts * (3 if three_masks else 1), size
    pixels = masks * height * width
    if pixels > limits.max_mask_pixels:
        raise TooLarge(
            f"{masks} masks of {width}x{height} pixels have {pixels} pixels together; the limit is "
            f"{limits.max_mask_pixels}. Send fewer prompts in a request.",
            "prompts" if prompts > 1 else None,
        )


PROMPT_S = 0.008
"""Seconds in which two cores decode a box or a few points. MobileSAM on an EPYC, as below."""

ORIGINAL_S, POINT_S = 0.08, 0.0006
"""Seconds that a mask prompt, or many points, take in addition: each of them, and each point."""

PIXEL_S = 4e-9
"""Seconds per pixel to unpack and outline a mask that fills the picture."""

OUTLINE_PIXEL_S = 2e-8
"""Seconds per pixel along the outline that has to be computed."""


def seconds_of_prompts(request: PromptRequest) -> float:
    """Estimate the seconds that the prompts of a request take in the decoder."""
    seconds = 0.0
    for _, prompt in request.each_prompt():
        points = len(prompt.point_coords or ())
        seconds += PROMPT_S
        has_mask = prompt.b64mask is not None or prompt.mask_input is not None
        if request.return_logits or needs_original(points, has_mask):
            seconds += ORIGINAL_S + points * POINT_S
    return seconds


def seconds_of_masks(request: PromptRequest, size: tuple[int, int]) -> float:
    """Estimate the seconds that the masks of a request take, with simple outlines.

    A mask may be much smaller than the picture, and then it takes less. A complex outline takes
    more: see `OutlineBudget`.

    Args:
        size: (height, width) of the image in pixels.
    """
    masks_s = number_of_masks(request) * size[0] * size[1] * PIXEL_S
    return seconds_of_prompts(request) + masks_s


def check_light(request: PromptRequest, size: tuple[int, int], light: LightWork | None) -> None:
    """Check the masks of a request alone, before its drawn masks are decoded.

    Args:
        size: (height, width) of the image in pixels.
        light: what the prompt lane takes; None in the automask lane.

    Raises:
        Heavy: they take longer than the prompt lane allows a request.
    """
    if light is not None and (needed_s := seconds_of_masks(request, size)) > light.masks_s:
        raise _heavy_masks(needed_s, light)


def light_ones(
    requests: Iterable[_T], seconds: Callable[[_T], float], light: LightWork
) -> Iterator[tuple[_T, Heavy | None]]:
    """Yield the requests of a batch, cheap ones first, each with the reason if it is too heavy.

    Args:
        seconds: estimates the seconds that a request takes.
    """
    left_s = light.batch_masks_s
    for needed_s, request in sorted(
        ((seconds(request), request) for request in requests), key=lambda pair: pair[0]
    ):
        if needed_s <= left_s:
            left_s -= needed_s
            yield request, None
            continue
        yield request, _heavy_masks(needed_s, light)


def _heavy_masks(needed_s: float, light: LightWork) -> Heavy:
    return Heavy(
        f"The masks take about {needed_s:.1f} s; the prompt lane takes requests of "
        f"{light.masks_s:g} s, and {light.batch_masks_s:g} s together. " + WHERE_HEAVY_GOES
    )


class OutlineBudget:
    """The time in which the masks of a batch are unpacked, outlined and written.

    Args:
        limits: the limits of one request.
        light: the limits of the prompt lane; None in the automask lane, where only the number of
            vertices is limited.
        used_s: the seconds that the decoder took for the batch.
    """

    def __init__(self, limits: Limits, light: LightWork | None, used_s: float = 0.0) -> None:
        self._limits = limits
        self._light = light
        self._left_s = math.inf if light is None else light.batch_masks_s - used_s

    @contextlib.contextmanager
    def request(self, masks: Sequence[Compact]) -> Iterator[Allow]:
        """Measure the time of the block, which writes the answer to a request with these masks.

        The block gets a function that it calls before each step (`answers.features.Allow`).

        Raises:
            Heavy: these masks take longer than the prompt lane allows.
        """
        start, vertices = time.thread_time(), 0
        allowed_s = self._left_s if self._light is None else min(self._left_s, self._light.masks_s)

        def allow(more_vertices: int, seconds: float) -> None:
            nonlocal vertices
            vertices += more_vertices
            if vertices > self._limits.max_vertices:
                raise TooLarge(
                    f"The masks have more than {self._limits.max_vertices} vertices, this server's "
                    f"limit: {vertices} up to here (runs of pixels in COCO). Send fewer prompts."
                )
            needed_s = time.thread_time() - start + seconds
            if self._light is not None and needed_s > allowed_s:
                raise _heavy_masks(needed_s, self._light)

        try:
            allow(0, sum(map(seconds_of_mask, masks)))
            yield allow
        finally:
            self._left_s -= time.thread_time() - start


def seconds_of_mask(mask: Compact) -> float:
    """Estimate the seconds that it takes to unpack a mask, and to outline it if it is simple."""
    in_box, along_outline = mask.work
    return in_box * PIXEL_S + along_outline * OUTLINE_PIXEL_S

"""This module bounds the work of requests before it is done: decoding, and making masks.

A request has a budget (`Limits`). Beyond it the request is refused. In the prompt lane a batch has
a smaller budget, too (`LightWork`), because TorchServe sends the answers of a batch together: a
click waits for the heaviest request of its batch. What exceeds that is answered `Heavy`, with
nothing or little done. The gateway then sends it to the automask lane.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from samserve.errors import Heavy, InvalidImage, TooLarge
from samserve.network.decoder import needs_original
from samserve.pictures.decoder_process import DecoderProcess, OutOfTime, TooHeavy
from samserve.pictures.decoding import Decoded

from .headers import MODE
from .model_settings import LightWork, Limits
from .requests import PromptRequest

WHERE_HEAVY_GOES = f"Send it to the automask lane, with the header `{MODE}: prompt`."

_T = TypeVar("_T")


class DecodingBudget:
    """The CPU time in which the pictures of a batch are decoded, in a process of their own.

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
        try:
            return self._process.decode(
                data,
                max_pixels,
                field,
                page,
                cpu_s=cpu_s,
                light_pixels=None if light is None else light.max_image_pixels,
            )
        except OutOfTime as exc:
            raise self._refusal(field) from exc
        except TooHeavy as exc:
            most = 0 if light is None else light.max_image_pixels
            raise Heavy(
                f"the image has {exc.pixels} pixels, and the prompt lane decodes {most} at most. "
                + WHERE_HEAVY_GOES,
                field,
            ) from exc
        finally:
            self._left_s -= self._process.used_s

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


def seconds_of_masks(request: PromptRequest, size: tuple[int, int]) -> float:
    """Estimate the seconds that the masks of a request take, with their outlines.

    It is an upper estimate: a mask may be much smaller than the picture.

    Args:
        size: (height, width) of the image in pixels.
    """
    masks_s = size[0] * size[1] * PIXEL_S * (3 if request.multimask_output else 1)
    seconds = 0.0
    for _, prompt in request.each_prompt():
        points = len(prompt.point_coords or ())
        seconds += PROMPT_S + masks_s
        if needs_original(points, prompt.b64mask is not None):
            seconds += ORIGINAL_S + points * POINT_S
    return seconds


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

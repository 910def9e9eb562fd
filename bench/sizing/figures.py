"""The work of a request, as measured, and the shape of a worker pod.

`python -m bench.sizing.check` measures the figures of vit_t again, and compares the simulation with
a real server.
"""

from __future__ import annotations

from dataclasses import dataclass

NICE_0, NICE_10 = 1024, 110
"""The kernel's weights of these two priorities: how it shares the cores among busy threads."""


@dataclass(frozen=True)
class Figures:
    """The work of requests for one model type, on one kind of pod.

    Work is in seconds of one core; on a GPU, in seconds of the GPU.

    Attributes:
        click_s: work of one prompt on a known picture, all processes of the server together.
        encode_s: work to decode and embed a new picture.
        automask_s: work of an automask of 32x32 points on a known picture.
        cores: cores of the pod, or 1 for its GPU.
        click_cores, encode_cores, automask_cores: cores that this work keeps busy on an idle pod.
            Threads wait for each other, so it is less than the pod has.
        threads: threads of one worker. Each works on one prompt at a time.
        prompt_workers, automask_workers: workers of each lane (config/config.properties).
        batch_size: prompts that a worker takes at once (likewise).
        batch_delay_s: how long the first prompt of a batch waits for others (likewise).
        queue_size: requests that wait in a lane of a pod; further ones get 503 (likewise).
        automask_weight: the share of a thread of the automask worker; a prompt worker has NICE_0.
    """

    click_s: float
    encode_s: float
    automask_s: float
    click_cores: float
    encode_cores: float
    automask_cores: float
    cores: int = 2
    threads: int = 2
    prompt_workers: int = 2
    automask_workers: int = 1
    batch_size: int = 4
    batch_delay_s: float = 0.001
    queue_size: int = 100
    automask_weight: int = NICE_10

    def alone_s(self) -> tuple[float, float, float]:
        """Return the times of a click, a click on a new picture, and an automask on an idle pod."""
        click = self.batch_delay_s + self.click_s / self.click_cores
        new = click + self.encode_s / self.encode_cores
        return click, new, self.automask_s / self.automask_cores


# vit_t: `python -m bench.sizing.check` on two cores of an AMD EPYC, 2026-11-26, with pictures of
# 1024x1024. The others: seconds of two cores to encode a picture (docs/operations.md, "Model
# types"). Prompts and automasks use the same decoder as vit_t.
_CLICK_S, _CLICK_CORES = 0.029, 1.2
_AUTOMASK_S, _AUTOMASK_CORES = 14.7, 1.9

FIGURES = {
    "vit_t": Figures(_CLICK_S, 0.67, _AUTOMASK_S, _CLICK_CORES, 1.8, _AUTOMASK_CORES),
    "vit_b": Figures(_CLICK_S, 2 * 8.0, _AUTOMASK_S, _CLICK_CORES, 2, _AUTOMASK_CORES),
    "vit_l": Figures(_CLICK_S, 2 * 23.0, _AUTOMASK_S, _CLICK_CORES, 2, _AUTOMASK_CORES),
    "vit_h": Figures(_CLICK_S, 2 * 45.0, _AUTOMASK_S, _CLICK_CORES, 2, _AUTOMASK_CORES),
    # NVIDIA H200, in the process of the library (docs/operations.md, "GPUs"): 33 pictures a second;
    # a click and an automask as with vit_t. The server around it is not measured. The workers of
    # the two lanes take turns on the GPU, which knows no priorities.
    "vit_h-gpu": Figures(
        0.0082,
        1 / 33,
        0.36,
        1,
        1,
        1,
        cores=1,
        threads=1,
        prompt_workers=1,
        automask_weight=NICE_0,
    ),
}

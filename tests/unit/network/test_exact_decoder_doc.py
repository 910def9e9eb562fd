"""The example in docs/exact-decoder.md runs, has the numbers on the page, and equals attention."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "exact-decoder.md").read_text()


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    """The variables after the page's Python blocks have run."""
    variables: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, variables)
    return variables


def test_every_number_on_the_page_is_the_computed_one(example: dict[str, Any]) -> None:
    [block] = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    numbers = dict(line.split(" = ") for line in block.splitlines())
    for name, values in numbers.items():
        computed = np.round(np.asarray(example[name], float), 4)
        np.testing.assert_array_equal(json.loads(values), computed, err_msg=name)
    # All arrays are on the page, except the inputs and those of the original computation.
    inputs = set(["E", "W_q", "K", "V", "R", "W_out", "gamma", "beta", "W_k", "W_v"]) | {
        "changed",
        "keys",
        "plain",
    }
    arrays = {name for name, value in example.items() if isinstance(value, np.ndarray)}
    assert arrays - inputs == set(numbers)


def test_the_example_equals_plain_attention(example: dict[str, Any]) -> None:
    """Compute both steps with PyTorch's attention and LayerNorm."""
    t = {n: torch.from_numpy(v).double() for n, v in example.items() if isinstance(v, np.ndarray)}
    # The page's softmax of the first step has no scale.
    written = F.scaled_dot_product_attention(t["E"] @ t["W_q"].T, t["K"], t["V"], scale=1.0)
    image = t["E"] + written @ t["W_out"].T
    keys = F.layer_norm(image, (3,), t["gamma"].diagonal(), t["beta"], eps=0.0)
    read = F.scaled_dot_product_attention(t["R"], keys @ t["W_k"].T, keys @ t["W_v"].T)
    torch.testing.assert_close(t["exact"], read)


def test_the_page_is_short() -> None:
    assert len(PAGE.splitlines()) <= 150

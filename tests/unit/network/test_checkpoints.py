"""A checkpoint is loaded completely and exactly, or refused with a reason."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from samserve.model_types import MODEL_TYPES, is_mappable, sha256_of
from samserve.network.checkpoints import (
    CheckpointError,
    blank_model,
    load_network,
    model_from,
    read,
    serving_form,
)
from tests.support import random_weights
from tests.support.checkpoints import Malice

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def state_dict() -> dict[str, torch.Tensor]:
    """Random vit_t weights, with random attention biases, which the builder leaves at zero."""
    torch.manual_seed(0)
    state = blank_model("vit_t").state_dict()
    return {
        key: torch.randn_like(tensor) if key.endswith("attention_biases") else tensor
        for key, tensor in state.items()
    }


@pytest.fixture(scope="module")
def checkpoint(
    state_dict: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "vit_t.pt"
    torch.save(state_dict, path)
    return path


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> torch.nn.Module:
    model: torch.nn.Module = load_network("vit_t", checkpoint, CPU)
    return model


def test_every_tensor_is_loaded(
    state_dict: dict[str, torch.Tensor], model: torch.nn.Module
) -> None:
    loaded = model.state_dict()

    assert loaded.keys() == state_dict.keys()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in state_dict.items())


def test_the_model_is_for_inference_only(model: torch.nn.Module) -> None:
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["vit_b", "vit_l", "vit_h"])
def test_the_large_types_are_loaded_whole(tmp_path: Path, model_type: str) -> None:
    """The weights are mapped, so all processes that load the file share its memory."""
    path = random_weights.save(model_type, tmp_path)
    try:
        loaded = load_network(model_type, path, CPU).state_dict()
        expected = read(path)
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[key], tensor) for key, tensor in expected.items())
        total = sum(tensor.nbytes for tensor in loaded.values())
        published = MODEL_TYPES[model_type].n_bytes
        assert published - 200_000 < total < published
        assert mapped_bytes(path) >= 2 * total
    finally:
        path.unlink()  # up to 2.5 GB, which pytest would not delete


def mapped_bytes(path: Path) -> int:
    """Return the number of bytes of the file that this process has mapped."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system has no /proc/self/maps")
    ranges = [line.split()[0] for line in maps.read_text().splitlines() if str(path) in line]
    return sum(int(end, 16) - int(start, 16) for start, end in (r.split("-") for r in ranges))


def test_what_was_saved_before_there_were_zips_is_loaded_too(
    state_dict: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "vit_t.pt"
    torch.save(state_dict, path, _use_new_zipfile_serialization=False)
    assert not is_mappable(path)
    loaded = load_network("vit_t", path, CPU).state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in state_dict.items())


def test_only_an_encoder_without_batch_norms_is_rounded(vit_b_weights: Path) -> None:
    rounded = serving_form(read(vit_b_weights / "vit_b.pt"), torch.bfloat16)
    dtypes = {key.split(".")[0]: tensor.dtype for key, tensor in rounded.items()}
    assert dtypes == {
        "image_encoder": torch.bfloat16,
        "prompt_encoder": torch.float32,
        "mask_decoder": torch.float32,
    }
    again = serving_form(rounded, torch.bfloat16)
    assert all(again[key] is tensor for key, tensor in rounded.items())


def test_weights_saved_in_half_are_computed_with_in_full(
    state_dict: dict[str, torch.Tensor],
) -> None:
    half = {k: t.half() if t.is_floating_point() else t for k, t in state_dict.items()}
    model = model_from("vit_t", half, "halves", precision=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_attention_uses_the_loaded_biases(
    state_dict: dict[str, torch.Tensor], model: torch.nn.Module
) -> None:
    attentions = [(name, m) for name, m in model.named_modules() if hasattr(m, "attention_biases")]
    assert len(attentions) == 10
    for name, attention in attentions:
        loaded = state_dict[f"{name}.attention_biases"]
        assert torch.equal(attention.ab, loaded[:, attention.attention_bias_idxs])


def test_the_biases_change_what_attention_gives(
    state_dict: dict[str, torch.Tensor], model: torch.nn.Module
) -> None:
    name = "image_encoder.layers.1.blocks.0.attn"
    without = {**state_dict, f"{name}.attention_biases": torch.zeros(4, 49)}
    biased, unbiased = (
        network.get_submodule(name)
        for network in (model, model_from("vit_t", without, "without biases"))
    )

    tokens = torch.randn(1, 49, 128)
    assert not torch.allclose(biased(tokens), unbiased(tokens))


NORM = "image_encoder.patch_embed.seq.0.bn.running_var"


@pytest.mark.parametrize(
    ("key", "number", "dtype"),
    [
        ("mask_decoder.iou_token.weight", float("nan"), torch.float32),
        ("mask_decoder.iou_token.weight", float("inf"), torch.float16),
        ("image_encoder.neck.0.weight", float("-inf"), torch.bfloat16),
        ("image_encoder.neck.0.weight", 1e300, torch.float64),
        (NORM, float("nan"), torch.float32),
        (NORM, -1.0, torch.float32),
    ],
)
def test_numbers_that_make_every_answer_nan_are_refused(
    state_dict: dict[str, torch.Tensor], key: str, number: float, dtype: torch.dtype
) -> None:
    """Also a number that is too large for the type that the network computes in."""
    changed = state_dict[key].to(dtype).clone()
    changed.view(-1)[-1] = number
    with pytest.raises(CheckpointError, match=f"^weights.pt: 1 tensors have NaN.*: {key}$"):
        model_from("vit_t", {**state_dict, key: changed}, "weights.pt")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_a_truncated_file_is_refused(checkpoint: Path, tmp_path: Path, share: float) -> None:
    content = checkpoint.read_bytes()
    cut = tmp_path / "vit_t.pt"
    cut.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"vit_t\.pt"):
        load_network("vit_t", cut, CPU)


KEY = "mask_decoder.iou_token.weight"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param({KEY: None}, f"1 missing: {KEY}", id="missing"),
        pytest.param({"head.bias": torch.zeros(3)}, "1 unexpected: head.bias", id="extra"),
        pytest.param(
            {KEY: torch.zeros(2, 256)},
            f"1 of the wrong shape: {KEY} (2, 256) instead of (1, 256)",
            id="wrong shape",
        ),
        pytest.param(
            {f"k{i}": torch.zeros(1) for i in range(7)},
            "7 unexpected: k0, k1, k2, k3, k4 and 2 more",
            id="many",
        ),
        pytest.param(
            {KEY: None, "x": torch.zeros(1)}, f"1 missing: {KEY}; 1 unexpected: x", id="both"
        ),
        pytest.param(
            {"epoch": 3}, "1 entries that are not named tensors: epoch", id="not only tensors"
        ),
    ],
)
def test_other_keys_are_refused_by_name(
    state_dict: dict[str, torch.Tensor],
    tmp_path: Path,
    change: dict[str, torch.Tensor | int | None],
    reason: str,
) -> None:
    path = tmp_path / "other.pt"
    changed = {**state_dict, **change}
    torch.save({key: value for key, value in changed.items() if value is not None}, path)

    with pytest.raises(CheckpointError) as refusal:
        load_network("vit_t", path, CPU)

    assert reason in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_another_types_checkpoint_is_refused(checkpoint: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"not a vit_b checkpoint: \d+ missing: .* and \d+ more"
    ):
        load_network("vit_b", checkpoint, CPU)


def test_code_in_a_checkpoint_is_refused_and_does_not_run(tmp_path: Path) -> None:
    path, victim = tmp_path / "malicious.pt", tmp_path / "it ran"
    torch.save({"weight": Malice(victim)}, path)

    with pytest.raises(CheckpointError, match="more than tensors"):
        load_network("vit_t", path, CPU)

    assert not victim.exists()
    torch.load(path, weights_only=False)
    assert victim.exists(), "the file was harmless, so the test proved nothing"


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(None, id="no file"),
        pytest.param(b"", id="empty"),
        pytest.param(b"PK\x03\x04 torn off", id="half a zip"),
        pytest.param(b"<html>404</html>", id="a web page"),
        pytest.param(saved([1, 2]), id="a list"),
    ],
)
def test_an_unreadable_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "vit_t.pt"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(CheckpointError, match=str(path)):
        load_network("vit_t", path, CPU)


def test_an_unknown_type_is_refused(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="no model type 'vit_x'; there are vit_t, vit_b"):
        load_network("vit_x", checkpoint, CPU)


def test_model_types_are_filed_under_their_names() -> None:
    assert list(MODEL_TYPES) == [
        *("vit_t", "vit_b", "vit_l", "vit_h"),
        *("sam2_t", "sam2_s", "sam2_bp", "sam2_l"),
    ]
    assert all(name == model_type.name for name, model_type in MODEL_TYPES.items())
    assert all(t.url.endswith(f"/{t.filename}") for t in MODEL_TYPES.values())


@pytest.mark.parametrize(
    ("content", "digest"),
    [
        pytest.param(
            b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", id="empty"
        ),
        pytest.param(
            b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", id="abc"
        ),
        pytest.param(  # the long example in FIPS 180
            b"a" * 1_000_000,
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
            id="a million letters",
        ),
        pytest.param(
            bytes(3 << 20),
            "bbd05cf6097ac9b1f89ea29d2542c1b7b67ee46848393895f5a9e43fa1f621e5",
            id="several pieces",
        ),
    ],
)
def test_sha256_of(tmp_path: Path, content: bytes, digest: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)

    assert sha256_of(path) == digest

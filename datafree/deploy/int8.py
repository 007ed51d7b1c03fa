"""Static int8 quantisation of ONNX files with ONNX Runtime (QDQ format): weights by channel, activations in
the ranges that calibration images show."""

from __future__ import annotations

import tempfile
from ast import literal_eval
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from datafree.data.image_set import ImageSet, to_float
from datafree.deploy.export import bytes_of, milliseconds, onnx_network, plain_errors
from datafree.errors import UserError

with plain_errors("int8"):
    import onnx
    from onnx import ModelProto, NodeProto, helper, numpy_helper
    from onnxruntime import quantization

WITH_WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # operators that int8 makes smaller
ACTIVATIONS = ("Relu", "Clip")  # that ONNX Runtime merges with the quantisation of their input
SCOPES = "pkg.torch.onnx.name_scopes"  # metadata: the modules of a node, from the outermost, and its own name
BATCH = 32
RANKED_ON = 16  # images for the ranking of layers


class NetworkScore(NamedTuple):
    """A network in the comparison of float and int8."""

    name: str
    agreement: float  # percent of the images that get the float network's class
    accuracy: float | None  # percent of labelled images that are right
    megabytes: float
    milliseconds: float  # per image, in batches of `BATCH`


class QuantizedNetwork(NamedTuple):
    """A network in int8, compared with float and with other calibrations."""

    file: bytes
    scores: list[NetworkScore]
    tested_on: str  # which images the scores are of
    damage: dict[str, float]  # see `damage`
    kept: tuple[str, ...]  # layers left in float


def quantize(
    model: bytes, images: Tensor, keep_float: Collection[str] = (), only: Collection[str] = ()
) -> bytes:
    """An ONNX file of a network in int8.

    Args:
        model: an ONNX file whose input is `image` and whose output is `logits`.
        images: float32 (N, C, H, W) in [0, 1]; the smallest and the largest activations are the ranges.
        keep_float: names of layers, see `layers`, that stay in float.
        only: names of layers to quantise, instead of all.

    Raises:
        UserError: nothing in the network can be quantised.
    """
    parsed = onnx.load_from_string(model)
    nodes = layers(parsed)
    if not nodes:
        raise UserError("int8: the network has no convolution and no linear layer with constant weights")
    chosen = {nodes[name].name for name in only}
    # With the ReLU that follows: alone, a layer would be blamed for rounding what its ReLU cuts off.
    outputs = {output for name in only for output in nodes[name].output}
    chosen |= {n.name for n in parsed.graph.node if n.op_type in ACTIVATIONS and n.input[0] in outputs}
    kept = {nodes[name].name for name in keep_float}
    with tempfile.TemporaryDirectory() as folder, plain_errors("the network cannot be quantised to int8"):
        quantization.quantize_static(
            parsed,
            Path(folder, "int8.onnx"),
            _Batches(images),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_quantize=sorted(chosen) or None,
            nodes_to_exclude=sorted(kept) or None,
        )
        quantised = onnx.load(Path(folder, "int8.onnx"))
    _shield(quantised, kept)
    return quantised.SerializeToString()


def layers(model: ModelProto) -> dict[str, NodeProto]:
    """The layers with constant weights, in the order of the file, by the names of their PyTorch modules."""
    weights = {value.name for value in model.graph.initializer}
    uses = Counter(name for node in model.graph.node for name in node.input)
    found: dict[str, NodeProto] = {}
    for node in model.graph.node:
        constant = [name for name in node.input if name in weights]
        if node.op_type in WITH_WEIGHTS and constant:
            name = constant[0].removesuffix(".weight")
            if name == constant[0] or uses[constant[0]] > 1:  # transposed, or shared by layers
                scopes = {one.key: one.value for one in node.metadata_props}.get(SCOPES, "[]")
                name = [node.name, *filter(None, literal_eval(scopes)[:-1])][-1]
            name = name.removeprefix("student.")  # see `NormalizedNetwork`
            found[node.name if name in found else name] = node
    return found


def _shield(model: ModelProto, kept: Collection[str]) -> None:
    """Keep float layers in float. When ONNX Runtime loads a file, it quantises the weights of a layer between
    a dequantised input and a quantised output itself, with one scale for all channels. A maximum with the
    lowest float, which changes nothing, hides the input from it."""
    produced = {output: node.op_type for node in model.graph.node for output in node.output}
    for place, node in reversed(list(enumerate(model.graph.node))):
        if node.name in kept and produced.get(node.input[0]) == "DequantizeLinear":
            lowest, shielded = f"{node.name}_lowest", f"{node.name}_input"
            value = np.array(np.finfo(np.float32).min, np.float32)
            model.graph.initializer.append(numpy_helper.from_array(value, lowest))
            maximum = helper.make_node("Max", [node.input[0], lowest], [shielded], f"{node.name}_shield")
            node.input[0] = shielded
            model.graph.node.insert(place, maximum)


def damage(model: bytes, images: Tensor) -> dict[str, float]:
    """What each layer costs when it alone is in int8: the mean square error of the logits relative to their
    variance; the costliest first. Shows a progress bar.

    Args:
        model: an ONNX file.
        images: float32 (N, C, H, W) in [0, 1]; the first few are used to calibrate and to compare.
    """
    few = images[:RANKED_ON]
    expected, found = onnx_network(model)(few), {}
    for name in tqdm(layers(onnx.load_from_string(model)), desc="layers", unit="layer"):
        logits = onnx_network(quantize(model, few, only=(name,)))(few)
        found[name] = ((expected - logits).square().mean() / expected.var().clamp_min(1e-12)).item()
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def quantize_and_score(
    model: bytes,
    images: Tensor,
    test: ImageSet,
    tested_on: str,
    labelled: bool,
    keep_float: int = 0,
    real: Tensor | None = None,
    in_pytorch: nn.Module | None = None,
) -> QuantizedNetwork:
    """A network in int8, compared with float and with a calibration on random images.

    Args:
        model: an ONNX file.
        images: uint8 (N, C, H, W) to calibrate on, synthesised.
        test: images to score on; `tested_on` describes them, `labelled` if accuracy can be measured.
        keep_float: number of layers to leave in float: those that cost most.
        real: uint8 real images, for a comparison with a calibration on them.
        in_pytorch: the float network, to be timed as well.
    """
    inputs = to_float(images)
    lost = damage(model, inputs)
    kept = tuple(lost)[:keep_float]
    random = torch.rand(inputs.shape, generator=torch.Generator().manual_seed(0))
    calibrations = {"synthesised": inputs, "random": random}
    if real is not None:
        calibrations["real"] = to_float(real)
    files = {"float": model} | {
        f"int8, calibrated on {len(some)} {kind} images": quantize(model, some, kept)
        for kind, some in calibrations.items()
    }
    networks: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
        name: (onnx_network(file), len(file)) for name, file in files.items()
    }
    if in_pytorch:
        networks["float, PyTorch"] = in_pytorch, bytes_of(in_pytorch)
    batch = to_float(next(test.batches(BATCH))[0])
    scores, reference = [], None
    for name, (network, size) in networks.items():
        with torch.no_grad():
            predicted = torch.cat([network(to_float(some)).argmax(1) for some, _ in test.batches(BATCH)])
        reference = predicted if reference is None else reference  # the float file comes first
        scores.append(
            NetworkScore(
                name,
                100 * (predicted == reference).double().mean().item(),
                100 * (predicted == test.labels).double().mean().item() if labelled else None,
                size / 1e6,
                milliseconds(network, batch) / len(batch),
            )
        )
    return QuantizedNetwork(list(files.values())[1], scores, tested_on, lost, kept)


class _Batches(quantization.CalibrationDataReader):
    """Calibration images in batches."""

    def __init__(self, images: Tensor):
        self._batches = iter(images.split(BATCH))

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch.numpy()}

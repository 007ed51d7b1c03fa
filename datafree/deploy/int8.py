"""Static int8 quantisation of ONNX files with ONNX Runtime: weights by channel, activations by the ranges
that calibration images show (QDQ format)."""

from __future__ import annotations

import tempfile
from ast import literal_eval
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from datafree.data.pixels import to_float
from datafree.deploy.export import milliseconds, without_logs
from datafree.errors import UserError
from datafree.samples import occurrences

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

WITH_WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # operators that int8 pays for
ACTIVATIONS = ("Relu", "Clip")  # that ONNX Runtime takes into the quantisation before them
BATCH = 32
RANKED_ON = 16  # images by which layers are ranked
NAMED = 5  # layers that lose most
NEEDED = "onnx onnxscript onnxruntime"


class Judged(NamedTuple):
    """How a network in a file does."""

    name: str
    agreement: float  # percent of the images to which it gives the float network's class
    accuracy: float | None  # percent of labelled images that are right
    megabytes: float
    milliseconds: float  # for an image, in batches of `BATCH`


def quantize(
    model: bytes, images: Tensor, keep_float: Collection[str] = (), only: Collection[str] | None = None
) -> bytes:
    """An ONNX file of a network in int8.

    Args:
        model: an ONNX file whose input is `image` and whose output is `logits`.
        images: float32 (N, C, H, W) in [0, 1], whose activations give the ranges (their least and greatest).
        keep_float: names of layers, see `layers`, that stay in float.
        only: names of the layers that alone are quantised; None for all.

    Raises:
        UserError: a package is missing, or nothing of the network can be quantised.
    """
    with _needed():
        import onnx
        from onnxruntime import quantization
    parsed = onnx.load_from_string(model)
    nodes = layers(parsed)
    if not nodes:
        raise UserError(
            "int8: the network has no convolution and no matrix with constant weights to be quantised"
        )
    chosen = _with_activations(parsed, nodes, only or ())
    kept = {node.name for name, node in nodes.items() if name in keep_float}
    with tempfile.TemporaryDirectory() as folder, without_logs():
        file = Path(folder, "int8.onnx")
        try:
            quantization.quantize_static(
                parsed,
                file,
                _Batches(images),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                nodes_to_quantize=sorted(chosen) or None,
                nodes_to_exclude=sorted(kept) or None,
            )
        except Exception as error:  # it raises many kinds for operators and shapes that it does not know
            reason = next(iter(str(error).strip().splitlines()), "")
            raise UserError(
                f"the network cannot be quantised to int8: {type(error).__name__}: {reason:.200}"
            ) from error
        quantised = onnx.load(file)
    _shield(quantised, kept)
    return quantised.SerializeToString()


def layers(model: ModelProto) -> dict[str, NodeProto]:
    """The layers with constant weights that can be quantised, in the order of the file, by the names that
    they have in PyTorch."""
    weights = {value.name for value in model.graph.initializer}
    uses = Counter(name for node in model.graph.node for name in node.input)
    found: dict[str, NodeProto] = {}
    for node in model.graph.node:
        constant = [name for name in node.input if name in weights]
        if node.op_type in WITH_WEIGHTS and constant:
            name = constant[0].removesuffix(".weight")
            if name == constant[0] or uses[constant[0]] > 1:  # turned, or shared by layers
                name = _module_of(node)
            name = name.removeprefix("student.")  # the wrapper, see `runs.export.Shipped`
            found[name if name not in found else node.name] = node
    return found


def _module_of(node: NodeProto) -> str:
    """The innermost module that PyTorch's exporter says a node is of, else the node's own name."""
    for one in node.metadata_props:
        if one.key == "pkg.torch.onnx.name_scopes":
            scopes = [name for name in literal_eval(one.value)[:-1] if name]
            return scopes[-1] if scopes else node.name
    return node.name


def _shield(model: ModelProto, kept: Collection[str]) -> None:
    """Have layers that stay in float stay there: of one between a dequantised input and a quantised output
    ONNX Runtime quantises the weights itself when it loads the file, all channels alike. A maximum with the
    lowest number there is, which changes nothing, hides the input from it."""
    from onnx import helper, numpy_helper

    produced = {output: node.op_type for node in model.graph.node for output in node.output}
    for place, node in reversed(list(enumerate(model.graph.node))):
        if node.name in kept and produced.get(node.input[0]) == "DequantizeLinear":
            lowest, shielded = f"{node.name}_lowest", f"{node.name}_input"
            value = np.array(np.finfo(np.float32).min, np.float32)
            model.graph.initializer.append(numpy_helper.from_array(value, lowest))
            maximum = helper.make_node("Max", [node.input[0], lowest], [shielded], f"{node.name}_shield")
            node.input[0] = shielded
            model.graph.node.insert(place, maximum)


def _with_activations(model: ModelProto, nodes: Mapping[str, NodeProto], names: Collection[str]) -> set[str]:
    """The nodes of layers of these names, and the activations behind them, in whose range their output is
    quantised: alone, a convolution would be charged with what its ReLU cuts off."""
    wanted = [node for name, node in nodes.items() if name in names]
    outputs = {output for node in wanted for output in node.output}
    behind = (node for node in model.graph.node if node.op_type in ACTIVATIONS and node.input[0] in outputs)
    return {node.name for node in (*wanted, *behind)}


def count_layers(model: bytes) -> int:
    """How many layers of an ONNX file can be quantised."""
    with _needed():
        import onnx
    return len(layers(onnx.load_from_string(model)))


class OnnxNetwork:
    """A network in an ONNX file, run by ONNX Runtime with as many threads as torch has.

    Args:
        model: the file's content.

    Raises:
        UserError: the package is missing.
    """

    def __init__(self, model: bytes):
        with _needed():
            import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images, float32 (N, C, H, W) in [0, 1]."""
        return torch.from_numpy(self._session.run(None, {"image": images.numpy()})[0])


def damage(
    model: bytes, images: Tensor, on_layer: Callable[[str], Any] = lambda name: None
) -> dict[str, float]:
    """What each layer costs that alone is in int8: the mean square by which the logits differ, relative to
    their variance; the costliest first.

    Args:
        model: an ONNX file.
        images: float32 (N, C, H, W) in [0, 1], of which the first few are calibrated and compared with.
        on_layer: is told of each layer that is done.
    """
    with _needed():
        import onnx
    few = images[:RANKED_ON]
    ours, found = OnnxNetwork(model)(few), {}
    for name in layers(onnx.load_from_string(model)):
        theirs = OnnxNetwork(quantize(model, few, only=(name,)))(few)
        found[name] = ((ours - theirs).square().mean() / ours.var().clamp_min(1e-12)).item()
        on_layer(name)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def table(rows: Sequence[Judged], judged_on: str) -> str:
    """Files that were judged, as a Markdown table."""
    accurate = any(row.accuracy is not None for row in rows)
    head = ["", f"same class as float on {judged_on}", *["accuracy"] * accurate, "MB", "ms an image"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        accuracy = [] if row.accuracy is None else [f"{row.accuracy:.2f} %"]
        lines.append(
            [row.name, f"{row.agreement:.2f} %", *accuracy, f"{row.megabytes:.2f}", f"{row.milliseconds:.2f}"]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


class Quantized(NamedTuple):
    """A network in int8, and what it costs."""

    file: bytes
    rows: list[Judged]  # the float network, this one, and others that were calibrated on other images
    damage: dict[str, float]  # see `damage`
    kept: tuple[str, ...]  # layers that have stayed in float

    def report(self, judged_on: str) -> str:
        """The comparison as Markdown."""
        worst = ", ".join(f"{name} ({100 * lost:.2g} %)" for name, lost in list(self.damage.items())[:NAMED])
        kept = f"Left in float: {', '.join(self.kept)}." if self.kept else "All layers are in int8."
        return (
            f"{table(self.rows, judged_on)}\n\n{kept} Layers that lose most, alone in int8 (mean square "
            f"error of the logits, of their variance): {worst}."
        )


def quantize_and_judge(
    model: bytes,
    images: Tensor,
    judged: Callable[[], Iterable[Tensor]],
    labels: Tensor | None = None,
    keep_float: int = 0,
    real: Tensor | None = None,
    in_pytorch: nn.Module | None = None,
    on_layer: Callable[[str], Any] = lambda name: None,
) -> Quantized:
    """A network in int8, beside one that is calibrated on random images.

    Args:
        model: an ONNX file.
        images: uint8 (N, C, H, W) to calibrate on, synthesised.
        judged: makes batches of the images to judge on, uint8 (n, C, H, W).
        labels: int64 of these, where they are real.
        keep_float: number of layers to leave in float, those that lose most.
        real: real images to calibrate on as well, for comparison.
        in_pytorch: the float network, to be timed as well.
        on_layer: see `damage`.
    """
    inputs = to_float(images)
    lost = damage(model, inputs, on_layer)
    kept = tuple(lost)[:keep_float]
    noise = torch.rand(inputs.shape, generator=torch.Generator().manual_seed(0))
    ours = quantize(model, inputs, kept)
    files = {
        "float": model,
        f"int8, calibrated on {len(images)} synthesised images": ours,
        f"int8, calibrated on {len(images)} random images": quantize(model, noise, kept),
    }
    if real is not None:
        files[f"int8, calibrated on {len(real)} real images"] = quantize(model, to_float(real), kept)
    networks: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
        name: (OnnxNetwork(file), len(file)) for name, file in files.items()
    }
    if in_pytorch:
        size = sum(value.numel() * value.element_size() for value in in_pytorch.state_dict().values())
        networks["float, PyTorch"] = in_pytorch, size
    batch = to_float(next(iter(judged())))
    rows, reference = [], None
    for name, (network, size) in networks.items():
        with torch.no_grad():
            chosen = torch.cat([network(to_float(some)).argmax(1) for some in judged()])
        reference = chosen if reference is None else reference  # the float file comes first
        rows.append(
            Judged(
                name,
                100 * (chosen == reference).double().mean().item(),
                None if labels is None else 100 * (chosen == labels).double().mean().item(),
                size / 1e6,
                milliseconds(network, batch) / len(batch),
            )
        )
    return Quantized(ours, rows, lost, kept)


def balanced(labels: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Indices of `count` samples, or all where there are fewer, as even over the classes as they come: in
    turn one of each class at random.

    Args:
        labels: int64 (N,).
        count: how many are wanted.
        rng: on the CPU.
    """
    order = torch.randperm(len(labels), generator=rng)
    # Within a turn at random, so that a last, incomplete one favours no class.
    return order[occurrences(labels[order]).argsort(stable=True)][:count]


class _Batches:
    """Images as ONNX Runtime asks for them; it is a `CalibrationDataReader` by its methods."""

    def __init__(self, images: Tensor):
        self._parts = iter(images.split(BATCH))

    def get_next(self) -> dict[str, Any] | None:
        part = next(self._parts, None)
        return None if part is None else {"image": part.numpy()}


@contextmanager
def _needed() -> Iterator[None]:
    """A package that is missing becomes one line."""
    try:
        yield
    except ImportError as error:
        raise UserError(f"int8 needs packages that are missing: pip install {NEEDED}") from error

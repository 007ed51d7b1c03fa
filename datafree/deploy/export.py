"""Export a student for other programs: images in [0, 1] in, logits out."""

from __future__ import annotations

import copy
import io
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from statistics import median
from timeit import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from datafree.data.image_set import to_float
from datafree.errors import UserError
from datafree.networks.student_file import EXPORT_CONFIG, SOURCE, USE
from datafree.results.read import FinishedRun
from datafree.results.stored import NoSamples, read_samples
from datafree.runs.files import EXPORTED, STUDENT, STUDENT_BEST
from datafree.torch_utils import checkpoint

TOLERANCE = 1e-3  # largest difference of a logit, relative to the largest logit
IMAGES = 256  # of each sort, to compare on


class NormalizedNetwork(nn.Module):
    """A network that normalises its images: (N, C, H, W) in [0, 1] to logits (N, classes).

    `student` is the network's name in exported files, whichever network it is.
    """

    mean: Tensor  # (1, C, 1, 1), as `std`
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.student = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return self.student((image - self.mean) / self.std)


class Comparison(NamedTuple):
    """An exported student compared with PyTorch's."""

    difference: float  # the largest of a logit, relative to the largest logit
    agreement: float  # percent of the images that get the same class


def comparison_images(run: FinishedRun) -> dict[str, Tensor]:
    """Images (N, C, H, W) in [0, 1]: "random" ones, and the newest "synthesised" ones if the run has any."""
    size, channels = run.config["img_size"], len(run.config["mean"])
    try:
        samples = read_samples(run)
        stored = {"synthesised": to_float(samples.images(samples.kept.nonzero().squeeze(1)[-IMAGES:]))}
    except NoSamples:
        stored = {}
    rng = torch.Generator().manual_seed(0)
    return {"random": torch.rand(IMAGES, channels, size, size, generator=rng), **stored}


def export(
    network: NormalizedNetwork,
    example: Tensor,
    kind: str,
    metadata: Mapping[str, Any] | None = None,
    opset: int | None = None,
) -> bytes:
    """The content of a file with the network, for any batch size.

    Args:
        network: in eval mode, on the CPU.
        example: images (2 or more, C, H, W).
        kind: "onnx", "torch_export" or "safetensors" (weights alone).
        metadata: plain data to store with safetensors.
        opset: of ONNX; None for PyTorch's default.

    Raises:
        UserError: a package is missing, or the network cannot be exported.
    """
    batch = {0: torch.export.Dim("batch", min=1)}
    # Written to memory: the formats' own writers accept no path that is not UTF-8.
    with plain_errors(f"the network cannot be exported as {kind}"):
        if kind == "safetensors":
            from safetensors.torch import save

            state = {key: value.contiguous().clone() for key, value in network.state_dict().items()}
            return save(state, {key: json.dumps(value) for key, value in (metadata or {}).items()})
        if kind == "torch_export":
            buffer = io.BytesIO()
            torch.export.save(torch.export.export(network, (example,), dynamic_shapes=(batch,)), buffer)
            return buffer.getvalue()
        program = torch.onnx.export(
            network,
            (example,),
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=(batch,),
            dynamo=True,
            opset_version=opset,
            verbose=False,
        )
        assert program is not None  # for want of a file
        model = program.model_proto
        if opset and model.opset_import[0].version != opset:
            raise ValueError(f"PyTorch does not write opset {opset}: leave out --opset, or choose another")
        return model.SerializeToString()


def onnx_network(model: bytes) -> Callable[[Tensor], Tensor]:
    """A network in an ONNX file as a function from images to logits, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"image": images.numpy()})[0])


def load(content: bytes, kind: str, network: NormalizedNetwork) -> Callable[[Tensor], Tensor]:
    """An exported network, as a function from images to logits; `network` is the one exported, whose
    architecture files of weights alone need."""
    if kind == "safetensors":
        from safetensors import torch as safetensors

        loaded = copy.deepcopy(network)
        loaded.load_state_dict(safetensors.load(content))
        return loaded
    if kind == "torch_export":
        return torch.export.load(io.BytesIO(content)).module()
    return onnx_network(content)


@torch.no_grad()
def compare(network: nn.Module, exported: Callable[[Tensor], Tensor], images: Tensor) -> Comparison:
    """How the logits of an exported network differ from PyTorch's, on images (N, C, H, W) in [0, 1].

    Raises:
        UserError: they differ by more than rounding.
    """
    expected, logits = network(images), exported(images)
    difference = ((expected - logits).abs().max() / expected.abs().max().clamp_min(1e-6)).item()
    agreement = 100 * (expected.argmax(1) == logits.argmax(1)).float().mean().item()
    if not difference <= TOLERANCE:  # NaN too
        raise UserError(
            f"the exported student's logits differ by {difference:.2g} from PyTorch's: try another --format"
        )
    return Comparison(difference, agreement)


@torch.no_grad()
def milliseconds(network: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """Median time of a forward pass, after three to warm up."""
    return 1e3 * median(repeat(lambda: network(images), number=1, repeat=23)[3:])


def bytes_of(network: nn.Module) -> int:
    """The size of a network's weights."""
    return sum(value.numel() * value.element_size() for value in network.state_dict().values())


def files_to_load(run: FinishedRun, best: bool = False) -> dict[str, bytes]:
    """What `datafree.load_student` needs beside `student.safetensors`, by file name: how to rebuild the
    student, and the source of one that the user defined in a file."""
    content = checkpoint.read(run.path / (STUDENT_BEST if best else STUDENT))
    config = EXPORTED | {name: value for name, value in content.items() if name in USE}
    files = {EXPORT_CONFIG: json.dumps(config, indent=2).encode()}
    if content.get("arch_source"):
        files[SOURCE] = content["arch_source"].encode()
    return files


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files by name; none appears before all are complete."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for name, content in files.items():
            Path(place, name).write_bytes(content)
        for name in files:
            Path(place, name).replace(folder / name)


@contextmanager
def plain_errors(what: str) -> Iterator[None]:
    """Silence a library, and report whatever it raises in one line: these libraries log pages and raise many
    kinds.

    Raises:
        UserError: `what`, and why.
    """
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    except ImportError as error:
        raise UserError(f"{what}: a package is missing: pip install {error.name}") from error
    except Exception as error:
        cause = error.__cause__ or error
        reason = next(iter(str(cause).strip().splitlines()), "")
        raise UserError(f"{what}: {type(cause).__name__}: {reason:.200}") from error
    finally:
        logging.disable(before)

"""A trained student as a file that other programs run: images in [0, 1] in, logits out."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from datafree.data.pixels import to_float
from datafree.errors import UserError
from datafree.networks.names import NetworkName
from datafree.networks.student_file import EXPORT_CONFIG, SOURCE, USE
from datafree.results.read import FinishedRun
from datafree.results.stored import NoSamples, read_samples, student_of
from datafree.runs.files import EXPORTED, STUDENT, STUDENT_BEST
from datafree.torch_utils import checkpoint

TOLERANCE = 1e-3  # of the largest logit, between PyTorch and an exported student
# Of each kind, on which both are compared: so many, or fewer where they would take more bytes than this.
IMAGES, MOST_BYTES = 256, 256 << 20


class Shipped(nn.Module):
    """A student with its normalisation: images (N, C, H, W) in [0, 1] to logits (N, classes)."""

    mean: Tensor  # (1, C, 1, 1), as `std`
    std: Tensor

    def __init__(self, student: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.student = student
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return self.student((image - self.mean) / self.std)


class Comparison(NamedTuple):
    """How an exported student differs from PyTorch's."""

    difference: float  # the largest of a logit, relative to the largest logit
    same: float  # share of the images on whose class both agree


def shipped_student(run: FinishedRun, source: NetworkName | None = None, best: bool = False) -> Shipped:
    """The student of a finished run, in eval mode, on the CPU.

    Args:
        run: a finished run.
        source: see `networks.portable.load_student`.
        best: see `student_of`.

    Raises:
        UserError: something is missing, or the student cannot be rebuilt.
    """
    student = student_of(run, torch.device("cpu"), source, best)
    return Shipped(student, tuple(run.config["mean"]), tuple(run.config["std"])).eval()


def images_to_compare_on(run: FinishedRun) -> dict[str, Tensor]:
    """Images (N, C, H, W) in [0, 1], by what they are: random ones, and the newest synthesised ones of
    a run that has left some."""
    size, channels = run.config["img_size"], len(run.config["mean"])
    count = max(2, min(IMAGES, MOST_BYTES // (4 * channels * size**2)))
    try:
        samples = read_samples(run)
        made = {"synthesised": to_float(samples.images(samples.kept.nonzero().squeeze(1)[-count:]))}
    except NoSamples:
        made = {}
    rng = torch.Generator().manual_seed(0)
    return {"random": torch.rand(count, channels, size, size, generator=rng), **made}


def export(
    shipped: Shipped,
    example: Tensor,
    file: Path,
    kind: str,
    metadata: dict[str, Any],
    opset: int | None = None,
) -> None:
    """Write a student for any batch size.

    Args:
        shipped: in eval mode, on the CPU.
        example: images (2 or more, C, H, W).
        file: to write.
        kind: "onnx", "torch_export" or "safetensors".
        metadata: plain data to go along, where the format has a place for it.
        opset: of ONNX; None for PyTorch's own choice.

    Raises:
        UserError: a package is missing, or the student cannot be exported so.
    """
    # Written and read here, since the formats' own writers take no path that is not UTF-8.
    batch = {0: torch.export.Dim("batch", min=1)}
    try:
        if kind == "safetensors":
            from safetensors import torch as safetensors

            state = {key: value.contiguous().clone() for key, value in shipped.state_dict().items()}
            file.write_bytes(
                safetensors.save(state, {key: json.dumps(value) for key, value in metadata.items()})
            )
        elif kind == "torch_export":
            buffer = io.BytesIO()
            torch.export.save(torch.export.export(shipped, (example,), dynamic_shapes=(batch,)), buffer)
            file.write_bytes(buffer.getvalue())
        else:
            import onnx
            import onnxruntime  # noqa: F401 (with which the file is checked)

            with redirect_stderr(io.StringIO()), without_logs():  # pages of it, before what it raises
                torch.onnx.export(
                    shipped,
                    (example,),
                    file,
                    input_names=["image"],
                    output_names=["logits"],
                    dynamic_shapes=(batch,),
                    dynamo=True,
                    external_data=False,
                    opset_version=opset,
                    verbose=False,
                )
            if opset and onnx.load(file).opset_import[0].version != opset:
                raise ValueError(f"PyTorch does not write opset {opset}: leave out --opset, or give another")
    except ImportError as error:
        needed = {"onnx": "onnx onnxscript onnxruntime"}.get(kind, kind)
        raise UserError(f"--format {kind} needs packages that are missing: pip install {needed}") from error
    except Exception as error:  # the exporters raise many kinds for what they do not support
        cause = error.__cause__ or error
        reason = next(iter(str(cause).strip().splitlines()), "")
        kind_of = type(cause).__name__
        raise UserError(f"the network cannot be exported as {kind}: {kind_of}: {reason}") from error


def loadable(run: FinishedRun, best: bool = False) -> tuple[dict[str, bytes], str]:
    """What goes beside `student.safetensors`, so that `networks.portable.load_student` reads the folder:
    files by name, and what the card says of them. A network of the user's own has its file among them."""
    content = checkpoint.read(run.path / (STUDENT_BEST if best else STUDENT))
    told = EXPORTED | {name: value for name, value in content.items() if name in USE}
    files, text = {}, "\n`datafree.load_student(folder)` reads the student from this folder.\n"
    if content.get("arch_source"):
        files[SOURCE] = content["arch_source"].encode()
        factory = NetworkName.parse(content["arch"]).target
        call = f'datafree.load_student(folder, source="folder/{SOURCE}:{factory}")'
        text = (
            f"\n`{call}` reads the student from this folder. `{SOURCE}` is the user's own file, as it was in "
            "training: read it before you run it.\n"
        )
    files[EXPORT_CONFIG] = json.dumps(told, indent=2).encode()
    return files, text


@contextmanager
def without_logs() -> Iterator[None]:
    """Without what libraries log, up to errors."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def require_folder(folder: Path) -> None:
    """Make a folder to write to.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error}): name another --output") from error


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files, by name, whole or not at all.

    Raises:
        UserError: the disk does not take them.
    """
    temporary = {name: folder / f".{name}" for name in files}
    try:
        for name, content in files.items():
            temporary[name].write_bytes(content)
        for name in files:
            temporary[name].replace(folder / name)
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error}): name another --output") from error
    finally:
        for file in temporary.values():
            with suppress(OSError):
                file.unlink(missing_ok=True)


def load(file: Path, kind: str, fresh: Callable[[], Shipped]) -> Callable[[Tensor], Tensor]:
    """An exported student, as a function from images to logits.

    Args:
        file, kind: as given to `export`.
        fresh: makes a student whose weights are replaced, for formats that hold weights alone.
    """
    if kind == "safetensors":
        from safetensors import torch as safetensors

        shipped = fresh()
        shipped.load_state_dict(safetensors.load(file.read_bytes()))
        return shipped.eval()
    if kind == "torch_export":
        return torch.export.load(io.BytesIO(file.read_bytes())).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"image": images.numpy()})[0])


@torch.no_grad()
def compare(shipped: Shipped, exported: Callable[[Tensor], Tensor], images: Tensor) -> Comparison:
    """How the logits of an exported student differ from PyTorch's, on images (N, C, H, W) in [0, 1].

    Raises:
        UserError: the exported student computes something else.
    """
    ours, theirs = shipped(images), exported(images)
    difference = ((ours - theirs).abs().max() / ours.abs().max().clamp_min(1e-6)).item()
    same = (ours.argmax(1) == theirs.argmax(1)).float().mean().item()
    if not difference <= TOLERANCE:  # which NaN is not either
        raise UserError(
            f"the exported student's logits differ by {difference:.2g} from PyTorch's: try another --format"
        )
    return Comparison(difference, same)


@torch.no_grad()
def milliseconds(network: Callable[[Tensor], Tensor], images: Tensor, times: int = 20) -> float:
    """Median time of a forward pass, after some that are not counted."""
    for _ in range(3):
        network(images)
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        network(images)
        seconds.append(time.perf_counter() - start)
    return 1e3 * median(seconds)

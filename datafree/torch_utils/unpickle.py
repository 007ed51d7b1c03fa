"""PyTorch's checkpoint files, read as data: nothing in a file can name code that is run, and nothing is made
that is larger than the file.

`torch.load(weights_only=True)` keeps the first promise alone: it calls what is on a list, and a storage class
on it makes gigabytes of a number. Here storages are no functions, and the unpickler is Python's own, whose
memory is a dictionary (the one in C takes any four bytes for the length of a list)."""

from __future__ import annotations

import argparse
import io
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO, ClassVar, NamedTuple

import torch
from torch import Tensor

MAGIC = 0x1950A86A20F9469CFC6C  # at the beginning of files from before PyTorch 1.6
LEGACY_VERSION = 1001
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
NUMBERS = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "b1": "?"}  # NumPy's kinds, and struct's


class HoldsObjects(Exception):
    """A file asks for something that is not data."""


class _Storage(NamedTuple):
    """A storage class: no function, so that no file can call it."""

    dtype: torch.dtype


# What a file gives to a function, or takes for a key, is looked at first: references make a few hundred bytes
# into lists whose text, hash or copy has no end.
SCALARS = (str, int, float, bool, bytes, type(None))
LONGEST_SHAPE = 64


def _plain(*values: Any) -> None:
    """See that values are scalars, or short and flat tuples of such."""
    for value in values:
        parts = value if isinstance(value, (list, tuple)) and len(value) <= LONGEST_SHAPE else (value,)
        if not all(isinstance(part, SCALARS) for part in parts):
            raise HoldsObjects(type(value).__name__)


class _Kind:
    """Stands for NumPy's dtype where a checkpoint has a NumPy number in it: an accuracy, usually."""

    def __init__(self, code: str, *_: Any):
        _plain(code)
        self.format = NUMBERS[code]

    def __setstate__(self, state: tuple) -> None:
        _plain(state[1])
        self.format = {"<": "<", ">": ">", "|": "="}[state[1]] + self.format[-1]


def _number(kind: _Kind, data: bytes) -> Any:
    """Stands for NumPy's constructor of numbers."""
    _plain(data)
    return struct.unpack(kind.format, data)[0]


def _encode(text: str, encoding: str) -> bytes:
    """Stands for `codecs.encode`, by which bytes are written."""
    _plain(text, encoding)
    if encoding != "latin1":
        raise HoldsObjects("_codecs.encode")
    return text.encode("latin1")


def _text(text: str) -> str:
    _plain(text)
    return str(text)


def _device(*words: Any) -> str:
    _plain(words)
    return ":".join(map(str, words))


def _size(sizes: Any = ()) -> tuple:
    _plain(sizes)
    return tuple(sizes)


def _tensor(
    storage: Tensor,
    offset: int,
    size: tuple,
    stride: tuple,
    _grad: Any = None,
    _hooks: Any = None,
    view: Any = None,
) -> Tensor:
    """`view` tells of one that is conjugate or negative only when it is read."""
    _plain(offset, size, stride)
    values = storage.as_strided(size, stride, offset)
    if view and view.get("conj"):
        values = values.conj()
    return torch._neg_view(values) if view and view.get("neg") else values


def _tensor_of_bytes(
    storage: Tensor,
    offset: int,
    size: tuple,
    stride: tuple,
    grad: Any,
    hooks: Any,
    dtype: torch.dtype,
    view: Any = None,
) -> Tensor:
    return _tensor(storage.view(dtype), offset, size, stride, grad, hooks, view)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _with_attributes(function: Callable[..., Tensor], _kind: Any, arguments: tuple, _state: Any) -> Tensor:
    if function not in (_tensor, _tensor_of_bytes):
        raise HoldsObjects("a tensor of another kind")
    return function(*arguments)


# What files may name, and what stands for it here.
KNOWN: dict[tuple[str, str], Any] = {
    ("argparse", "Namespace"): argparse.Namespace,
    ("_codecs", "encode"): _encode,
    ("torch", "Size"): _size,
    ("torch", "Tensor"): None,
    ("torch", "device"): _device,
    ("torch.torch_version", "TorchVersion"): _text,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_of_bytes,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _with_attributes,
    ("torch.nn.parameter", "Parameter"): None,
    ("torch.storage", "UntypedStorage"): _Storage(torch.uint8),
    **{("torch", name): _Storage(dtype) for name, dtype in STORAGES.items()},
    **{("torch", name): dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)},
    ("numpy", "dtype"): _Kind,
    **{(f"numpy.{core}.multiarray", "scalar"): _number for core in ("core", "_core")},
    **{("numpy.dtypes", f"{name}DType"): _Kind for name in ("Float64", "Float32", "Int64")},
}
# Containers that are made of others.
MADE = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "Counter"): Counter,  # in the state of a schedule with milestones
    **{(module, "set"): set for module in ("builtins", "__builtin__")},
}
_Base: Any = pickle._Unpickler


def _looking(load: Callable[[Any], None], hashed: slice) -> Callable[[Any], None]:
    """An opcode's function, after a look at this part of the stack."""

    def look_and_load(unpickler: Any) -> None:
        _plain(*unpickler.stack[hashed])
        load(unpickler)

    return look_and_load


class _Unpickler(_Base):
    """Of data alone.

    Args:
        load_storage: is given a storage's dtype, its key, how many values it has, and which of another's.
        most: values that containers may be made of, in all.
    """

    # A length of eight bytes makes as much memory before a byte of it is read.
    dispatch: ClassVar = {code: load for code, load in _Base.dispatch.items() if code != pickle.BYTEARRAY8[0]}

    def __init__(
        self, file: BinaryIO, load_storage: Callable[[torch.dtype, str, int, Any], Tensor], most: int
    ):
        super().__init__(file, encoding="utf-8")
        self.load_storage, self.most = load_storage, most

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in MADE:
            return partial(self._made, MADE[module, name])
        if (module, name) not in KNOWN:
            raise HoldsObjects(f"{module}.{name}")
        return KNOWN[module, name]

    def _made(self, kind: Callable[..., Any], values: Any = ()) -> Any:
        """A container of the values of another."""
        self.most -= len(values)
        if self.most < 0:
            raise ValueError("it would unpack to more than it is")
        pairs = kind is OrderedDict and not isinstance(values, dict)
        _plain(*((pair[0] for pair in values) if pairs else values))
        return kind(values)

    def persistent_load(self, pid: Any) -> Tensor:
        kind, storage, key, _location, count, *view = pid
        _plain(kind, key, count)
        if kind != "storage" or not isinstance(storage, _Storage):
            raise HoldsObjects("no storage")
        return self.load_storage(storage.dtype, key, count, view[0] if view else None)

    def load_build(self) -> None:
        if not isinstance(self.stack[-2], (OrderedDict, argparse.Namespace, _Kind)):
            raise HoldsObjects(type(self.stack[-2]).__name__)
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build

    def load_newobj(self) -> None:
        """As a call: what stands for a class need not be one."""
        arguments = self.stack.pop()
        self.stack[-1] = self.stack[-1](*arguments)

    dispatch[pickle.NEWOBJ[0]] = load_newobj

    # What is hashed is looked at first.
    for _opcode, _load, _hashed in (
        (pickle.SETITEM, _Base.load_setitem, slice(-2, -1)),
        (pickle.SETITEMS, _Base.load_setitems, slice(None, None, 2)),
        (pickle.DICT, _Base.load_dict, slice(None, None, 2)),
        (pickle.ADDITEMS, _Base.load_additems, slice(None)),
        (pickle.FROZENSET, _Base.load_frozenset, slice(None)),
    ):
        dispatch[_opcode[0]] = _looking(_load, _hashed)


def load(file: BinaryIO, size: int) -> Any:
    """What a checkpoint file of `size` bytes holds, tensors on the CPU.

    Raises:
        HoldsObjects: it is more than tensors and plain containers.
        Exception: of many kinds, it is no such file.
    """
    if not zipfile.is_zipfile(file):
        file.seek(0)
        return _load_legacy(file, size)
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        # PyTorch stores its archives without compression, so that one never unpacks to more than it is.
        if sum(entry.file_size for entry in entries.values()) > size:
            raise ValueError("it would unpack to more than it is")
        (pickled,) = (name for name in entries if name.rpartition("/")[2] == "data.pkl")
        folder = pickled.removesuffix("data.pkl")
        order = f"{folder}byteorder"
        if order in entries and archive.read(order) != b"little":
            raise ValueError("it is of a machine with another byte order")
        read: dict[str, bytearray] = {}

        def load_storage(dtype: torch.dtype, key: str, _count: int, _view: Any) -> Tensor:
            if key not in read:
                read[key] = bytearray(archive.read(f"{folder}data/{key}"))
            return _values(read[key], dtype)

        return _Unpickler(io.BytesIO(archive.read(pickled)), load_storage, size).load()


def _load_legacy(file: BinaryIO, size: int) -> Any:
    """A file from before PyTorch 1.6: pickles, and behind them the storages that they name."""
    stored: dict[str, tuple[bytearray, int]] = {}  # and bytes of a value

    def load_storage(dtype: torch.dtype, key: str, count: int, view: Any) -> Tensor:
        if key not in stored:
            if sum(len(data) for data, _ in stored.values()) + count * dtype.itemsize > size:
                raise ValueError("it would unpack to more than it is")
            stored[key] = bytearray(count * dtype.itemsize), dtype.itemsize
        values = _values(stored[key][0], dtype)
        if view is not None:
            _, offset, length = view
            values = values[offset : offset + length]
        return values

    def part() -> Any:
        return _Unpickler(file, load_storage, size).load()

    if part() != MAGIC or part() != LEGACY_VERSION:
        raise ValueError("it is no checkpoint")
    part()  # of the machine that wrote it: all are little-endian
    content = part()
    for key in part():
        (count,) = struct.unpack("<q", file.read(8))
        data, item_size = stored[key]
        if count * item_size != len(data) or file.readinto(data) != len(data):  # type: ignore[attr-defined]
            raise ValueError("it is cut short")
    return content


def _values(data: bytearray, dtype: torch.dtype) -> Tensor:
    """The memory as a tensor (n,)."""
    return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)

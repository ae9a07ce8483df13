"""Files that torch.save wrote, read without torch and without running what is in them.

A pickle is a program that may call any function by name. Here a name is one of the few that build tensors and dicts, or of a
package whose objects are kept as values that do nothing (`Inert`), or it is refused. Tensors are mapped, not copied.
"""

import collections
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from alibi_jax.convert.stored import Stored, check_weights_file, mapped
from alibi_jax.errors import WeightsError, shown

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # with these a file of torch before 1.6 begins
TYPES = {  # torch's names to numpy's; a class of storage is called by the first
    "Half float16 half": "float16",
    "BFloat16 bfloat16": "bfloat16",
    "Float float32 float": "float32",
    "Double float64 double": "float64",
    "Bool bool": "bool",
    "Byte uint8": "uint8",
    "Char int8": "int8",
    "Short int16 short": "int16",
    "Int int32 int": "int32",
    "Long int64 long": "int64",
}
DTYPES = {("torch", name): dtype for names, dtype in TYPES.items() for name in names.split()[1:]}
STORAGES = {
    (module, f"{names.split()[0]}Storage"): dtype
    for names, dtype in TYPES.items()
    for module in ("torch", "torch.cuda")
}
INERT_PACKAGES = {"argparse", "enum", "fairseq", "omegaconf", "pathlib", "typing"}
INERT = {
    *(f"builtins.{name}" for name in ("bool", "bytes", "dict", "float", "int", "list", "object", "str", "tuple")),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    "numpy.dtype",
    "numpy.ndarray",
    "_codecs.encode",  # bytes, in the protocol of torch
    "operator.getitem",  # typing's List[int]
    "torch.device",
}
BROKEN = (  # by pickle, for bytes that are no pickle or not the whole of one
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
)


class Inert:
    """A value of a class, or the result of a call, that was not run: its name, what it was called with, its fields."""

    __slots__ = ("args", "state")
    called = ""

    def __new__(cls, *args: Any, **_: Any) -> "Inert":
        """Returns the value; no code of the class that it stands for runs."""
        value = super().__new__(cls)
        value.args, value.state = args, {}
        return value

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Place(NamedTuple):
    """Where the numbers of a storage stand in its file."""

    offset: int
    num_bytes: int


class Storage(NamedTuple):
    """A stretch of numbers, which tensors are views of; `places` is filled when all of the file is known.

    A tuple, as pickles can set attributes of other values.
    """

    key: str
    dtype: str
    count: int
    places: dict[str, Place]


class Tensor(NamedTuple):
    """A view of a storage: offset and strides are counted in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def stored(self, path: Path, name: str) -> Stored:
        """Returns it as a tensor in a file; WeightsError where it reaches beyond its storage, or that beyond the file."""
        dtype = jnp.dtype(self.storage.dtype)
        place = self.storage.places.get(self.storage.key, Place(0, 0))
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        needed = 0 if 0 in self.shape else (1 + last) * dtype.itemsize
        there = min(place.num_bytes, path.stat().st_size - place.offset, self.storage.count * dtype.itemsize)
        if needed > there:
            raise WeightsError(
                f"{path}: {name}: got a tensor that ends at byte {needed:,} of its storage, expected at most {there:,}: the "
                "file is damaged. Download it again."
            )

        def read() -> np.ndarray:
            numbers = mapped(path, place.offset, dtype, needed // dtype.itemsize)[self.offset :]
            strides = [stride * dtype.itemsize for stride in self.strides]
            return np.lib.stride_tricks.as_strided(numbers, self.shape, strides, writeable=False)

        return Stored(path, dtype.name, self.shape, read)


def _rebuild_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any = False, hooks: Any = None, bits: Any = None
) -> Tensor:
    """Stands for torch's function of this name: returns the view it describes."""
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or not all(type(number) is int and number >= 0 for number in numbers) or bits:
        raise pickle.UnpicklingError(f"a tensor of offset, sizes and strides {shown(numbers)}")
    if len(shape) != len(strides):
        raise pickle.UnpicklingError(f"a tensor of {len(shape)} sizes and {len(strides)} strides")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_tensor_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any, dtype: Any, bits: Any = None
) -> Tensor:
    """Stands for torch's function of this name: the storage counts bytes, and the type is the tensor's."""
    size = jnp.dtype(dtype).itemsize
    typed = storage._replace(dtype=dtype, count=storage.count // size)
    return _rebuild_tensor(typed, offset, shape, strides, requires_grad, hooks, bits)


CALLS: dict[str, Callable] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch.Size": tuple,
    "collections.OrderedDict": collections.OrderedDict,
    "collections.defaultdict": lambda *_: {},
    "builtins.set": set,
}


class _Unpickler(pickle.Unpickler):
    """Builds what a pickle holds from CALLS and inert values alone."""

    def __init__(self, file: IO[bytes], path: Path, places: dict[str, Place]) -> None:
        super().__init__(file, encoding="utf-8")
        self.path, self.places = path, places
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Returns what stands for a name; WeightsError for a name that is not known, which is neither imported nor called."""
        module = "builtins" if module == "__builtin__" else module  # as Python 2 called it, and protocol 2 does
        called = f"{module}.{name}"
        if (module, name) in STORAGES or (module, name) in DTYPES:
            return STORAGES.get((module, name)) or DTYPES[module, name]
        if called == "torch.storage.UntypedStorage":
            return "uint8"
        if called in CALLS:
            return CALLS[called]
        if called in INERT or module.partition(".")[0] in INERT_PACKAGES:
            return type(name, (Inert,), {"__slots__": (), "called": called})
        raise WeightsError(
            f"{self.path}: got a pickle that calls {shown(called)}, expected tensors, dicts, lists, numbers and strings. "
            "Nothing was run. If the file is to be trusted, save its state_dict() alone, or as safetensors."
        )

    def persistent_load(self, pid: Any) -> Storage:
        """Returns the storage that a tensor names."""
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or not isinstance(dtype, str) or type(count) is not int or count < 0 or any(view):
            raise pickle.UnpicklingError(f"a storage {shown(pid)}")
        return self.storages.setdefault(str(key), Storage(str(key), dtype, count, self.places))


def load_pickled(path: Path) -> Any:
    """Returns the object that torch.save wrote into a file, its tensors as `Tensor`, foreign objects as `Inert`.

    WeightsError for a file that is damaged, or calls anything else.
    """
    check_weights_file(path)
    with path.open("rb") as file:
        try:
            is_zip = file.peek(2)[:2] == b"PK"
            return _load_zip(file, path) if is_zip else _load_stream(file, path)
        except WeightsError:
            raise
        except BROKEN as error:
            reason = str(error) or type(error).__name__
            raise WeightsError(
                f"{path}: got a file that cannot be read ({reason}), expected one whole file of torch.save. Download it again."
            ) from None


def _load_zip(file: IO[bytes], path: Path) -> Any:
    """Returns the object in an archive: NAME/data.pkl, and a file NAME/data/KEY for each storage."""
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        top = next((name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")), None)
        if top is None:
            raise pickle.UnpicklingError("an archive without data.pkl, such as one of TorchScript")
        order = archive.read(f"{top}byteorder") if f"{top}byteorder" in entries else b"little"
        if order != b"little":
            raise pickle.UnpicklingError(f"numbers in {order[:20]!r} order")
        begin = f"{top}data/"
        places = {
            name.removeprefix(begin): _place(file, entry) for name, entry in entries.items() if name.startswith(begin)
        }
        with archive.open(f"{top}data.pkl") as pickled:
            return _Unpickler(pickled, path, places).load()


def _place(file: IO[bytes], entry: zipfile.ZipInfo) -> Place:
    """Returns where the bytes of an archive's entry stand: behind its own header, whose length the directory does not say."""
    if entry.compress_type != zipfile.ZIP_STORED:
        raise pickle.UnpicklingError(f"{entry.filename}, which is compressed")
    file.seek(entry.header_offset + 26)  # the lengths of the name and of the extra field, 2 bytes each
    name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    return Place(entry.header_offset + 30 + name + extra, entry.file_size)


def _load_stream(file: IO[bytes], path: Path) -> Any:
    """Returns the object of a file before torch 1.6: five pickles, then the storages, each after its count in 8 bytes."""
    places: dict[str, Place] = {}
    start = [_Unpickler(file, path, places).load() for _ in range(3)]
    if start[:2] != [MAGIC, PROTOCOL] or not start[2].get("little_endian"):
        raise pickle.UnpicklingError("another beginning than torch.save's")
    unpickler = _Unpickler(file, path, places)
    value, keys = unpickler.load(), _Unpickler(file, path, places).load()
    for key in map(str, keys):
        storage = unpickler.storages[key]
        count = int.from_bytes(file.read(8), "little")
        if count != storage.count:
            raise pickle.UnpicklingError(f"a storage of {count:,} numbers that should have {storage.count:,}")
        places[key] = Place(file.tell(), count * jnp.dtype(storage.dtype).itemsize)
        file.seek(places[key].num_bytes, os.SEEK_CUR)
    return value


def tensors_of(value: Any, path: Path) -> dict[str, Stored]:
    """Returns the tensors of a state dict that `load_pickled` returned from a file; WeightsError for anything else."""
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise WeightsError(
            f"{path}: got {_kind(value)}, expected a dict from names to tensors. Save the model's state_dict()."
        )
    others = [name for name, tensor in value.items() if not isinstance(tensor, Tensor)]
    if others:
        name = others[0]
        raise WeightsError(
            f"{path}: {name}: got {_kind(value[name])}, expected a tensor. Save the model's state_dict()."
        )
    return {name: tensor.stored(path, name) for name, tensor in value.items()}


def _kind(value: Any) -> str:
    return value.called if isinstance(value, Inert) else type(value).__name__


def plain(value: Any) -> Any:
    """Returns what a config in a pickle says, as dicts, lists, numbers and strings.

    A Namespace or another object is the dict of its fields, omegaconf's nodes their content, a member of an enum its value, a
    path its text, and a class or a call its name. Tensors stay.
    """
    if isinstance(value, type) and issubclass(value, Inert):
        return value.called
    if isinstance(value, Inert):
        return _plain_inert(value)
    if isinstance(value, dict):
        return {plain(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set) and not isinstance(value, Tensor):
        return [plain(each) for each in value]
    return value


def _plain_inert(value: Inert) -> Any:
    state, args = value.state, value.args
    if isinstance(state, dict):
        # of omegaconf's containers and leaves; their parents would lead in a circle
        for content in ("_content", "_val"):
            if content in state:
                return plain(state[content])
        if state or not args:
            return plain(state)
    if value.called.startswith("pathlib."):
        return str(PurePosixPath(*map(str, args)))
    if value.called.endswith(".scalar"):
        return _number(*args)
    return plain(args[0]) if len(args) == 1 else value.called


def _number(dtype: Inert, data: Any) -> Any:
    """Returns the number of a scalar of numpy."""
    numbers = data.args[0].encode("latin1") if isinstance(data, Inert) else data
    return np.frombuffer(numbers, np.dtype(str(dtype.args[0])))[0].item()

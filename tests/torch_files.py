"""Files as torch.save writes them, without torch: what the tests of the import read. Arrays are tensors.

Written from what the two formats are: a zip archive with the pickle and a file for each storage (since torch 1.6), and before
that one stream of pickles with the numbers behind them. `Object` is an instance of a class that need not be installed.
"""

import collections
import io
import pickle
import struct
import zipfile
from typing import NamedTuple

import numpy as np

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {"float32": "Float", "float16": "Half", "bfloat16": "BFloat16", "int64": "Long"}


class Name(NamedTuple):
    """A class or function by its name."""

    module: str
    name: str

    def __call__(self):
        """Only so that pickle takes it for one."""


class Object(NamedTuple):
    """An instance with these attributes, made by its class without arguments."""

    kind: Name
    state: object


class View(NamedTuple):
    """A tensor that is a view of a flat array, which several may share: offset and strides in numbers."""

    array: np.ndarray
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Storage(NamedTuple):
    """The numbers of a tensor."""

    key: str
    array: np.ndarray


class Pickler(pickle._Pickler):
    """Pickles arrays as torch pickles tensors, and keeps their numbers in `storages`."""

    dispatch = pickle._Pickler.dispatch.copy()

    def __init__(self, file, legacy):
        super().__init__(file, protocol=2)
        self.legacy, self.storages = legacy, {}

    def persistent_id(self, value):
        """What stands for a storage; its class is named as Name."""
        if not isinstance(value, Storage):
            return None
        kind = Name("torch", f"{STORAGES[value.array.dtype.name]}Storage")
        return ("storage", kind, value.key, "cpu", value.array.size, *([None] if self.legacy else []))

    def save_name(self, value):
        """The opcode of a global, without importing it."""
        self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())
        self.memoize(value)

    def save_object(self, value):
        """As copyreg pickles instances: object made by its class, then its state."""
        self.save(value.kind)
        self.save(())
        self.write(pickle.NEWOBJ)
        self.memoize(value)
        self.save(value.state)
        self.write(pickle.BUILD)

    def save_array(self, value):
        """As a view of all of it."""
        array = np.asarray(value, order="C")
        strides = tuple(stride // array.itemsize for stride in array.strides)
        self.save_view(View(array.reshape(-1), 0, value.shape, strides), value)

    def save_view(self, view, value=None):
        """A call of _rebuild_tensor_v2 with a storage, offset, sizes, strides, requires_grad, hooks."""
        keys = {id(storage.array): key for key, storage in self.storages.items()}
        key = keys.get(id(view.array), str(len(keys)))
        storage = self.storages.setdefault(key, Storage(key, view.array))
        arguments = storage, view.offset, view.shape, view.strides, False, collections.OrderedDict()
        self.save_reduce(Name("torch._utils", "_rebuild_tensor_v2"), arguments, obj=view if value is None else value)

    dispatch[Name], dispatch[Object], dispatch[np.ndarray], dispatch[View] = (
        save_name,
        save_object,
        save_array,
        save_view,
    )


def save_zip(path, value):
    """Writes the format since torch 1.6."""
    file = io.BytesIO()
    pickler = Pickler(file, legacy=False)
    pickler.dump(value)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", file.getvalue())
        archive.writestr("archive/byteorder", "little")
        for key, storage in pickler.storages.items():
            archive.writestr(f"archive/data/{key}", storage.array.tobytes())
        archive.writestr("archive/version", "3\n")


def save_legacy(path, value):
    """Writes the format before torch 1.6."""
    sizes = {"short": 2, "int": 4, "long": 4}
    with path.open("wb") as file:
        for begin in (MAGIC, PROTOCOL, {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": sizes}):
            pickle.dump(begin, file, protocol=2)
        pickler = Pickler(file, legacy=True)
        pickler.dump(value)
        pickle.dump(sorted(pickler.storages), file, protocol=2)
        for key in sorted(pickler.storages):
            array = pickler.storages[key].array
            file.write(struct.pack("<q", array.size) + array.tobytes())

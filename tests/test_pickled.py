"""Files of torch.save: tensors as they were saved, whatever they share, and nothing in a file is ever run."""

import argparse
import io
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from alibi_jax.convert.pickled import Inert, load_pickled, plain, tensors_of
from alibi_jax.errors import WeightsError
from torch_files import MAGIC, PROTOCOL, Name, Object, View, save_legacy, save_zip

SAVES = pytest.mark.parametrize("save", [save_zip, save_legacy], ids=["zip", "before torch 1.6"])
FLAT = np.arange(24, dtype=np.float32)


def read(path):
    """The arrays of a file by name."""
    return {name: tensor.read() for name, tensor in tensors_of(load_pickled(path), path).items()}


@SAVES
def test_tensors_of_every_type_are_as_they_were_saved(tmp_path, save):
    dtypes = "float16", "bfloat16", "float32", "int64"
    saved = {dtype: np.arange(12).reshape(3, 4).astype(jnp.dtype(dtype)) for dtype in dtypes}
    saved |= {"scalar": np.asarray(7.0, np.float32), "none": np.zeros((0, 3), np.float32)}
    save(tmp_path / "file", saved)
    loaded = read(tmp_path / "file")
    assert list(loaded) == list(saved)
    for name, array in saved.items():
        assert loaded[name].dtype == array.dtype and not loaded[name].flags.writeable
        np.testing.assert_array_equal(loaded[name], array)


@SAVES
def test_views_share_one_storage(tmp_path, save):
    views = {
        "rows": View(FLAT, 0, (4, 6), (6, 1)),
        "columns": View(FLAT, 0, (6, 4), (1, 6)),
        "every third": View(FLAT, 1, (8,), (3,)),
        "one row again": View(FLAT, 6, (3, 6), (0, 1)),
        "other": View(FLAT[:5].copy(), 1, (4,), (1,)),
    }
    save(tmp_path / "file", views)
    loaded = read(tmp_path / "file")
    np.testing.assert_array_equal(loaded["rows"], FLAT.reshape(4, 6))
    np.testing.assert_array_equal(loaded["columns"], FLAT.reshape(4, 6).T)
    np.testing.assert_array_equal(loaded["every third"], FLAT[1::3])
    np.testing.assert_array_equal(loaded["one row again"], np.stack([FLAT[6:12]] * 3))
    np.testing.assert_array_equal(loaded["other"], FLAT[1:5])


BEYOND = {
    "offset": View(FLAT, 20, (5,), (1,)),
    "size": View(FLAT, 0, (5, 6), (6, 1)),
    "stride": View(FLAT, 0, (2,), (24,)),
    "huge": View(FLAT, 2**62, (1,), (1,)),
}


@SAVES
@pytest.mark.parametrize("case", BEYOND)
def test_views_beyond_their_storage_are_refused_by_name(tmp_path, save, case):
    save(tmp_path / "file", {"good": FLAT, "bad": BEYOND[case]})
    with pytest.raises(
        WeightsError, match=r"file: bad: got a tensor that ends at byte [\d,]+ of its storage, .* most 96"
    ):
        read(tmp_path / "file")


SENSELESS = {
    "offset": View(FLAT, -1, (2,), (1,)),
    "stride": View(FLAT, 0, (2,), (-1,)),
    "strides": View(FLAT, 0, (2,), (1, 1)),
}


@pytest.mark.parametrize("case", SENSELESS)
def test_views_of_no_sense_are_refused(tmp_path, case):
    save_zip(tmp_path / "file", {"bad": SENSELESS[case]})
    with pytest.raises(WeightsError, match=r"got a file that cannot be read \(a tensor of"):
        read(tmp_path / "file")


@SAVES
def test_a_file_that_is_cut_anywhere_is_refused(tmp_path, save):
    save(tmp_path / "whole", {"a": FLAT, "b": FLAT.copy()})
    content = (tmp_path / "whole").read_bytes()
    for length in range(0, len(content), 17):
        (tmp_path / "cut").write_bytes(content[:length])
        with pytest.raises(WeightsError, match="Download it again"):
            read(tmp_path / "cut")


def call(module, name, *arguments):
    """An object whose pickle calls a function by its name."""
    return type("Call", (), {"__reduce__": lambda self: (Name(module, name), arguments)})()


def touch(target):
    return f"touch {target}"


ATTACKS = {
    "os.system": lambda target: call("os", "system", touch(target)),
    "posix.system": lambda target: call("posix", "system", touch(target)),
    "builtins.eval": lambda target: call("builtins", "eval", f"open({str(target)!r}, 'w')"),
    "builtins.exec": lambda target: call("__builtin__", "exec", f"open({str(target)!r}, 'w')"),
    "builtins.open": lambda target: call("builtins", "open", str(target), "w"),
    "builtins.getattr": lambda target: call("builtins", "getattr", Name("os", "path"), "system"),
    "builtins.__import__": lambda target: call("builtins", "__import__", "os"),
    "importlib.import_module": lambda target: call("importlib", "import_module", "os"),
    "torch.load": lambda target: call("torch", "load", str(target)),
    "torch.storage._load_from_bytes": lambda target: call("torch.storage", "_load_from_bytes", b"x"),
    "subprocess.Popen": lambda target: call("subprocess", "Popen", touch(target)),
    "os.system.__call__": lambda target: call("os", "system.__call__", touch(target)),
    "operator.attrgetter": lambda target: call("operator", "attrgetter", "system"),
    "transformers.models.bloom.BloomModel": lambda target: Object(Name("transformers.models.bloom", "BloomModel"), {}),
}


@SAVES
@pytest.mark.parametrize("name", ATTACKS)
def test_a_pickle_that_calls_anything_else_is_refused_by_name_and_nothing_runs(tmp_path, save, name):
    target = tmp_path / "written"
    save(tmp_path / "file", {"deep": [{"down": ATTACKS[name](target)}]})
    with pytest.raises(WeightsError, match=f"got a pickle that calls '{name}', expected tensors.* Nothing was run"):
        load_pickled(tmp_path / "file")
    assert not target.exists()


def raw_zip(path, pickled, compression=zipfile.ZIP_STORED, name="archive/data.pkl"):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(name, pickled)
        archive.writestr("archive/data/0", bytes(96))


def test_names_of_known_packages_are_never_looked_up(tmp_path):
    """Not even where a name would lead elsewhere: pathlib has `os`, typing has `sys`. No call is made, no attribute is set."""
    target = tmp_path / "written"
    names = ("pathlib", "os.system"), ("typing", "sys.modules"), ("enum", "bltns.eval"), ("operator", "getitem")
    calls = [pickle.PROTO + b"\x04" + pickle.EMPTY_LIST]
    state = pickle.EMPTY_DICT + b"\x8c\x0c__setstate__" + pickle.NONE + pickle.SETITEM
    for module, name in names:
        file = io.BytesIO()
        for word in (module, name):
            pickle._Pickler(file, 4).save(word)
        file.write(pickle.STACK_GLOBAL)
        pickle._Pickler(file, 4).save((touch(target),))
        calls.append(file.getvalue() + pickle.REDUCE + state + pickle.BUILD + pickle.APPEND)
    raw_zip(tmp_path / "file", b"".join(calls) + pickle.STOP)
    values = load_pickled(tmp_path / "file")
    assert [value.called for value in values] == [".".join(name) for name in names]
    assert all(isinstance(value, Inert) and value.args == (touch(target),) for value in values) and not target.exists()


def test_an_extension_of_copyreg_is_refused(tmp_path):
    raw_zip(tmp_path / "file", pickle.PROTO + b"\x02" + pickle.EXT1 + b"\x01" + pickle.STOP)
    with pytest.raises(WeightsError, match=r"cannot be read \(unregistered extension code 1\)"):
        load_pickled(tmp_path / "file")


OTHERS = {
    "text": lambda path: path.write_text("hello"),
    "pickle of a dict": lambda path: path.write_bytes(pickle.dumps({"a": 1})),
    "three numbers": lambda path: path.write_bytes(
        b"".join(map(pickle.dumps, (MAGIC, PROTOCOL, {"little_endian": False})))
    ),
    "compressed": lambda path: raw_zip(path, b"x", zipfile.ZIP_DEFLATED),
    "zip of other files": lambda path: raw_zip(path, b"x", name="archive/code.py"),
    "zip of an empty pickle": lambda path: raw_zip(path, b""),
    "unknown storage": lambda path: raw_zip(
        path, pickle.PROTO + b"\x02" + b"X\x01\0\0\0a" + pickle.BINPERSID + pickle.STOP
    ),
    "deep": lambda path: raw_zip(path, pickle.EMPTY_LIST * 10**5 + pickle.STOP),
    "pointer of Git LFS": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_files_are_refused(tmp_path, case):
    OTHERS[case](tmp_path / "file")
    with pytest.raises(WeightsError, match=f"{tmp_path / 'file'}: got .*, expected"):
        tensors_of(load_pickled(tmp_path / "file"), tmp_path / "file")


def test_a_dict_of_other_things_is_no_state_dict(tmp_path):
    values = {"list": [FLAT], "dict": {1: FLAT}, "int": {"step": 3}, "argparse.Namespace": argparse.Namespace()}
    for kind, value in values.items():
        save_zip(tmp_path / "file", value)
        with pytest.raises(WeightsError, match=f"got {kind}, expected a"):
            read(tmp_path / "file")


def test_a_config_is_plain_dicts_and_lists(tmp_path):
    types = {"ref_type": Name("typing", "Any"), "key_type": Name("builtins", "str")}
    metadata = Object(Name("omegaconf.base", "ContainerMetadata"), types)
    parent = Object(
        Name("omegaconf.dictconfig", "DictConfig"), {"_metadata": metadata, "_parent": None, "_content": {}}
    )

    def node(kind, value):
        return Object(Name("omegaconf.nodes", kind), {"_metadata": metadata, "_parent": parent, "_val": value})

    parent.state["_content"] |= {"lr": node("FloatNode", 0.5), "name": node("AnyNode", None)}
    config = {
        "args": argparse.Namespace(arch="lm", layers=[1, 2], nested=argparse.Namespace(a=True)),
        "omega": parent,
        "loss": call("numpy.core.multiarray", "scalar", call("numpy", "dtype", "f8", 0, 1), np.float64(1.25).tobytes()),
        "choice": call("fairseq.dataclass.constants", "Choice", "none"),
        "path": call("pathlib", "PosixPath", "/", "data", "bin"),
        "kind": Name("fairseq.models", "TransformerLM"),
        "set": {3},
        "tuple": (1, "two", None),
    }
    save_zip(tmp_path / "file", config)
    assert plain(load_pickled(tmp_path / "file")) == {
        "args": {"arch": "lm", "layers": [1, 2], "nested": {"a": True}},
        "omega": {"lr": 0.5, "name": None},
        "loss": 1.25,
        "choice": "none",
        "path": "/data/bin",
        "kind": "fairseq.models.TransformerLM",
        "set": [3],
        "tuple": [1, "two", None],
    }

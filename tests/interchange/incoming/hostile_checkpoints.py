"""Checkpoints that are broken or malicious, made on the spot.

`PAYLOADS` run code where they are plainly unpickled: each leaves a sentinel file. `OTHERS` claim, lie or are something
else. Each is made by a function of an empty folder (and the sentinel) that returns what is to be read.
"""

import _codecs
import argparse
import json
import os
import pickle
import struct
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

WEIGHTS = {"norm.weight": torch.ones(4), "norm.bias": torch.zeros(4)}


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def touch(sentinel: Path) -> Call:
    return Call(os.system, f"touch '{sentinel}'")


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def in_hooks(folder: Path, sentinel: Path) -> Path:
    hooks = OrderedDict([(0, touch(sentinel))])
    hooked = Call(torch._utils._rebuild_parameter, torch.ones(4), False, hooks)
    return saved(folder / "a.pth", {"model": {**WEIGHTS, "hooked": hooked}})


def namespace_subclass(folder: Path, sentinel: Path) -> Path:
    """Its module leaves the sentinel when it is imported; the tests put the folder where imports look."""
    module = f"sneaky_{folder.name}"
    written(folder / f"{module}.py", f"import argparse, pathlib\npathlib.Path({str(sentinel)!r}).touch()\n"
            "class Sneaky(argparse.Namespace): pass\n")  # fmt: skip
    sneaky = type("Sneaky", (argparse.Namespace,), {"__module__": module})
    sys.modules[module] = type(sys)(module)  # pickle looks whether the class is where it says
    sys.modules[module].Sneaky = sneaky
    try:
        return saved(folder / "a.pth", {"model": WEIGHTS, "args": sneaky(lr=1)})
    finally:
        del sys.modules[module]


def remote_code(folder: Path, sentinel: Path) -> Path:
    config = {"auto_map": {"AutoModel": "modeling_evil.Evil"}, "trust_remote_code": True, "model_type": "vit_mae"}
    written(folder / "config.json", json.dumps(config))
    written(folder / "modeling_evil.py", f"import pathlib\npathlib.Path({str(sentinel)!r}).touch()\n")
    saved(folder / "pytorch_model.bin", {**WEIGHTS, "extra": touch(sentinel)})
    return folder


def in_object_array(sentinel: Path) -> np.ndarray:
    return np.array([touch(sentinel)], dtype=object)


def npy(folder: Path, sentinel: Path) -> Path:
    np.save(folder / "a.npy", in_object_array(sentinel), allow_pickle=True)
    return folder / "a.npy"


PAYLOADS: dict[str, Callable[[Path, Path], Path]] = {
    "alone": lambda f, s: saved(f / "a.pth", touch(s)),
    "args": lambda f, s: saved(f / "a.pth", {"model": WEIGHTS, "args": touch(s), "epoch": 799}),
    "hooks": in_hooks,
    "optimizer": lambda f, s: saved(f / "a.pth", {"model": WEIGHTS, "optimizer": {"state": {0: touch(s)}}}),
    "in-namespace": lambda f, s: saved(f / "a.pth", {"model": WEIGHTS, "args": argparse.Namespace(lr=touch(s))}),
    "namespace-subclass": namespace_subclass,
    "eval": lambda f, s: saved(f / "a.pth", {"model": WEIGHTS, "x": Call(eval, f"open({str(s)!r}, 'w')")}),
    "protocol-4": lambda f, s: saved(f / "a.pth", {"model": WEIGHTS, "x": touch(s)}, pickle_protocol=4),
    "legacy": lambda f, s: saved(f / "a.pth", {"model": WEIGHTS, "x": touch(s)}, _use_new_zipfile_serialization=False),
    "plain-pickle": lambda f, s: written(f / "a.pth", pickle.dumps({"model": touch(s)})),
    "named-safetensors": lambda f, s: saved(f / "model.safetensors", {**WEIGHTS, "x": touch(s)}),
    "pickle-named-safetensors": lambda f, s: written(f / "model.safetensors", pickle.dumps(touch(s))),
    "numpy-in-pth": lambda f, s: saved(f / "a.pth", {"model": WEIGHTS, "best": in_object_array(s)}),
    "npy": npy,
    "remote-code": remote_code,
}


def safetensors_of(folder: Path, header: Any, body: bytes = bytes(64), length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return written(folder / "a.safetensors", struct.pack("<Q", len(text) if length is None else length) + text + body)


def entry(start: int, end: int, shape: list[int]) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


def torchscript(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), str(folder / "a.pt"))
    return folder / "a.pt"


def repacked(folder: Path, change: Callable[[zipfile.ZipFile, str, bytes], None]) -> Path:
    """A torch archive, each member of which is written by `change`."""
    with zipfile.ZipFile(saved(folder / "good.pth", WEIGHTS)) as good, zipfile.ZipFile(folder / "a.pth", "w") as bad:
        for name in good.namelist():
            change(bad, name, good.read(name))
    return folder / "a.pth"


def bomb(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    content = content + bytes(50_000_000) if name.endswith("data.pkl") else content
    archive.writestr(name, content, zipfile.ZIP_DEFLATED if name.endswith("data.pkl") else zipfile.ZIP_STORED)


def second_pickle(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(name, content)
    if name.endswith("data.pkl"):
        archive.writestr(name.upper().replace("GOOD/", "good/"), content)


def over_long(folder: Path) -> Path:
    """A directory whose only data member claims a terabyte."""
    content = bytearray(repacked(folder, lambda archive, name, data: archive.writestr(name, data)).read_bytes())
    place = content.index(b"data/0", content.index(b"PK\x01\x02")) - 5 - 46
    content[place + 24 : place + 28] = struct.pack("<I", 0xFFFFFF00)
    return written(folder / "a.pth", bytes(content))


def strided(folder: Path, **options: Any) -> Path:
    return saved(folder / "a.pth", {"model": {"huge": torch.ones(1).expand(10**6, 10**6)}}, **options)


def claiming(folder: Path, **options: Any) -> Path:
    """A tensor of 10^12 numbers in a storage of four."""
    storage = torch.ones(4).untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
    huge = Call(torch._utils._rebuild_tensor_v2, typed, 0, (10**12,), (1,), False, OrderedDict())
    return saved(folder / "a.pth", {"model": {"huge": huge}}, **options)


def hex_of_hex(folder: Path) -> Path:
    """A few bytes that weights_only would double forty times."""
    value: Any = b"ab"
    for _ in range(40):
        value = Call(_codecs.encode, value, "hex")
    return saved(folder / "a.pth", {"model": WEIGHTS, "x": value})


def nest(folder: Path) -> Path:
    """10^9 entries in a few kilobytes: a dict of a thousand times the same dict of a thousand times the same dict."""
    leaf = {str(i): i for i in range(1000)}
    middle = {str(i): leaf for i in range(1000)}
    return saved(folder / "a.pth", {str(i): middle for i in range(1000)})


def sharded(folder: Path, shard: str, places: dict[str, str] | None = None) -> Path:
    outside = folder / "outside.safetensors"
    inside = folder / "model"
    inside.mkdir()
    save_file(WEIGHTS, outside)
    (inside / "link.safetensors").symlink_to(outside)
    index = {"weight_map": places or {name: shard.format(folder=folder) for name in WEIGHTS}}
    written(inside / "model.safetensors.index.json", json.dumps(index))
    return inside


def beside(folder: Path, config: bytes | str) -> Path:
    save_file(WEIGHTS, folder / "model.safetensors")
    written(folder / "config.json", config)
    return folder


def fifo(folder: Path, name: str = "a.pth") -> Path:
    os.mkfifo(folder / name)
    return folder / name


def cut(folder: Path, share: float, **options: Any) -> Path:
    path = saved(folder / "a.pth", {"model": {"w": torch.ones(1000)}}, **options)
    content = path.read_bytes()
    return written(path, content[: int(len(content) * share)])


OLD = {"_use_new_zipfile_serialization": False}
PAIR = {"a": entry(0, 32, [8]), "b": entry(16, 64, [12])}

# By name: what makes it, and a word of the message.
OTHERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "torchscript": (torchscript, "TorchScript"),
    "traversal": (lambda f: sharded(f, "../outside.safetensors"), "only files of its own folder"),
    "absolute": (lambda f: sharded(f, "{folder}/outside.safetensors"), "only files of its own folder"),
    "link-out": (lambda f: sharded(f, "link.safetensors"), "a link out of its folder"),
    "shards-10001": (lambda f: sharded(f, "", {str(i): f"{i}.safetensors" for i in range(10_001)}), "10,001 shards"),
    "index-of-numbers": (lambda f: sharded(f, "", {"a": 3}), "is no index"),  # type: ignore[dict-item]
    "zip-bomb": (lambda f: repacked(f, bomb), "compressed members"),
    "zip-over-long": (over_long, "claim more than"),
    "zip-two-pickles": (lambda f: repacked(f, second_pickle), "more than one data.pkl"),
    "zip-prefix": (
        lambda f: written(f / "a.pth", b"PK\x03\x04" + saved(f / "b.pth", WEIGHTS).read_bytes()),
        "before or behind",
    ),
    "zip-comment": (lambda f: written(f / "a.pth", saved(f / "b.pth", WEIGHTS).read_bytes() + b"more"), "followed by"),
    "zip-other": (lambda f: _zip_of(f / "a.pth", "word/document.xml"), "no checkpoint of torch.save"),
    "npz": (lambda f: _zip_of(f / "a.pth", "x.npy"), ".npz"),
    "header-length": (lambda f: safetensors_of(f, {}, length=2**63), "its header has 9,223,372,036,854,775,808"),
    "header-200-mb": (lambda f: _sparse(safetensors_of(f, {}, length=200_000_000)), "its header has 200,000,000"),
    "terabyte": (lambda f: safetensors_of(f, {"a": entry(0, 4 * 10**12, [10**12])}), "as safetensors"),
    "overlapping": (lambda f: safetensors_of(f, PAIR), "as safetensors"),
    "header-no-json": (lambda f: safetensors_of(f, b"{" + b"[" * 5000), "as safetensors"),
    "no-tensor": (lambda f: safetensors_of(f, {}, b""), "without a tensor"),
    "strided": (strided, "claims more"),
    "strided-legacy": (lambda f: strided(f, **OLD), "claims more"),
    "claiming": (claiming, "cannot be read as weights"),
    "claiming-legacy": (lambda f: claiming(f, **OLD), "a"),
    "hex-of-hex": (hex_of_hex, "holds _codecs.encode"),
    "nest": (nest, "250,000 entries"),
    "sparse": (lambda f: saved(f / "a.pth", {"w": torch.eye(4).to_sparse()}), "a sparse tensor"),
    "meta": (lambda f: saved(f / "a.pth", {"w": torch.ones(4, device="meta")}), "a tensor without values"),
    "complex": (lambda f: saved(f / "a.pth", {"w": torch.ones(4, dtype=torch.complex64)}), "complex"),
    "nothing": (lambda f: saved(f / "a.pth", {"epoch": 3, "model": {}}), "holds no weights"),
    "a-list": (lambda f: saved(f / "a.pth", [torch.ones(4)]), "a list and no state dict"),
    "whole-model": (lambda f: saved(f / "a.pth", torch.nn.Linear(2, 2)), "torch.nn.modules.linear.Linear"),
    "deep-json": (lambda f: beside(f, '{"a":' * 100_000), "RecursionError"),
    "large-json": (lambda f: beside(f, b" " * (16 * 2**20 + 1)), "16 MB"),
    "json-list": (lambda f: beside(f, "[1]"), "no JSON object"),
    "fifo": (fifo, "no regular file"),
    "fifo-config": (lambda f: fifo(beside(f, "{}"), "preprocessor_config.json").parent, "no regular file"),
    "device": (lambda f: Path("/dev/zero"), "no regular file"),
    "empty": (lambda f: written(f / "a.pth", b""), "is empty"),
    "no-folder-model": (lambda f: f, "holds no model"),
    "missing": (lambda f: f / "not\nthere.pth", "does not exist"),
    "text": (lambda f: written(f / "a.pth", "weights: see elsewhere\n"), "is text"),
    "page": (lambda f: written(f / "a.pth", "<!DOCTYPE html><p>Log in"), "a web page"),
    "lfs": (lambda f: written(f / "a.safetensors", "version https://git-lfs.github.com/spec/v1\noid"), "git lfs pull"),
    "hdf5": (lambda f: written(f / "a.pth", b"\x89HDF\r\n\x1a\n" + bytes(99)), "HDF5"),
    "gguf": (lambda f: written(f / "a.pth", b"GGUF" + bytes(99)), "GGUF"),
    "onnx": (lambda f: written(f / "a.pth", b"\x08\x0a\x12\x07pytorch" + bytes(99)), "ONNX"),
    "tar": (lambda f: written(f / "a.pth", bytes(257) + b"ustar\x0000" + bytes(999)), "a tar archive"),
    "gzip": (lambda f: written(f / "a.pth", b"\x1f\x8b" + bytes(99)), "gzip"),
    "noise": (lambda f: written(f / "a.pth", bytes(range(255, 0, -1)) * 9), "nothing that is known"),
    "cut-zip": (lambda f: cut(f, 0.5), "cut off"),
    "cut-legacy": (lambda f: cut(f, 0.95, **OLD), "cannot be read as weights"),
    "cut-legacy-early": (lambda f: cut(f, 0.02, **OLD), "cannot be followed"),
}


def _zip_of(path: Path, name: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"x")
    return path


def _sparse(path: Path) -> Path:
    os.truncate(path, 300_000_000)  # of holes: it takes no room on the disk
    return path

"""The content of a pickled checkpoint, sorted: state dicts by key, plain settings, and what is left alone."""

import argparse
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openmae.interchange.incoming.kinds import refuse

Groups = dict[str, dict[str, Tensor]]

MAX_TENSORS = 100_000
MAX_ENTRIES = 250_000  # a pickle of a kilobyte can be a dict of dicts with billions of entries
MAX_DEPTH = 2  # at which a state dict lies: {"checkpoint": {"model": …}}
MAX_SETTINGS, MAX_SETTINGS_DEPTH, MAX_LIST, MAX_STRING = 2_000, 4, 100, 1_000
# Prefixes of the names of other training states.
OTHER_STATES = ("optim", "scaler", "grad_scaler", "loss_scaler", "amp", "scheduler", "lr_sched", "callbacks", "rng")
NOT_JSON = object()  # stands for a value that JSON does not have


def extract_state_dicts(path: Path, content: Any) -> tuple[Groups, dict[str, Any]]:
    """The state dicts in a checkpoint, and its other entries as JSON values.

    `left_alone` among the latter names the entries of the optimiser and those that are no plain values.

    Raises:
        RequestError: it holds no state dict.
    """
    if not isinstance(content, dict):
        refuse(path, f"holds a {type(content).__name__} and no state dict: save model.state_dict()")
    groups: Groups = {}
    left: list[str] = []
    num_entries = 0

    def search(prefix: str, mapping: dict[Any, Any], depth: int) -> None:
        nonlocal num_entries
        num_entries += len(mapping)
        if num_entries > MAX_ENTRIES:
            refuse(path, f"is a nest of more than {MAX_ENTRIES:,} entries, as no checkpoint is")
        tensors: dict[str, Tensor] = {}
        for key, value in dict.items(mapping):  # not mapping.items: a pickle can give an OrderedDict another `items`
            where = f"{prefix}.{_name(key)}" if prefix else _name(key)
            if isinstance(value, Tensor) and isinstance(key, str):
                tensors[key] = Tensor.detach(value)  # a plain tensor, without hooks or attributes from the file
            elif isinstance(value, dict | list) and _name(key).lower().startswith(OTHER_STATES):
                left.append(where)
            elif isinstance(value, dict) and depth < MAX_DEPTH:
                search(where, value, depth + 1)
        if tensors:
            groups[prefix] = tensors
            left.extend(
                f"{prefix}.{_name(key)}"
                for key, value in dict.items(mapping)
                if prefix and not isinstance(value, Tensor)
            )

    search("", content, 0)
    extras: dict[str, Any] = {}
    if not any(tensor.dim() for tensor in groups.get("", {}).values()):  # scalars: a best accuracy or the like
        numbers = groups.pop("", {})
        check_tensors(path, {"": numbers})
        extras |= {name: _scalar(number.item()) for name, number in numbers.items()}
    if not groups:
        refuse(path, "holds no weights: no dict of tensors stands in it, at its top or two names below")
    handled = {name.split(".")[0] for name in groups} | {name.split(".")[0] for name in left}
    num_settings = 0
    for key, value in dict.items(content):
        if isinstance(value, Tensor) or _name(key) in handled:
            continue
        setting = _setting(value, MAX_SETTINGS - num_settings)
        num_settings += len(setting) + 1 if isinstance(setting, dict) else 1
        if setting is NOT_JSON or num_settings > MAX_SETTINGS:
            left.append(_name(key))
        else:
            extras[_name(key)] = setting
    return groups, extras | ({"left_alone": left[:MAX_SETTINGS]} if left else {})


def check_tensors(path: Path, groups: Groups) -> None:
    """Refuse tensors that are no weights, or that claim more than their file can hold."""
    size = path.stat().st_size
    count = claimed = 0
    for group in groups.values():
        count += len(group)
        for name, tensor in group.items():
            shown_name = ascii(name)[1:-1][:100]
            if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.dtype.is_complex:
                kind = "sparse" if tensor.layout != torch.strided else "quantised, complex or without values"
                refuse(path, f"holds {shown_name}, which is {kind}: save it as a plain tensor of real numbers")
            num_bytes = math.prod(tensor.shape) * tensor.dtype.itemsize  # Python's integers do not overflow
            claimed += num_bytes
            # Ten times the file: some names may share their values, a hundred thousand do not.
            if num_bytes > size or claimed > 10 * size:
                shape = " × ".join(map(str, tensor.shape[:8]))
                refuse(path, f"has {size:,} bytes and claims more: {shown_name} is {shape}; it is damaged or hostile")
    if count > MAX_TENSORS:
        refuse(path, f"holds {count:,} tensors: more than {MAX_TENSORS:,} are of no model")


def _setting(value: Any, limit: int) -> Any:
    """A value as JSON has it: a scalar, a list of them, or a dict with dotted names; else NOT_JSON."""
    if isinstance(value, argparse.Namespace | dict):
        found = dict(islice(_flat("", value, 0), max(0, limit)))
        return {name: inner for name, inner in found.items() if inner is not NOT_JSON}
    if isinstance(value, list | tuple | set):
        items = [_scalar(item) for item in islice(value, MAX_LIST)]
        return NOT_JSON if NOT_JSON in items or len(value) > MAX_LIST else items
    return _scalar(value)


def _flat(prefix: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """The values under dotted names; each entry visited yields one, so that the caller can bound the work."""
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if not isinstance(value, dict):
        yield prefix, _setting(value, 0)
    elif depth >= MAX_SETTINGS_DEPTH or not value:
        yield prefix, "{…}" if value else "{}"
    else:
        for key, inner in dict.items(value):
            yield from _flat(f"{prefix}.{_name(key)}" if prefix else _name(key), inner, depth + 1)


def _name(key: Any) -> str:
    return str(_scalar(key)) if isinstance(key, str | int | float) else type(key).__name__


def _scalar(value: Any) -> Any:
    """A scalar as a JSON value, strings shortened; NOT_JSON for anything else."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return value[:MAX_STRING].encode("utf-8", "replace").decode()
    if value is None or isinstance(value, bool | int):
        return value
    return str(value) if isinstance(value, torch.dtype | torch.device) else NOT_JSON

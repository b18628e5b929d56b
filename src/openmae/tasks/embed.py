"""`openmae embed`: the features of all images as a table that other programs read."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openmae.config import SPLITS, Preprocessing, paths_of
from openmae.config.checks import check_tiles
from openmae.config.features import EmbedConfig
from openmae.data.labels.numbers import non_class_numbers, numeric_labels
from openmae.data.labels.subsets import labels_of
from openmae.data.sources.open import Source, Splits, open_splits
from openmae.data.sources.reading import reading_options
from openmae.data.sources.sizes import cut_into_tiles
from openmae.errors import RequestError, shown
from openmae.inference.features import Features, check_readable, default_batch_size, extract, preprocessing_for
from openmae.inference.load import load
from openmae.inference.matched import matched_model
from openmae.inference.models import EncoderModel
from openmae.machine.device import default_workers, num_cores, use_device
from openmae.machine.files import disk_faults, written_aside
from openmae.machine.parallel import joined
from openmae.version import __version__

ROWS_AT_ONCE = 8192  # of a parquet file: a row group
NAMED = 10  # unreadable images on the screen


def embed(config: EmbedConfig) -> dict[str, Any]:
    """Write the table: `features`, `paths`, `labels` (-1 where unknown) and `split`, one row for each readable image.

    Labels that are numbers and no classes are float64, NaN where unknown.

    An .npz holds them as arrays beside `about`, JSON that says how they were made, and is read without pickles; a
    .parquet has the columns features, path, label and split, and the same JSON in its metadata.

    Returns:
        status, images, unreadable, the features' shape, seconds.

    Raises:
        RequestError: a wrong setting, unusable data, no readable image or too many unreadable ones.
        Fault: features that are not finite, or a full disk.
    """
    started = time.monotonic()
    config = config.plain()
    with joined() as processes:
        check_file(config)
        device = use_device(config.device, processes.local_rank)
        model = load(config.init, str(device), say=True)
        preprocessing = preprocessing_for(model, config.size)
        check_tiles(config.tiles, preprocessing.image_size)
        splits = open_parts(config, preprocessing)
        parts = splits.sources
        model, lines = matched_model(model, tuple(parts.values()), config.value_range)
        preprocessing = preprocessing_for(model, config.size)
        if processes.is_first:
            print("\n".join(splits.lines), flush=True)
            told = ", ".join(f"{len(source):,} of {split}" for split, source in parts.items())
            what, hint = "images" if config.tiles is None else "tiles", " (--split chooses)" * (len(parts) > 1)
            print("\n".join([f"{what:10} {told}{hint}", *lines]), flush=True)
        found: list[Features] = []
        bad: dict[str, str] = {}
        for split, source in parts.items():
            features = extract(
                model,
                source,
                pool=config.pool,
                layer=config.layer,
                batch_size=config.batch_size or default_batch_size(device),
                workers=default_workers(device, processes.local_count) if config.workers is None else config.workers,
                image_size=preprocessing.image_size,
                processes=processes,
                precision=config.precision,
                title=split,
            )
            found.append(features)
            bad |= features.bad
        total = sum(map(len, parts.values()))
        if processes.is_first:
            for name, reason in list(bad.items())[:NAMED]:
                print(f"unreadable, left out: {shown(name)} ({reason})")
            if len(bad) > NAMED:
                print(f"and {len(bad) - NAMED:,} more")
        check_readable(bad, total, config.max_bad, "images")
        columns = columns_of(parts, found, config.half)
        if processes.is_first:
            about = json.dumps(about_of(config, model, preprocessing, parts), default=str)
            write_table(Path(config.out), columns, about)
            shape = " x ".join(map(str, columns["features"].shape))
            print(f"wrote {shown(config.out)}: features {shape} {columns['features'].dtype}, paths, labels, split")
    return {
        "status": "complete",
        "images": total - len(bad),
        "unreadable": len(bad),
        "shape": list(columns["features"].shape),
        "seconds": round(time.monotonic() - started, 1),
    }


def columns_of(parts: dict[str, Source], found: list[Features], half: bool) -> dict[str, NDArray]:
    """Make the table's columns: a row for each image whose features were found, the parts one after the other."""
    values = [part.values for part in found if len(part.values)]
    features = values[0] if len(values) == 1 else np.concatenate(values)
    return {
        "features": features.astype(np.float16) if half else features,
        "paths": texts(shown(s.name(i)) for s, f in zip(parts.values(), found, strict=True) for i in f.indices),
        "labels": labels_to_write(list(parts.values()), found),
        "split": texts(name for name, f in zip(parts, found, strict=True) for _ in f.indices),
    }


def about_of(
    config: EmbedConfig, model: EncoderModel, preprocessing: Preprocessing, parts: dict[str, Source]
) -> dict[str, Any]:
    """Say how the table was made, to be kept beside it."""
    return {
        "openmae": __version__,
        "pool": config.pool,
        "layer": config.layer,
        "preprocessing": preprocessing.to_dict(),
        **({} if config.tiles is None else {"tiles": config.tiles}),
        "classes": next((source.classes for source in parts.values() if source.classes is not None), None),
        "model": {name: model.description.get(name) for name in ("recipe", "seed", "step")},
    }


def check_file(config: EmbedConfig) -> None:
    """Raise RequestError where the table would be among the images, or no file can be."""
    out = Path(config.out)
    place = Path(os.path.realpath(out))
    if any(place.is_relative_to(os.path.realpath(path)) for path in paths_of(config.dataset)):
        raise RequestError(f"--out {shown(out)} is, or lies among, the images to embed: choose another name")
    if out.is_dir():
        raise RequestError(f"--out {shown(out)} is a folder: give the name of a file")
    there = next(place for place in out.absolute().parents if place.exists())
    if not there.is_dir():
        raise RequestError(f"--out {shown(out)} cannot be written: {shown(there)} is no folder")


def open_parts(config: EmbedConfig, model: Preprocessing) -> Splits:
    """The parts of DATA that are asked for. Raises RequestError where there is no such part."""
    wanted = SPLITS if config.split == "all" else (config.split,)
    splits = open_splits(config.dataset, wanted, **reading_options(config, model))
    named = str(config.dataset)
    if not splits.sources:
        raise RequestError(f"--split got {config.split}, but {shown(named)} has no such part: --split all")
    if config.tiles is None:
        return splits
    cut: dict[str, Source] = {}
    for split, source in splits.sources.items():
        cut[split] = cut_into_tiles(source, config.tiles, named, num_cores())
    return replace(splits, sources=cut)


def labels_to_write(parts: list[Source], found: list[Features]) -> NDArray:
    """The classes of the images of all parts, (n,) int64; where labels are fractional numbers, those: (n,) float64."""
    has_numbers = any(non_class_numbers(source) is not None for source in parts)
    of_parts = [numeric_labels(source) if has_numbers else labels_of(source) for source in parts]
    return np.concatenate([own[f.indices] for own, f in zip(of_parts, found, strict=True) if own is not None])


def texts(items: Any) -> NDArray[np.str_]:
    """Strings as a fixed-width array, which needs no pickle."""
    return np.array(list(items), dtype=np.str_)


def write_table(path: Path, columns: dict[str, NDArray], about: str) -> None:
    """Write the table whole or not at all, as the ending of `path` says."""
    assert not any(column.dtype.hasobject for column in columns.values()), "this would be a pickle"
    with disk_faults(path), written_aside(path) as partial:
        if path.suffix.lower() == ".npz":
            with partial.open("wb") as file:
                arrays: dict[str, Any] = {**columns, "about": np.array(about)}
                np.savez(file, **arrays)
        else:
            _write_parquet(partial, columns, about)


def _write_parquet(path: Path, columns: dict[str, NDArray], about: str) -> None:
    import pyarrow as pa  # takes a quarter of a second
    import pyarrow.parquet as pq

    features = columns["features"].reshape(len(columns["features"]), -1)
    kind = pa.list_(pa.from_numpy_dtype(features.dtype), features.shape[1])
    shape = json.dumps(columns["features"].shape[1:])
    schema = pa.schema(
        [
            ("path", pa.string()),
            ("label", pa.from_numpy_dtype(columns["labels"].dtype)),
            ("split", pa.string()),
            ("features", kind),
        ],
        metadata={"openmae": about, "shape": shape},
    )
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(features), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            values = pa.FixedSizeListArray.from_arrays(pa.array(features[rows].reshape(-1)), type=kind)
            table = _texts_and_labels(columns, rows)
            writer.write_table(pa.Table.from_arrays([*table, values], schema=schema))


def _texts_and_labels(columns: dict[str, NDArray], rows: slice) -> Sequence[Any]:
    import pyarrow as pa

    return (
        pa.array(columns["paths"][rows].tolist(), pa.string()),
        pa.array(columns["labels"][rows]),
        pa.array(columns["split"][rows].tolist(), pa.string()),
    )

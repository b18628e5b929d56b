"""`openmae embed`: write the features of all images as a table that other programs read."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openmae.config import SPLITS, Preprocessing
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
from openmae.machine.files import atomic_write, disk_faults
from openmae.machine.parallel import join_processes
from openmae.preflight.evaluation import check_table_path
from openmae.version import __version__

ROWS_AT_ONCE = 8192  # rows of a row group of a parquet file
MAX_NAMED = 10  # unreadable images that are printed


def embed(config: EmbedConfig) -> dict[str, Any]:
    """Write a table with a row for each readable image: `features`, `paths`, `labels` (-1 where unknown) and `split`.

    Labels that are numbers and not classes are float64, NaN where unknown.

    An .npz file holds them as arrays, and `about`, JSON that says how they were made; it is read without pickles. A
    .parquet file has the columns features, path, label and split, and the same JSON in its metadata.

    Returns:
        status, images, unreadable, the features' shape, seconds.

    Raises:
        RequestError: a wrong setting, unusable data, no readable image or too many unreadable ones.
        Fault: features that are not finite, or a full disk.

    Example:
        >>> config = openmae.EmbedConfig(data="photos", init="runs/photos", out="features.npz")
        >>> openmae.embed(config)["shape"]
        [12, 16]
    """
    started = time.monotonic()
    config = config.plain()
    with join_processes() as processes:
        check_table_path(config)
        device = use_device(config.device, processes.local_rank)
        model = load(config.init, str(device), verbose=True)
        preprocessing = preprocessing_for(model, config.size)
        check_tiles(config.tiles, preprocessing.image_size)
        splits = open_parts(config, preprocessing)
        parts = splits.sources
        model, lines = matched_model(model, tuple(parts.values()), config.value_range)
        preprocessing = preprocessing_for(model, config.size)
        if processes.is_first:
            print("\n".join(splits.lines), flush=True)
            counts = ", ".join(f"{len(source):,} of {split}" for split, source in parts.items())
            what, hint = "images" if config.tiles is None else "tiles", " (--split chooses)" * (len(parts) > 1)
            print("\n".join([f"{what:10} {counts}{hint}", *lines]), flush=True)
        features_of_parts: list[Features] = []
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
            features_of_parts.append(features)
            bad |= features.bad
        total = sum(map(len, parts.values()))
        if processes.is_first:
            for name, reason in list(bad.items())[:MAX_NAMED]:
                print(f"unreadable, left out: {shown(name)} ({reason})")
            if len(bad) > MAX_NAMED:
                print(f"and {len(bad) - MAX_NAMED:,} more")
        check_readable(bad, total, config.max_bad, "images")
        columns = make_columns(parts, features_of_parts, config.half)
        if processes.is_first:
            about = json.dumps(describe_table(config, model, preprocessing, parts), default=str)
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


def make_columns(parts: dict[str, Source], features_of_parts: list[Features], half: bool) -> dict[str, NDArray]:
    """The table's columns: a row for each readable image, the splits one after the other."""
    values = [part.values for part in features_of_parts if len(part.values)]
    features = values[0] if len(values) == 1 else np.concatenate(values)
    pairs = list(zip(parts.values(), features_of_parts, strict=True))
    return {
        "features": features.astype(np.float16) if half else features,
        "paths": texts(shown(source.name(i)) for source, f in pairs for i in f.indices),
        "labels": labels_to_write(list(parts.values()), features_of_parts),
        "split": texts(name for name, f in zip(parts, features_of_parts, strict=True) for _ in f.indices),
    }


def describe_table(
    config: EmbedConfig, model: EncoderModel, preprocessing: Preprocessing, parts: dict[str, Source]
) -> dict[str, Any]:
    """How the table was made, as it is kept beside it."""
    return {
        "openmae": __version__,
        "pool": config.pool,
        "layer": config.layer,
        "preprocessing": preprocessing.to_dict(),
        **({} if config.tiles is None else {"tiles": config.tiles}),
        "classes": next((source.classes for source in parts.values() if source.classes is not None), None),
        "model": {name: model.description.get(name) for name in ("recipe", "seed", "step")},
    }


def open_parts(config: EmbedConfig, model: Preprocessing) -> Splits:
    """Open the splits of DATA that `--split` names. Raises RequestError where there is no such split."""
    requested = SPLITS if config.split == "all" else (config.split,)
    splits = open_splits(config.dataset, requested, **reading_options(config, model))
    named = str(config.dataset)
    if not splits.sources:
        raise RequestError(f"--split got {config.split}, but {shown(named)} has no such part: --split all")
    if config.tiles is None:
        return splits
    cut: dict[str, Source] = {}
    for split, source in splits.sources.items():
        cut[split] = cut_into_tiles(source, config.tiles, named, num_cores())
    return replace(splits, sources=cut)


def labels_to_write(parts: list[Source], features_of_parts: list[Features]) -> NDArray:
    """The classes of the images of all splits, (n,) int64; where labels are fractional numbers, these: (n,) float64."""
    has_numbers = any(non_class_numbers(source) is not None for source in parts)
    labels = [numeric_labels(source) if has_numbers else labels_of(source) for source in parts]
    return np.concatenate([own[f.indices] for own, f in zip(labels, features_of_parts, strict=True) if own is not None])


def texts(items: Any) -> NDArray[np.str_]:
    """Strings as a fixed-width array, which needs no pickle."""
    return np.array(list(items), dtype=np.str_)


def write_table(path: Path, columns: dict[str, NDArray], about: str) -> None:
    """Write the table whole or not at all, in the format that the ending of `path` names."""
    assert not any(column.dtype.hasobject for column in columns.values()), "this would be a pickle"
    with disk_faults(path), atomic_write(path) as partial:
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

"""Writing a pack, with a journal for resuming."""

import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openmae.config import PackConfig
from openmae.data.labels.numbers import non_class_numbers
from openmae.data.readers import iterate_batches, make_loader
from openmae.data.sources.largest import largest_image
from openmae.data.sources.manifest import MANIFEST, WITH_EMPTY
from openmae.data.sources.open import Source
from openmae.data.sources.pack import PackedBatch, PackedImages, Packing
from openmae.data.sources.tiles import BLANK, Tiled
from openmae.errors import Interrupted, RequestError, shown
from openmae.machine.device import num_cores
from openmae.machine.files import PARTIAL_PREFIX, sync
from openmae.machine.signals import StopRequest
from openmae.planning.reader_memory import FROM_CORES, workers_that_fit
from openmae.run.quarantine import QUARANTINE, write_quarantine
from openmae.tasks.pack.files import (
    EmptyFile,
    Journal,
    RawFile,
    ShardWriter,
    file_entry,
    write_index,
    write_manifest,
)
from openmae.training.telemetry import ProgressBar

BATCH_BYTES, BATCH_IMAGES = 8 << 20, 32  # at most, of a batch of a reader process
RAW_PART_BYTES = 64 << 20  # written between two lines of a raw pack's journal


@dataclass
class PackJob:
    """A pack being written: what its journal lists is kept, everything else is written again."""

    config: PackConfig
    out: Path
    sources: dict[str, Source]
    packing: Packing
    plan: dict[str, Any]
    stop: StopRequest

    def run(self) -> dict[str, Any]:
        """Write what is missing, and the manifest, which is returned."""
        self.journal = Journal(self.out)
        self.bad = self.journal.bad
        self.num_blank = list(self.bad.values()).count(BLANK)  # of them; blank tiles are counted apart
        self.inputs = sum(map(len, self.sources.values()))
        files: dict[str, Any] = {}
        splits: dict[str, Any] = {}
        done = sum(line["inputs"] for line in self.journal.lines)
        with ProgressBar(self.inputs, done, "packing") as self.screen:
            self.done = done
            for split, source in self.sources.items():
                write = self._write_raw if self.plan["format"] == "raw" else self._write_jpegs
                names, places = write(split, source)
                kept = np.array([i for i in range(len(source)) if (split, i) not in self.bad], np.int64)
                if not len(kept):
                    what = "tiles" if isinstance(source, Tiled) else "images"
                    raise RequestError(f"none of the {len(source):,} {what} of {split} can be packed")
                index = f"{split}.index.npz"
                write_index(self.out / index, source, kept, places)
                files |= {name: file_entry(self.out / name) for name in (*names, index)}
                splits[split] = {**self.plan["splits"][split], "images": len(kept), "data": names, "index": index}
                if with_empty := sum(line.get("empty", 0) for line in self.journal.lines_of(split)):
                    splits[split]["with_empty"] = with_empty
                    if (self.out / (empty := f"{split}.empty.npy")).exists():
                        splits[split]["empty"] = empty
                        files[empty] = file_entry(self.out / empty)
                if isinstance(source, Tiled):
                    blank = (name == split and why == BLANK for (name, _), why in self.bad.items())
                    splits[split]["blank_tiles"] = sum(blank)
        self._write_quarantine()
        manifest = {**self.plan, "splits": splits, "files": files}
        if any("with_empty" in of_split for of_split in splits.values()):  # older versions would take nodata for data
            manifest["openmae_pack"] = WITH_EMPTY
        write_manifest(self.out / MANIFEST, manifest)
        return manifest

    def close(self) -> None:
        """Write the list of skipped inputs, however packing ended."""
        if hasattr(self, "journal"):
            self._write_quarantine()

    def _write_quarantine(self) -> None:
        bad = sorted(self.bad.items())
        write_quarantine(self.out, ((self.sources[split].name(i), why, split) for (split, i), why in bad))

    def _write_jpegs(self, split: str, source: Source) -> tuple[list[str], NDArray[np.int64]]:
        """Write the parquet files of a split: their names, and file, offset and length of each image."""
        per_file, split_plan = self.plan["images_per_file"], self.plan["splits"][split]
        count = -(-len(source) // per_file)
        finished = {line["file"] for line in self.journal.lines_of(split)}
        parts = [range(start, min(start + per_file, len(source))) for start in range(0, len(source), per_file)]
        missing = [part for number, part in enumerate(parts) if number not in finished]
        names, places = list[str](), list[NDArray[np.int64]]()
        with closing(self._images(source, missing)) as images:
            for number, part in enumerate(parts):
                path = self.out / f"{split}-{number:05d}-of-{count:05d}.parquet"
                places_path = self.out / f"{PARTIAL_PREFIX}{path.stem}.places.npy"
                if number not in finished:
                    bad, num_empty = self._write_jpeg_file(split, source, split_plan, part, images, path, places_path)
                    with_empty = {"empty": num_empty} if num_empty else {}
                    self.journal.add(split=split, file=number, inputs=len(part), bad=bad, **with_empty)
                file_places = np.load(places_path)
                if len(file_places):
                    places.append(np.column_stack([np.full(len(file_places), len(names)), file_places]))
                    names.append(path.name)
        return names, np.concatenate(places) if places else np.empty((0, 3), np.int64)

    def _write_jpeg_file(
        self,
        split: str,
        source: Source,
        split_plan: dict[str, Any],
        part: range,
        images: Iterator[PackedBatch],
        path: Path,
        places_path: Path,
    ) -> tuple[dict[int, str], int]:
        """Write one parquet file; the reasons of bad images by index, and how many images have nodata."""
        bad: dict[int, str] = {}
        with_empty = 0
        partial, position = path.with_name(PARTIAL_PREFIX + path.name), part.start
        with open(partial, "w+b") as file, ExitStack() as cleanup:
            numbers = non_class_numbers(source)
            has_labels = split_plan["labelled"] or numbers is not None
            writer = ShardWriter(file, split_plan["classes"], has_labels, numbers is not None)
            cleanup.callback(writer.abandon)
            while position < part.stop:
                batch = self._next(split, images)
                bad |= batch.bad
                with_empty += len(batch.empty)
                kept = (i for i in range(position, part.stop) if i not in batch.bad)
                for data, i in zip(batch.images, kept, strict=False):
                    assert isinstance(data, bytes)
                    writer.add(data, source.name(i), _label(source, i) if numbers is None else _number(numbers, i))
                position += len(batch.images) + len(batch.bad)
            places = writer.close()
            file.flush()
            os.fsync(file.fileno())
        with open(places_path, "wb") as index:
            np.save(index, places)
        sync(places_path)
        if len(places):
            partial.replace(path)
            sync(self.out)
        return bad, with_empty

    def _write_raw(self, split: str, source: Source) -> tuple[list[str], None]:
        """Write the .npy of a split: its name."""
        path = self.out / f"{split}.npy"
        partial = path.with_name(PARTIAL_PREFIX + path.name)
        lines = self.journal.lines_of(split)
        first, rows = sum(line["inputs"] for line in lines), sum(line["rows"] for line in lines)
        if first == len(source) and path.exists():
            return [path.name], None
        if rows and not partial.exists():
            raise RequestError(f"{shown(partial)} is gone: choose another OUT, or remove {shown(self.out)}")
        raw = RawFile(partial, self.packing.shape, self.packing.dtype, rows)
        empty = EmptyFile(self.out / f"{split}.empty.npy", self.packing.shape, lines)
        with closing(raw), closing(empty), closing(self._images(source, [range(first, len(source))])) as images:
            bad: dict[int, str] = {}
            position = first

            def write_journal() -> None:
                nonlocal rows, first, bad
                raw.sync()
                with_empty = empty.sync()
                if position > first:
                    self.journal.add(split=split, inputs=position - first, rows=raw.rows - rows, bad=bad, **with_empty)
                rows, first, bad = raw.rows, position, {}

            try:
                while position < len(source):
                    batch = self._next(split, images)
                    start = raw.rows
                    raw.add(batch.images)
                    empty.add(batch, start)
                    bad |= batch.bad
                    position += raw.rows - start + len(batch.bad)
                    if (raw.rows - rows) * raw.row_bytes >= RAW_PART_BYTES:
                        write_journal()
            except (Interrupted, RequestError):  # finished rows are kept
                write_journal()
                raise
            write_journal()
            raw.finish()
            empty.finish()
        partial.replace(path)
        sync(self.out)
        return [path.name], None

    def _images(self, source: Source, parts: list[range]) -> Generator[PackedBatch, None, None]:
        """Batches of encoded images of some ranges of a source, in order; no batch spans two ranges."""
        size = max(1, min(BATCH_IMAGES, BATCH_BYTES // self.packing.row_bytes)) if self.plan["shape"] else BATCH_IMAGES
        batches = [list(part[start : start + size]) for part in parts for start in range(0, len(part), size)]
        dataset = PackedImages(source, self.packing)
        workers = self.config.workers
        if workers is None:
            largest = largest_image(source, is_cropped=isinstance(source, Tiled))
            workers, why = workers_that_fit(num_cores(), 1, largest)
            if why != FROM_CORES:
                print(f"readers    {workers}: {why}", flush=True)
        workers = min(workers, len(batches))
        loader = make_loader(dataset, batches, dataset.collate, workers=workers, pin_memory=False)
        return iterate_batches(loader, self.stop.is_received)

    def _next(self, split: str, images: Iterator[PackedBatch]) -> PackedBatch:
        """The next batch, counted. Raises Interrupted after a signal, RequestError for too many bad inputs."""
        batch = next(images, None)
        if self.stop.is_received():
            raise Interrupted(
                f"{self.stop.received} after {self.done:,} of {self.inputs:,} images: finished files are kept, "
                "--resume auto goes on"
            )
        assert batch is not None, "the readers return all images that were requested"
        self.done += len(batch.bad) + (
            len(batch.images)
            if self.plan["format"] == "jpeg"
            else sum(len(image) for image in batch.images) // self.packing.row_bytes
        )
        self.bad |= {(split, i): reason for i, reason in batch.bad.items()}
        self.num_blank += list(batch.bad.values()).count(BLANK)
        unreadable = len(self.bad) - self.num_blank
        self.screen.update(self.done, f"{split}, {unreadable} unreadable")
        if unreadable > self.config.max_bad * self.inputs:
            (_, last), reason = [(key, why) for key, why in self.bad.items() if why != BLANK][-1]
            raise RequestError(
                f"{unreadable} of {self.inputs:,} inputs cannot be packed, the last "
                f"{shown(self.sources[split].name(last))} ({reason}): more than --max-bad {self.config.max_bad:g}; "
                f"{shown(self.out / QUARANTINE)} names them; --resume auto with a higher --max-bad goes on"
            )
        return batch


def _number(numbers: NDArray[np.float64], index: int) -> float | None:
    return None if np.isnan(numbers[index]) else float(numbers[index])


def _label(source: Source, index: int) -> int | None:
    label = source.label(index)
    assert label is None or isinstance(label, int)
    return label

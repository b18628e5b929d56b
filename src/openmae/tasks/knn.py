"""`openmae knn`: weighted nearest neighbours among frozen features; nothing is trained (no table of the paper)."""

import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openmae.config import Preprocessing, check_range
from openmae.config.features import KnnConfig
from openmae.data.labels.labelled import LabelledData, open_labelled
from openmae.data.sources.reading import reading_options
from openmae.errors import Fault, RequestError
from openmae.inference.features import (
    Features,
    check_readable,
    crop_fraction_for,
    default_batch_size,
    extract,
    preprocessing_for,
)
from openmae.inference.load import load
from openmae.inference.matched import matched_model
from openmae.inference.metrics import interval
from openmae.inference.models import EncoderModel
from openmae.inference.neighbour_numbers import (
    check_metric_names,
    neighbour_regression_metrics,
    predict_from_neighbours,
)
from openmae.inference.neighbours import neighbour_votes
from openmae.machine.device import default_workers, use_device
from openmae.machine.files import disk_faults, write_json
from openmae.machine.parallel import Processes, join_processes
from openmae.planning.summary_lines import label_lines, target_text
from openmae.preflight.evaluation import check_knn_folder
from openmae.run.create import make_and_lock, write_config
from openmae.run.quarantine import QUARANTINE, write_quarantine
from openmae.tasks.classification.classification import format_regression
from openmae.tasks.classification.regression_report import write_regression_report


def knn(config: KnnConfig) -> dict[str, Any]:
    """Classify the test images, or predict their numbers, by their nearest training images.

    The results lie in `config.out`.

    Returns:
        What RUN/summary.json holds.

    Raises:
        RequestError: a wrong setting, unusable data, more neighbours than images, or too many unreadable files.
        Fault: features that are not finite, or a full disk.
    """
    started = time.monotonic()
    config = config.plain()
    run = Path(config.out)
    with join_processes() as processes, ExitStack() as lock:
        check_knn_folder(run)
        device = use_device(config.device, processes.local_rank)
        model = load(config.init, str(device), verbose=True)
        preprocessing = preprocessing_for(model, config.size)
        data = open_data(config, preprocessing)
        model, lines = matched_model(model, data.parts, config.value_range)
        preprocessing = preprocessing_for(model, config.size)
        resolved = replace(
            config,
            task=data.task,
            image_size=preprocessing.image_size,
            batch_size=config.batch_size or default_batch_size(device),
            workers=default_workers(device, processes.local_count) if config.workers is None else config.workers,
            device=str(device),
        )
        preprocessing = replace(preprocessing, crop_fraction=crop_fraction_for(data.train, preprocessing.image_size))
        check_range("--layer", resolved.layer, 1, model.encoder.shape.depth)
        processes.wait()  # until all have seen the run folder as it was
        if processes.is_first:
            make_and_lock(run, lock)
            print("\n".join([*plan_lines(data, resolved, preprocessing.crop_fraction), *lines]), flush=True)
        try:
            bank, queries = find_features(model, data, resolved, preprocessing, processes)
            check_k(resolved.k, len(bank.values))
            if data.scale is None:
                metrics = neighbour_metrics(vote(bank, queries, data.num_classes, resolved, device, processes), queries)
            else:
                estimates = predict_from_neighbours(bank, queries, data.scale, resolved, device, processes)
                metrics = neighbour_regression_metrics(estimates)
        except (RequestError, Fault):
            if processes.is_first:
                with suppress(OSError):  # the first error is the one to report
                    write_json(run / "summary.json", {"status": "failed"})
            raise
        summary = summarise(metrics, bank, queries, data, resolved.k[0], round(time.monotonic() - started, 1))
        if processes.is_first:
            if data.scale is not None:
                title = f"{run.name}, {data.final_split}, k = {resolved.k[0]}"
                write_regression_report(run, estimates[resolved.k[0]], data.final_source, preprocessing, title)
            write_config(run, {**resolved.to_dict(), "parts": data.origins, "preprocessing": preprocessing.to_dict()})
            with disk_faults(run):
                write_json(run / "summary.json", summary)  # last, so that a run that says complete is
            print("\n".join(result_lines(summary, resolved)))
            print(f"wrote {run}")
    return summary


def find_features(
    model: EncoderModel, data: LabelledData, config: KnnConfig, preprocessing: Preprocessing, processes: Processes
) -> tuple[Features, Features]:
    """The features of the training images and of the final split; unreadable images are named in quarantine.jsonl.

    Raises:
        RequestError: too many images of a split cannot be read, or a batch does not fit into memory.
        Fault: a feature is not finite.
    """
    run, both, bad = Path(config.out), list[Features](), dict[str, str]()
    for split, source in (("train", data.train), (data.final_split, data.final_source)):
        features = extract(
            model,
            source,
            pool=config.pool,
            layer=config.layer,
            batch_size=config.batch_size,
            workers=config.workers or 0,
            image_size=preprocessing.image_size,
            crop_fraction=preprocessing.crop_fraction,
            processes=processes,
            precision=config.precision,
            with_labels=True,
            title=split,
        )
        bad |= features.bad
        if processes.is_first:
            with disk_faults(run):
                (run / QUARANTINE).unlink(missing_ok=True)  # of a failed attempt
                write_quarantine(run, ((name, reason, None) for name, reason in bad.items()))
        max_bad = config.max_bad if split == "train" else 1.0  # bad test images are only counted
        check_readable(features.bad, len(source), max_bad, f"images of {split}")
        both.append(features)
    bank, queries = both
    return bank, queries


def vote(
    bank: Features, queries: Features, num_classes: int, config: KnnConfig, device: torch.device, processes: Processes
) -> dict[int, Tensor]:
    """`neighbour_votes` for all queries; every process computes its share and gets the votes of all."""
    share = processes.share(len(queries.values))
    own = neighbour_votes(
        torch.from_numpy(bank.values),
        torch.from_numpy(bank.labels),
        torch.from_numpy(queries.values[share.start : share.stop]),
        ks=config.k,
        temperature=config.temperature,
        num_classes=num_classes,
        device=device,
    )
    shares = processes.gather(own)
    return {k: torch.cat([share[k] for share in shares]) for k in config.k}


def open_data(config: KnnConfig, preprocessing: Preprocessing) -> LabelledData:
    """Open the labelled splits of DATA.

    Raises:
        RequestError: unusable data or labels, several labels an image, or fewer images than neighbours.
    """
    data = open_labelled(
        config.dataset,
        labels=config.labels,
        label_file=config.label_file,
        held_out=config.held_out,
        seed_of_split=config.seed,
        **reading_options(config, preprocessing),
        task=config.task,
    )
    if data.is_multi_label:
        raise RequestError("images with several labels have no nearest class: openmae probe can learn them")
    check_k(config.k, len(data.train))
    check_metric_names(data.columns, config.k)
    return data


def check_k(ks: Sequence[int], num_images: int) -> None:
    """Raise RequestError where there are fewer images than neighbours."""
    if max(ks) > num_images:
        raise RequestError(f"--k got {max(ks)}, but there are {num_images} training images to vote: give a smaller one")


def plan_lines(data: LabelledData, config: KnnConfig, crop_fraction: float) -> list[str]:
    """The plan as printed before the run, one fact a line; of a config whose settings are all decided."""
    queries = data.final_split if data.final_split != "split of train" else "a split of train"
    layer = "last block, normed" if config.layer is None else f"block {config.layer}"
    height, width = config.size or (0, 0)
    lines = [
        *data.source_lines,
        f"bank       {len(data.train):,} training images, {target_text(data)}",
        f"queries    {len(data.final_source):,} images of {queries}",
        f"features   {config.pool} of the {layer}, {height}x{width} px, {crop_fraction:.3g} of the centre crop, "
        f"{config.precision} on {config.device}",
    ]
    return lines + label_lines(data)


def neighbour_metrics(predicted: dict[int, Tensor], queries: Features) -> dict[str, float]:
    """Accuracies in per cent of the readable images: `top1` for the first k, `top1_k20` for another."""
    labels = torch.from_numpy(queries.labels)
    count = len(labels)
    metrics: dict[str, float] = {}
    for number, (k, classes) in enumerate(predicted.items()):
        right, suffix = int((classes == labels).sum()), f"_k{k}" if number else ""
        low, high = interval(right, count)
        metrics |= {
            f"top1{suffix}": 100 * right / count,
            f"top1_low{suffix}": 100 * low,
            f"top1_high{suffix}": 100 * high,
        }
        if queries.bad:
            metrics[f"top1_lower_bound{suffix}"] = 100 * right / (count + len(queries.bad))
    return metrics


def summarise(
    metrics: dict[str, float], bank: Features, queries: Features, data: LabelledData, k: int, seconds: float
) -> dict[str, Any]:
    """What summary.json holds."""
    return {
        "status": "complete",
        **metrics,
        "k": k,
        "images": len(queries.values),
        "train_images": len(bank.values),
        "unreadable": len(queries.bad),
        "bad_inputs": len(queries.bad) + len(bank.bad),
        **({"classes": data.num_classes} if data.scale is None else {"columns": len(data.columns)}),
        "report": data.final_split,
        "seconds": seconds,
    }


def result_lines(summary: dict[str, Any], config: KnnConfig) -> list[str]:
    """The results as printed at the end, a line for each k."""
    lines = []
    for number, k in enumerate(config.k):
        suffix = f"_k{k}" if number else ""
        if config.is_regression:
            several = " (means over columns)" if summary["columns"] > 1 else ""
            lines.append(f"{format_regression(summary, suffix)} with k = {k}{several}")
            continue
        low, high = summary[f"top1_low{suffix}"], summary[f"top1_high{suffix}"]
        lines.append(f"top1 {summary[f'top1{suffix}']:.2f} % with k = {k} (95 %: {low:.1f} to {high:.1f})")
    if summary["bad_inputs"]:
        lines.append(
            f"{summary['bad_inputs']:,} images could not be read, {summary['unreadable']:,} of them of "
            f"{summary['report']}: named in quarantine.jsonl"
        )
    return lines

"""`openmae inspect MODEL`: the kind, shape, history and weights of a checkpoint, and whether it is intact."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openmae.config import ClassifierShape, DetectorShape, InspectConfig, MAEShape, SegmenterShape, ViTShape
from openmae.errors import RequestError, quoted, shown
from openmae.interchange.init import find_model, is_ours, read_init
from openmae.interchange.outgoing.model_card import (
    METRICS,
    detector_head_text,
    metrics_beside,
    pyramid_text,
    whole_images_text,
)
from openmae.interchange.report import group_blocks
from openmae.interchange.stored import StoredModel
from openmae.interchange.token_models import tokenizer_shape, tokenizer_text
from openmae.machine.files import atomic_write_folder, disk_faults, write_json
from openmae.preflight.inspect import check_report_folder
from openmae.training.checkpoint import MANIFEST, DamagedCheckpoint, verify_checkpoint

USES = {
    MAEShape: "pretrain, reconstruct, finetune, probe, knn, embed, attention, convert",
    ClassifierShape: "robustness, finetune, knn, embed, attention, convert; its decoder is gone",
    SegmenterShape: "segment, finetune, probe, knn, embed, attention, convert; its decoder is gone",
    DetectorShape: "detect, segment, finetune, probe, knn, embed, attention, convert; its decoder is gone",
    ViTShape: "finetune, probe, knn, embed, attention, convert; pretrain starts a fresh decoder",
}

USES_OF_REGRESSION = "numbers (load(…).predict), finetune, knn, embed, attention, convert; its decoder is gone"


def inspect_model(config: InspectConfig) -> dict[str, Any]:
    """Report a checkpoint's kind, shape, preprocessing, history, weights by family, and checksums.

    Returns:
        The report as JSON values; `--out` writes it to inspect.json.

    Raises:
        RequestError: it cannot be read, is damaged, or lacks a weight of its encoder.
    """
    out = check_report_folder(config.out) if config.out is not None else None
    assert config.path is not None
    init = read_init(config.path, verbose=False)
    assert init.report is not None
    report: dict[str, Any] = {
        "kind": "model",
        "init": shown(config.path),
        "what": init.report.kind,
        "model": init.description.get("kind", "mae"),
        "parameters": sum(value.numel() for value in init.weights.values()),
        "shape": init.shape.to_dict(),
        "preprocessing": init.preprocessing.to_dict(),
        **{name: init.description.get(name) for name in ("recipe", "seed", "step", "masking")},
        "classes": init.description.get("classes"),
        "columns": init.description.get("columns"),
        "figures": metrics_beside(config.path) if isinstance(init.shape, SegmenterShape | DetectorShape) else {},
        "remarks": list(init.report.remarks),
        "loaded": {name: list(shape) for name, shape in init.report.loaded.items()},
        "unused": {name: list(shape) for name, shape in init.report.unused.items()},
        "checksums": checksums(config.path),
    }
    print("\n".join(model_lines(init, report)), flush=True)
    if out is not None:
        with disk_faults(out), atomic_write_folder(out) as folder:
            write_json(folder / "inspect.json", report)
    return report


def model_lines(init: StoredModel, report: dict[str, Any]) -> list[str]:
    """The report for the screen."""
    assert init.report is not None
    encoder, p = init.encoder_shape, init.preprocessing
    size = f"{encoder.image_size[0]} x {encoder.image_size[1]} px"
    lines = [
        f"model      {shown(init.report.source)}: {init.report.kind}",
        f"           {report['parameters']:,} parameters",
        f"encoder    {encoder.width} x {encoder.depth}, {encoder.num_heads} heads, patch {encoder.patch_size}, {size}, "
        f"{encoder.channels} channel{'s' * (encoder.channels != 1)}",
    ]
    if not encoder.is_plain:
        lines.append(f"           no plain ViT: {', '.join(f'{k} {v}' for k, v in encoder.differences.items())}")
    if isinstance(init.shape, MAEShape):
        decoder, masking = init.shape.decoder, init.description.get("masking") or {}
        lines.append(
            f"decoder    {decoder.width} x {decoder.depth}, {decoder.num_heads} heads, predicts "
            f"{init.shape.target_name}; mask {masking.get('kind', 'random')} {masking.get('ratio', 0.75):g}"
        )
        if (kept := tokenizer_text(init)) is not None:
            lines.append(f"tokenizer  {kept}")
    else:
        lines.append("decoder    none: encoder only, reconstruction needs the decoder")
    if isinstance(init.shape, ClassifierShape) and init.scale is not None:
        targets = zip(init.scale.columns, init.scale.mean, init.scale.std, strict=True)
        lines += [
            f"predicts   {name[:60]}: mean {mean:.4g}, deviation {std:.4g} in training" for name, mean, std in targets
        ]
        lines.append(f"           pooled by {init.shape.pool}")
    elif isinstance(init.shape, ClassifierShape | SegmenterShape | DetectorShape):
        classes = init.description["classes"]
        names = ", ".join(name[:60] for name in classes[:5]) + (", …" if len(classes) > 5 else "")
        how = "one for each object" if isinstance(init.shape, DetectorShape) else "one for each pixel"
        if isinstance(init.shape, ClassifierShape):
            how = f"pooled by {init.shape.pool}"
        lines.append(f"classes    {len(classes)}: {names}; {how}")
    if isinstance(init.shape, SegmenterShape | DetectorShape):
        lines += whole_model_lines(init, init.shape, report["figures"])
    lines.append(
        f"input      values {p.value_range[0]:g} to {p.value_range[1]:g} ({p.dtype}), mean "
        f"{' '.join(f'{v:.4g}' for v in p.mean)}, deviation {' '.join(f'{v:.4g}' for v in p.std)}, "
        f"crop fraction {p.crop_fraction:g}"
    )
    history = {name: report[name] for name in ("recipe", "seed", "step") if report[name] is not None}
    lines.append(f"history    {', '.join(f'{k} {v}' for k, v in history.items()) or 'not recorded'}")
    lines += [f"           {remark}" for remark in init.report.remarks]
    lines.append(f"weights    {len(init.report.loaded)} by our names:")
    lines += [f"             {line}" for line in group_blocks(init.report.loaded)]
    if init.report.unused:
        lines.append(f"unused     {len(init.report.unused)}:")
        lines += [f"             {line}" for line in group_blocks(init.report.unused)]
    lines += [f"sha256     {digest}  {shown(name)}" for name, digest in report["checksums"].items()]
    lines.append(f"good for   {uses(init)}")
    if isinstance(init.shape, DetectorShape):
        lines.append(f"use        openmae detect IMAGES --init {quoted(report['init'])} --predict --out FOLDER")
    if isinstance(init.shape, SegmenterShape):
        lines.append(f"use        openmae segment IMAGES --init {quoted(report['init'])} --predict --out FOLDER")
    return [shown(line) for line in lines]  # names in a file may contain terminal escape sequences


def whole_model_lines(
    init: StoredModel, shape: SegmenterShape | DetectorShape, figures: Mapping[str, Any]
) -> list[str]:
    """What a segmentation model or a detector has in place of a decoder, how it is used, and how well it does."""
    blocks = ", ".join(str(block + 1) for block in shape.pyramid_blocks)
    head = f"UperNet of {shape.head_width} channels, on a pyramid of 4 maps from blocks {blocks}"
    if isinstance(shape, DetectorShape):
        head = f"{detector_head_text(shape)}, on the pyramid {pyramid_text(shape)}"
    lines = [
        f"head       {head}",
        f"whole      images are {whole_images_text(init)}",
    ]
    values = [f"{METRICS[name]} {value:.4g}" for name, value in figures.items() if isinstance(value, (int, float))]
    return lines + ([f"figures    {'; '.join(values)}"] if values else [])


def uses(init: StoredModel) -> str:
    """The commands that take a model, in words."""
    if init.scale is not None:
        return USES_OF_REGRESSION
    words = USES[type(init.shape)]
    tokenizer = tokenizer_shape(init)
    return words if tokenizer is None or tokenizer.is_ours else words.replace("reconstruct, ", "")


def checksums(path: str) -> dict[str, str]:
    """SHA-256 of the files with the weights; checkpoints of openmae are verified against their manifest.

    Raises:
        RequestError: a checkpoint is damaged.
    """
    location = Path(path)
    if not location.exists():  # a model's name at timm or on the hub
        return {}
    files = (
        [location]
        if location.is_file()
        else sorted(p for p in location.iterdir() if p.suffix in (".safetensors", ".bin"))
    )
    if is_ours(location):
        model = find_model(location)
        files = [model]
        if (model.parent / MANIFEST).is_file():
            try:
                verify_checkpoint(model.parent)
            except DamagedCheckpoint as error:
                raise RequestError(f"{shown(model.parent)} is damaged: {error}") from None
            entries = json.loads((model.parent / MANIFEST).read_bytes())["files"]
            return {name: entry["sha256"] for name, entry in entries.items()}
    return {str(file): _digest(file) for file in files}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""`openmae convert`: write a trained model in a format that other programs read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from openmae.config import ConvertConfig, DetectorShape, SegmenterShape
from openmae.config.convert import FORMATS
from openmae.errors import shown
from openmae.interchange.incoming.conversion import Hints
from openmae.interchange.init import read_init
from openmae.interchange.outgoing import detector_program, exported
from openmae.interchange.outgoing.format import Outgoing, backbone_part, encoder_part, names_left_out
from openmae.interchange.outgoing.hub import push
from openmae.interchange.outgoing.model_card import metrics_beside, model_card, whole_images_text
from openmae.interchange.outgoing.to_onnx import OPSET, check_extra, write_onnx
from openmae.interchange.outgoing.to_reference import to_reference, write_reference
from openmae.interchange.outgoing.to_timm import to_timm
from openmae.interchange.outgoing.to_torch_export import write_torch_export
from openmae.interchange.outgoing.to_transformers import to_transformers
from openmae.interchange.resize import resized_model
from openmae.interchange.stored import StoredModel
from openmae.interchange.token_models import tokenizer_text
from openmae.machine.files import atomic_write, atomic_write_folder, disk_faults, staged_write_files
from openmae.preflight.convert import check_output_path
from openmae.training.checkpoint import MODEL, save_weights
from openmae.transfer.detection.exportable import OUTPUTS

CARD = "README.md"


def convert(config: ConvertConfig) -> dict[str, Any]:
    """Write OUT, whole or not at all; an ONNX or torch.export program only if it computes what the model computes.

    Returns:
        status, tensors (how many were written), left_out (names of weights that were not), error (of a program, against
        the model), url (of --push).

    Raises:
        RequestError: INIT is no model, OUT exists, or the format cannot hold the model.
        Fault: a full disk, a program that computes something else, or a hub that refuses.
    """
    config = config.plain()
    check_output_path(config)
    if config.to == "onnx":
        check_extra()
    hints = Hints(
        num_heads=config.num_heads,
        decoder_num_heads=config.decoder_num_heads,
        image_size=config.size,
        target=config.target,
        mean=config.mean,
        std=config.std,
    )
    model = read_init(config.init, hints)
    model, resized = resized_model(model, config.size, config.patch_size)
    for line in resized:
        print(line, flush=True)
    whole = model
    if config.part == "encoder":
        model = encoder_part(model)
    model, remarks = backbone_part(model, config.to)
    dropped = names_left_out(whole.weights, model.weights)
    out = Path(config.out)
    result: dict[str, Any] = {"status": "complete"}
    if FORMATS[config.to] is None:
        outgoing = with_remarks(outgoing_of(model, config.to), remarks)
        with disk_faults(out), atomic_write_folder(out) as folder:
            if config.to == "openmae":
                save_weights(folder / MODEL, model.weights, model.description)
            else:
                outgoing.write(folder)
            metrics = metrics_beside(config.init)
            card = model_card(model, config.to, config.licence, metrics, outgoing.remarks)
            (folder / CARD).write_text(card, encoding="utf-8")
    elif config.to == "reference":
        outgoing = with_remarks(to_reference(model), remarks)
        with disk_faults(out), atomic_write(out) as file:
            write_reference(file, outgoing)
    else:
        outgoing, result["error"] = write_program(out, model, config)
    left_out = (*outgoing.left_out, *dropped)
    is_detector = isinstance(model.shape, DetectorShape)
    lines = report_lines(config, outgoing, left_out, result.get("error"), is_detector=is_detector)
    print("\n".join(lines), flush=True)
    if config.push is not None:
        result["url"] = push(out, config.push)
        print(f"pushed     {result['url']}")
    return {**result, "tensors": len(outgoing.weights), "left_out": list(left_out)}


def outgoing_of(model: StoredModel, to: str) -> Outgoing:
    """The model in a format that is a folder. Raises RequestError where the format cannot hold it."""
    if to == "timm":
        return to_timm(model)
    if to == "transformers":
        return to_transformers(model)
    kept = tokenizer_text(model)
    return Outgoing(model.weights, remarks=() if kept is None else (f"its tokenizer: {kept}",))


def with_remarks(outgoing: Outgoing, remarks: tuple[str, ...]) -> Outgoing:
    """The same with remarks before its own."""
    return replace(outgoing, remarks=(*remarks, *outgoing.remarks))


def write_program(out: Path, model: StoredModel, config: ConvertConfig) -> tuple[Outgoing, float]:
    """Export a program and check it against the model; an ONNX file above 2 GB has a second one beside it.

    Returns:
        What was written, and the largest difference from the model's outputs.
    """
    write = write_onnx if config.to == "onnx" else write_torch_export
    with disk_faults(out), staged_write_files(out) as folder:
        error = write(folder / out.name, model, config.pool)
    left_out = exported.left_out(model)
    weights = {name: value for name, value in model.weights.items() if name not in left_out}
    remarks = [f"ONNX opset {OPSET}"] if config.to == "onnx" else []
    height, width = model.encoder_shape.image_size
    if isinstance(model.shape, DetectorShape):
        remarks.append(f"input images: float32, normalised, one of {height} x {width} px at a time")
        remarks.append(f"outputs {', '.join(OUTPUTS[: 3 + model.shape.has_masks])}: of each object found")
        remarks.append(f"whole images: {whole_images_text(model)}")
        return Outgoing(weights, left_out, remarks=tuple(remarks)), error
    remarks.append("input images: float32, normalised, any batch size")
    if isinstance(model.shape, SegmenterShape):
        classes = model.shape.num_classes
        remarks.append(f"output logits: a score for each of {classes} classes at each of the {height} x {width} pixels")
        remarks.append(f"whole images: {whole_images_text(model)}")
    if model.scale is not None:
        remarks.append(f"output numbers, in their own units: {', '.join(map(shown, model.scale.columns))}")
    return Outgoing(weights, left_out, remarks=tuple(remarks)), error


def report_lines(
    config: ConvertConfig, outgoing: Outgoing, left_out: tuple[str, ...], error: float | None, *, is_detector: bool
) -> list[str]:
    """Lines that say what was written and what was left out.

    Args:
        error: of a program.
    """
    count = sum(value.numel() for value in outgoing.weights.values())
    lines = [f"wrote      {shown(config.out)} ({config.to}): {len(outgoing.weights)} tensors, {count:,} values"]
    if error is not None:
        batches = ", ".join(map(str, exported.BATCHES))
        how = f"at batches of {batches}: differs by {error:.1e} of the largest value"
        if is_detector:
            how = f"on {len(detector_program.CONTRASTS)} images: its objects differ by {error:.1e}"
        lines.append(f"checked    against openmae {how}")
    lines += [f"           {remark}" for remark in outgoing.remarks]
    for part, names in grouped(left_out).items():
        lines.append(f"left out   {part}: {len(names)} tensor{'s' * (len(names) != 1)} ({listed(names)})")
    return lines


def grouped(names: tuple[str, ...]) -> dict[str, list[str]]:
    """Names of weights by their first component (decoder, head, …)."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.split(".")[0], []).append(name)
    return groups


def listed(names: list[str]) -> str:
    """The second components of names, each once: blocks of decoder.blocks.0.norm1.weight."""
    return ", ".join(dict.fromkeys((name.split(".") * 2)[1] for name in sorted(names)))

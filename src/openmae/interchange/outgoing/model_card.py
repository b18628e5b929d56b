"""The README.md of a converted model: what it is and how to use it, from recorded facts only."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openmae.config import ClassifierShape, DetectorShape, MAEShape, SegmenterShape
from openmae.interchange.stored import StoredModel

NOT_RECORDED = "not recorded"
# Metrics in RUN/summary.json, and how the model card names them.
METRICS = {
    "top1": "top-1, %",
    "top1_low": "its 95 % interval, from",
    "top1_high": "its 95 % interval, to",
    "top5": "top-5, %",
    "balanced_top1": "mean recall of the classes, %",
    "miou": "mean IoU of the classes, %",
    "pixel_accuracy": "pixels that are right, %",
    "box_ap": "box AP, %",
    "box_ap50": "box AP50, %",
    "box_ap75": "box AP75, %",
    "mask_ap": "mask AP, %",
    "mask_ap50": "mask AP50, %",
    "mask_ap75": "mask AP75, %",
    "mean_accuracy": "mean accuracy of the classes, %",
    "map": "mean average precision, %",
    "r2": "R2 (mean over columns)",
    "mae": "mean absolute error (mean over columns)",
    "report": "measured on",
    "report_images": "images measured",
    "loss": "loss",
    "held_out_loss": "held-out loss",
    "psnr": "PSNR of hidden patches, dB",
    "effective_rank": "effective rank of the features",
    "knn_top1": "kNN top-1 while training, %",
    "probe_top1": "probe top-1 while training, %",
}
MAX_CLASSES = 20  # of a segmentation model or detector, that are named
LICENCE_OTHER = (
    "Weights keep the licence of what they were trained from: its images, and the weights that training began with. "
    "Converting them to another format changes nothing about that."
)


def metrics_beside(init: str) -> dict[str, Any]:
    """The metrics in summary.json, where `init` is the folder of a complete run, or the model.safetensors in it."""
    path = Path(init)
    folder = path if path.is_dir() else path.parent
    try:
        summary = json.loads((folder / "summary.json").read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(summary, dict) or summary.get("status") != "complete":
        return {}
    return {name: summary[name] for name in METRICS if isinstance(summary.get(name), (int, float, str))}


def model_card(model: StoredModel, to: str, licence: str, metrics: Mapping[str, Any], remarks: tuple[str, ...]) -> str:
    """The text of README.md.

    Args:
        to: openmae, timm or transformers.
        licence: by the hub's name; "other" explains where a licence comes from.
        metrics: of the run, see `metrics_beside`.
        remarks: of the conversion.
    """
    classifier = isinstance(model.shape, ClassifierShape)
    tags = ["masked-autoencoder", "mae", "vit", "openmae"]
    front = {"license": licence, "library_name": to}
    if model.scale is not None:
        tags.append("image-regression")  # the hub has no pipeline of that kind
    else:
        front["pipeline_tag"] = "image-classification" if classifier else "image-feature-extraction"
    if isinstance(model.shape, SegmenterShape):
        front["pipeline_tag"] = "image-segmentation"
    if isinstance(model.shape, DetectorShape):
        front["pipeline_tag"] = "object-detection"
    lines = ["---", *(f"{name}: {value}" for name, value in front.items()), "tags:", *(f"- {tag}" for tag in tags)]
    lines += ["---", "", f"# {title_of(model)}", ""]
    paper = "[*Masked Autoencoders Are Scalable Vision Learners*](https://arxiv.org/abs/2111.06377)"
    lines += [f"Written for {to} by openmae, an independent implementation of {paper}."]
    lines += ["", "## Use", "", "```python", *usage_example(model, to), "```", ""]
    lines += table("Model", size_rows(model)) + table("Training", training_rows(model))
    if metrics:
        lines += table("Figures of the run", {METRICS[k]: table_cell(v) for k, v in metrics.items()})
    lines += table("Images", preprocessing_rows(model))
    if remarks:
        lines += ["## To know", "", *(f"- {remark}" for remark in remarks), ""]
    lines += ["## Licence", "", LICENCE_OTHER if licence == "other" else f"The weights are given under: {licence}.", ""]
    return "\n".join(lines)


def title_of(model: StoredModel) -> str:
    """The title: the kind of model, and its size."""
    shape, encoder = model.shape, model.encoder_shape
    vit = f"Vision Transformer, {encoder.depth} blocks of width {encoder.width}"
    if isinstance(shape, MAEShape):
        return f"A masked autoencoder: {vit}"
    if isinstance(shape, ClassifierShape):
        made = "a linear probe on a frozen" if shape.head == "probe" else "a fine-tuned"
        if model.scale is not None:
            return f"A regression model of {shape.num_classes} number{'s' * (shape.num_classes > 1)}: {made} {vit}"
        return f"A classifier of {shape.num_classes} classes: {made} {vit}"
    if isinstance(shape, SegmenterShape):
        return f"A segmentation model of {shape.num_classes} classes: UperNet on a {vit}"
    if isinstance(shape, DetectorShape):
        return f"A detector of {shape.num_classes} classes: Mask R-CNN on a {vit}"
    return f"An encoder: {vit}"


def size_rows(model: StoredModel) -> dict[str, str]:
    """The rows of the model card about sizes: image, patch, width, heads, and what belongs to the kind of model."""
    shape = model.encoder_shape
    values = {
        "image": f"{shape.image_size[0]} x {shape.image_size[1]} px, {shape.channels} channels",
        "patch": f"{shape.patch_size} px, {shape.grid[0]} x {shape.grid[1]} of them",
        "width, depth, heads": f"{shape.width}, {shape.depth}, {shape.num_heads}",
    }
    if isinstance(model.shape, MAEShape):
        decoder = model.shape.decoder
        values["decoder's width, depth, heads"] = f"{decoder.width}, {decoder.depth}, {decoder.num_heads}"
        values["target"] = model.shape.target_name
    if isinstance(model.shape, ClassifierShape):
        values["pooling"] = model.shape.pool
    if isinstance(model.shape, SegmenterShape):
        blocks = ", ".join(str(block + 1) for block in model.shape.pyramid_blocks)
        values["pyramid"] = f"4 maps, of cells of 1/4, 1/2, 1 and 2 patches, from blocks {blocks}"
        values["head"] = f"UperNet, {model.shape.head_width} channels"
        values["classes"] = f"{model.shape.num_classes}: {table_cell(class_list(model))}"
        values["whole images"] = whole_images_text(model)
    if isinstance(model.shape, DetectorShape):
        values["pyramid"] = pyramid_text(model.shape)
        values["head"] = detector_head_text(model.shape)
        if model.shape.encoder.window_size:
            blocks = ", ".join(str(block + 1) for block in model.shape.encoder.global_blocks)
            values["attention"] = f"in windows of {model.shape.encoder.window_size} patches, whole in blocks {blocks}"
        values["classes"] = f"{model.shape.num_classes}: {table_cell(class_list(model))}"
        values["whole images"] = whole_images_text(model)
    if model.scale is not None:
        for name, mean, std in zip(model.scale.columns, model.scale.mean, model.scale.std, strict=True):
            values[f"predicts {table_cell(name)}"] = f"mean {mean:.4g}, deviation {std:.4g} in training"
    return values


def class_list(model: StoredModel) -> str:
    """The names of the first classes."""
    names = model.description["classes"]
    return ", ".join(name[:60] for name in names[:MAX_CLASSES]) + (", …" if len(names) > MAX_CLASSES else "")


def pyramid_text(shape: DetectorShape) -> str:
    """The maps of a detector's pyramid, in words."""
    blocks = ", ".join(str(block + 1) for block in shape.pyramid_blocks)
    which = "block" if shape.pyramid == "simple" else "blocks"
    return f"{shape.pyramid}: 5 maps, of cells of 1/4 to 4 patches, from {which} {blocks}"


def detector_head_text(shape: DetectorShape) -> str:
    """The heads of a detector, in words."""
    heads = "boxes and masks" if shape.has_masks else "boxes only"
    return f"Mask R-CNN, {shape.head_width} channels, {heads}"


def whole_images_text(model: StoredModel) -> str:
    """How a segmentation model or a detector is used on whole images, in words."""
    height, width = model.preprocessing.image_size
    if isinstance(model.shape, DetectorShape):
        return (
            f"resized to fit into {height} x {width} px, padded at the bottom and on the right with the mean (0 after "
            "normalising); boxes are in pixels of that, masks of 28 x 28 cells of a box"
        )
    short, inference = f"resized so that the short side has {min(height, width)} px", model.description.get("inference")
    if inference is None:
        return f"{short}; windows {NOT_RECORDED}"
    if inference == "whole":
        return f"{short}, segmented at once"
    stride = model.description["stride"]
    return f"{short}, in windows of {height} x {width} px every {stride} px, the mean of their scores"


def training_rows(model: StoredModel) -> dict[str, str]:
    """The rows of the model card about training, as far as the model records it."""
    description = model.description
    masking = description.get("masking")
    values = {"data": f"{NOT_RECORDED} (no path is kept in a model)"}
    values |= {
        name: table_cell(description[name]) if description.get(name) is not None else NOT_RECORDED
        for name in ("recipe", "seed")
    }
    values["steps"] = table_cell(description["step"]) if description.get("step") is not None else NOT_RECORDED
    if isinstance(masking, dict):
        values["masks"] = (
            f"{masking.get('kind', NOT_RECORDED)}, {table_cell(masking.get('ratio', NOT_RECORDED))} hidden"
        )
    return values


def preprocessing_rows(model: StoredModel) -> dict[str, str]:
    """The rows of the model card about preprocessing."""
    p = model.preprocessing
    rows = {
        "cut out": f"the largest centred box of the model's aspect, {p.crop_fraction:g} of its sides",
        "resize": f"{p.interpolation}, antialiased, to {p.image_size[0]} x {p.image_size[1]}",
    }
    if isinstance(model.shape, SegmenterShape | DetectorShape):
        rows = {"resize": f"{p.interpolation}, antialiased; nothing is cut out"}
    rows |= {
        "0 and 1 are": f"{p.value_range[0]:g} and {p.value_range[1]:g} ({p.dtype})",
        "mean": ", ".join(f"{value:g}" for value in p.mean),
        "deviation": ", ".join(f"{value:g}" for value in p.std),
        "alpha": f"composited on {p.background:g} (0 black, 1 white)",
    }
    if p.source_range is not None and p.target_range is not None:
        (low, high), (start, end) = p.source_range, p.target_range
        kind = p.source_dtype or "other"
        rows["other numbers"] = f"{kind} values of {low:g} to {high:g} become {start:g} to {end:g}"
    return rows


def table(title: str, rows: Mapping[str, str]) -> list[str]:
    """A section of the model card with a table of two columns, as lines of Markdown."""
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return [f"## {title}", "", "| | |", "|---|---|", *lines, ""]


def table_cell(value: Any) -> str:
    """A value in a cell of a Markdown table: one line, `|` escaped, a float to four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).replace("|", r"\|").split())


def usage_example(model: StoredModel, to: str) -> list[str]:
    """Lines of code that use the model in FOLDER on photo.jpg."""
    classifier, many = isinstance(model.shape, ClassifierShape), bool(model.description.get("is_multi_label"))
    scores = "logits.sigmoid()" if many else "logits.softmax(-1)"
    grey = ".convert('L')" if model.preprocessing.channels == 1 else ".convert('RGB')"
    if to == "openmae":
        if isinstance(model.shape, ClassifierShape):
            used = ['print(model.classify("photo.jpg"), model.classes)']
            if model.scale is not None:
                used = ['print(model.predict("photo.jpg"), model.columns)']
        elif isinstance(model.shape, SegmenterShape):
            used = [
                '(labels,) = model.segment("photo.jpg")  # (height, width), numbers of classes',
                "print([model.classes[k] for k in labels.unique()])",
            ]
        elif isinstance(model.shape, DetectorShape):
            used = [
                '(found,) = model.detect("photo.jpg")  # boxes (left, top, right, bottom), labels, scores, masks',
                "print([model.classes[k] for k in found.labels], found.boxes, found.scores)",
            ]
        else:
            used = ['features = model.features("photo.jpg")  # (1, width); pool="cls" or "grid" for others']
        return ["import openmae", "", 'model = openmae.load("FOLDER")', *used]
    if to == "timm":
        lines = [
            "import timm",
            "import torch",
            "from PIL import Image",
            "",
            'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # or "hf-hub:ORG/NAME"',
            "prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
            f'images = prepare(Image.open("photo.jpg"){grey})[None]',
            "with torch.no_grad():",
        ]
        if classifier:
            names = 'names = model.pretrained_cfg["label_names"]'
            if model.scale is not None:
                return [*lines, "    numbers = model(images)  # in their own units", names]
            return [*lines, "    logits = model(images)", f"scores = {scores}", names]
        lines.append("    tokens = model.forward_features(images)  # the class token, then the patches")
        return [*lines, "features = tokens[:, 1:].mean(1)"]
    name = model_class(model)
    extra = ", add_pooling_layer=False" if name == "ViTModel" else ""
    lines = [
        "import torch",
        "from PIL import Image",
        f"from transformers import AutoImageProcessor, {name}",
        "",
        'prepare = AutoImageProcessor.from_pretrained("FOLDER")',
        f'model = {name}.from_pretrained("FOLDER"{extra}).eval()',
        f'images = prepare(Image.open("photo.jpg"){grey}, return_tensors="pt")',
        "with torch.no_grad():",
    ]
    if model.scale is not None:
        numbers = "    numbers = model(**images).logits  # in their own units"
        return [*lines, numbers, "names = model.config.id2label"]
    if classifier:
        return [*lines, "    logits = model(**images).logits", f"scores = {scores}", "names = model.config.id2label"]
    if name == "ViTModel":
        return [*lines, "    tokens = model(**images).last_hidden_state", "features = tokens[:, 1:].mean(1)"]
    return [*lines, "    output = model(**images)  # loss, logits (the patches' pixels), mask"]


def model_class(model: StoredModel) -> str:
    """The name of transformers' class for the model."""
    if isinstance(model.shape, MAEShape):
        return "ViTMAEForPreTraining"
    return "ViTForImageClassification" if isinstance(model.shape, ClassifierShape) else "ViTModel"

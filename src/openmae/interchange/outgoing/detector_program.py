"""A detector as an ONNX program, checked in onnxruntime before it is kept.

It comes from torch's tracing exporter (see `ExportableDetector`). On other images sums round differently, and where two
scores or overlaps are all but equal, another object may be kept; so objects are compared in pairs.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from openmae.config import DetectorShape
from openmae.errors import Fault, RequestError
from openmae.interchange.outgoing.exported import TOLERANCE, example_images
from openmae.interchange.stored import StoredModel
from openmae.transfer.detection.detector import Detector
from openmae.transfer.detection.exportable import ExportableDetector

CONTRASTS = (0.5, 1.0, 2.0, 4.0)  # of the images of noise that a program is checked with
FEW_OBJECTS = 50
NO_LEAST_SCORE = -1.0  # then an image has 100 objects, if boxes are left
MAX_UNPAIRED = 0.1  # of the objects, see above

Outputs = tuple[Tensor, ...]
Run = Callable[[Path, Tensor], Outputs]


@torch.no_grad()
def write_detector(path: Path, model: StoredModel, opset: int, max_bytes: int, run: Run) -> tuple[float, int]:
    """Write the ONNX file of a detector for one image at a time, without metadata.

    Args:
        max_bytes: of weights in the file itself; of more, they lie in NAME.onnx.data beside it.
        run: from a program and an image to its outputs.

    Returns:
        The largest difference (see `compared`), and the number of objects that were compared.

    Raises:
        RequestError: this torch and torchvision do not export it.
        Fault: the program finds something else.
    """
    assert isinstance(model.shape, DetectorShape)
    detector = Detector.from_shape(model.shape)
    detector.load_state_dict(model.weights)
    module = ExportableDetector(detector).eval()
    images = [example_images(model, 1 + number)[:1] * contrast for number, contrast in enumerate(CONTRASTS)]
    _trace(path, module, images[0], opset, max_bytes)
    outputs, expected = [run(path, image) for image in images], [module(image) for image in images]
    if sum(len(found[0]) for found in expected) < FEW_OBJECTS:
        # What is trained on photographs finds little in noise: the same program is compared without a least score.
        detector.head.regions.score_thresh = NO_LEAST_SCORE
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            every = Path(folder) / path.name
            _trace(every, module, images[0], opset, max_bytes)
            outputs = [run(every, image) for image in images]
        expected = [module(image) for image in images]
    return compared(outputs, expected, max(model.shape.encoder.image_size))


def _trace(
    path: Path, module: ExportableDetector, images: Float[Tensor, "1 c s s"], opset: int, max_bytes: int
) -> None:
    import onnx

    names = module.output_names
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # of large weights the exporter makes many files
        file = Path(folder) / path.name
        try:
            torch.onnx.export(
                module,
                (images,),
                file,
                dynamo=False,
                opset_version=opset,
                input_names=["images"],
                output_names=names,
                dynamic_axes={name: {0: "objects"} for name in names},
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise RequestError(
                f"--to onnx: torch {torch.__version__} does not export this detector ({reason}): --part encoder holds "
                "its encoder"
            ) from error
        program = onnx.load(file)
    for node in program.graph.node:
        node.doc_string = ""  # it may name folders of this machine
    size = sum(value.numel() * value.element_size() for value in module.state_dict().values())
    if size > max_bytes:
        onnx.save_model(program, path, save_as_external_data=True, location=f"{path.name}.data")
    else:
        onnx.save_model(program, path)


def add_metadata(path: Path, values: dict[str, str]) -> None:
    """Put metadata into an ONNX file; weights beside it stay there."""
    import onnx

    program = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(program, values)
    path.write_bytes(program.SerializeToString())


def compared(outputs: list[Outputs], expected: list[Outputs], side: int) -> tuple[float, int]:
    """Compare the objects of images: each is paired with the one of the same class whose box and score differ least.

    Args:
        outputs, expected: boxes, labels, scores and perhaps masks of each image, of the program and of the model.
        side: of the square in pixels.

    Returns:
        The largest difference: of boxes relative to the side, of scores, of masks; and the number of pairs.

    Raises:
        Fault: a mask differs by more than the tolerance, or too many objects have no partner.
    """
    worst, num_pairs, num_objects = 0.0, 0, 0
    for theirs, ours in zip(outputs, expected, strict=True):
        num_objects += max(len(theirs[0]), len(ours[0]))
        if not (len(theirs[0]) and len(ours[0])):
            continue
        boxes = (theirs[0][:, None] - ours[0]).abs().amax(-1) / side  # (theirs, ours)
        distances = boxes.maximum((theirs[2][:, None] - ours[2]).abs())
        distances[theirs[1][:, None] != ours[1]] = torch.inf
        nearest, partners = distances.min(1)
        paired = torch.where(nearest <= TOLERANCE)[0]
        num_pairs += len(partners[paired].unique())
        differences = [
            nearest[paired],
            *((x[paired] - y[partners[paired]]) for x, y in zip(theirs[3:], ours[3:], strict=True)),
        ]
        worst = max([worst, *(float(x.abs().max()) for x in differences if x.numel())])
    if num_objects - num_pairs > MAX_UNPAIRED * num_objects or not worst <= TOLERANCE:
        raise Fault(
            f"the ONNX file does not find what this model finds: {num_pairs} of {num_objects} objects agree, their "
            f"masks within {worst:.1e}: nothing was written"
        )
    return worst, num_pairs

"""`openmae.load`: from a run folder or a file to a model that encodes, reconstructs, classifies or predicts numbers."""

from dataclasses import replace

from openmae.config import DetectorShape, MAEShape, SegmenterShape, ViTShape
from openmae.data.value_scale import with_value_range
from openmae.errors import RequestError
from openmae.inference.detection.detector_model import DetectorModel
from openmae.inference.models import ClassifierModel, EncoderModel, MAEModel, RegressionModel
from openmae.inference.segmenter_model import SegmenterModel
from openmae.interchange.incoming.conversion import Hints
from openmae.interchange.init import read_init
from openmae.interchange.load_weights import load_encoder, load_weights
from openmae.interchange.stored import KIND_NAMES
from openmae.machine.device import pick_device
from openmae.model.heads import Classifier
from openmae.model.mae import MAE
from openmae.model.vit import ViT
from openmae.transfer.detection.detector import Detector
from openmae.transfer.segmentation.segmenter import Segmenter

__all__ = [
    "ClassifierModel",
    "DetectorModel",
    "EncoderModel",
    "MAEModel",
    "RegressionModel",
    "SegmenterModel",
    "load",
    "load_mae",
]


def load(
    init: str,
    device: str | None = None,
    *,
    num_heads: int | None = None,
    image_size: tuple[int, int] | None = None,
    value_range: tuple[float, float] | None = None,
    axes: str | None = None,
    nodata: float | str | None = None,
    verbose: bool = False,
) -> MAEModel | ClassifierModel | RegressionModel | SegmenterModel | DetectorModel | EncoderModel:
    """Load a model that encodes images and, by its kind, reconstructs, classifies or segments them, finds objects, ….

    Args:
        init: a run folder, a checkpoint, a file of ours or of another program, `timm:NAME` or `hf:ORG/NAME`.
        device: cpu, cuda, cuda:1 or mps; the best there is unless given.
        num_heads, image_size: of another program's file that does not hold them.
        value_range: the raw values of your images that become the model's 0 and 1, such as (0, 4095) for 12-bit images
            in 16 bits. Without it, images of another number type than the model's are assumed to use the full range of
            their type, with a warning where they do not; nothing is guessed from an image.
        axes: which axes of a three-dimensional `.npy` file are channels, rows and columns, such as "CYX". Without it,
            as the model's data had them, or by the shape where that is unambiguous. Arrays are H × W × C.
        nodata: a value that stands for no data, beside NaN and what TIFFs mark; "off": no value does. Without it, as
            the model's data had it.
        verbose: print which weights were loaded and which were not; the model's `report` holds it in any case.

    Returns:
        `MAEModel`, `ClassifierModel`, `RegressionModel`, `SegmenterModel` or `DetectorModel`, or `EncoderModel` where
        there is neither decoder nor head.

    Raises:
        RequestError: it does not exist, is damaged, is no Vision Transformer, or lacks a weight of its encoder.

    Example:
        >>> model = openmae.load("runs/photos")
        >>> model.features("photos/cat.png").shape
        torch.Size([1, 16])
    """
    stored = read_init(init, Hints(num_heads=num_heads, image_size=image_size), verbose=verbose)
    target_device, preprocessing = pick_device(device), stored.preprocessing
    axes, nodata = preprocessing.axes if axes is None else axes, preprocessing.nodata if nodata is None else nodata
    preprocessing = replace(preprocessing, axes=axes, nodata=nodata)
    preprocessing = preprocessing if value_range is None else with_value_range(preprocessing, value_range)
    common = (preprocessing, stored.description, target_device, stored.report)
    if isinstance(stored.shape, MAEShape):
        mae = MAE.from_shape(stored.shape)
        load_weights(mae, stored.weights, str(stored.path))
        mae.eval().to(target_device)
        return MAEModel(mae.encoder, *common, mae)
    if isinstance(stored.shape, ViTShape):
        encoder = ViT(stored.shape)
        load_encoder(encoder, stored)
        return EncoderModel(encoder.eval().to(target_device), *common)
    if isinstance(stored.shape, SegmenterShape):
        segmenter = Segmenter.from_shape(stored.shape)
        load_weights(segmenter, stored.weights, str(stored.path))
        segmenter.eval().to(target_device)
        return SegmenterModel(segmenter.encoder, *common, segmenter)
    if isinstance(stored.shape, DetectorShape):
        detector = Detector.from_shape(stored.shape)
        load_weights(detector, stored.weights, str(stored.path))
        detector.eval().to(target_device)
        return DetectorModel(detector.encoder, *common, detector)
    classifier = Classifier.from_shape(stored.shape)
    load_weights(classifier, stored.weights, str(stored.path))
    classifier.eval().to(target_device)
    model_class = ClassifierModel if stored.scale is None else RegressionModel
    return model_class(classifier.encoder, *common, classifier)


def load_mae(init: str, device: str | None = None) -> MAEModel:
    """As `load`, for what needs a decoder; prints which weights were loaded.

    Raises:
        RequestError: the model has no decoder.
    """
    model = load(init, device, verbose=True)
    if not isinstance(model, MAEModel):
        raise RequestError(
            f"--init {init} is {kind_of(model)}: reconstruction needs the decoder of a pre-trained model"
        )
    return model


def kind_of(model: EncoderModel) -> str:
    """The kind of a loaded model, for messages."""
    kind = model.description.get("kind", "encoder")
    return "an encoder only" if kind == "encoder" else KIND_NAMES[kind]

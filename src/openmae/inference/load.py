"""From `--init` to a model that encodes and reconstructs, classifies or predicts: what `openmae.load` returns."""

from dataclasses import replace

from openmae.config import MAEShape, ViTShape
from openmae.data.value_scale import with_value_range
from openmae.errors import RequestError
from openmae.inference.models import ClassifierModel, EncoderModel, MAEModel, RegressionModel
from openmae.interchange.incoming.reading import Hints
from openmae.interchange.init import read_init
from openmae.interchange.load_weights import load_encoder, load_weights
from openmae.machine.device import pick_device
from openmae.model.heads import Classifier
from openmae.model.mae import MAE
from openmae.model.vit import ViT

__all__ = ["ClassifierModel", "EncoderModel", "MAEModel", "RegressionModel", "load", "load_mae"]


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
) -> MAEModel | ClassifierModel | RegressionModel | EncoderModel:
    """Load a model, ready to encode and, where it holds what that needs, to reconstruct, classify or predict numbers.

    Args:
        init: a run folder, a checkpoint, a file of ours or of another program, `timm:NAME` or `hf:ORG/NAME`.
        num_heads, image_size: of a foreign file that does not say them.
        value_range: raw values of the images you will give that become the model's 0 and 1, such as (0, 4095) for 12
            bits in 16. Without it images of another number type than the model's are taken to use all of theirs, with a
            warning where they do not; nothing is guessed from an image.
        axes: which axes of a `.npy` of three are channels, rows and columns, such as "CYX"; else as the model had them,
            or by the shape where that tells. Arrays are H × W × C.
        nodata: a value of the images you will give that stands for none, beside NaN and what TIFFs mark; "off": none
            does; else as the model had it.
        say: print which weights were loaded and which were not; `report` of the result tells it in any case.

    Raises:
        RequestError: it does not exist, is damaged, is no Vision Transformer, or lacks a weight of its encoder.
    """
    found = read_init(init, Hints(num_heads=num_heads, image_size=image_size), verbose=verbose)
    chosen = pick_device(device)
    stored = found.preprocessing
    axes, nodata = stored.axes if axes is None else axes, stored.nodata if nodata is None else nodata
    preprocessing = replace(stored, axes=axes, nodata=nodata)
    preprocessing = preprocessing if value_range is None else with_value_range(preprocessing, value_range)
    common = (preprocessing, found.description, chosen, found.report)
    if isinstance(found.shape, MAEShape):
        mae = MAE.from_shape(found.shape)
        load_weights(mae, found.weights, str(found.path))
        mae.eval().to(chosen)
        return MAEModel(mae.encoder, *common, mae)
    if isinstance(found.shape, ViTShape):
        encoder = ViT(found.shape)
        load_encoder(encoder, found)
        return EncoderModel(encoder.eval().to(chosen), *common)
    classifier = Classifier.from_shape(found.shape)
    load_weights(classifier, found.weights, str(found.path))
    classifier.eval().to(chosen)
    kind = ClassifierModel if found.scale is None else RegressionModel
    return kind(classifier.encoder, *common, classifier)


def load_mae(init: str, device: str | None = None) -> MAEModel:
    """As `load`, for what needs the decoder; says which weights were loaded.

    Raises:
        RequestError: it holds none.
    """
    model = load(init, device, verbose=True)
    if not isinstance(model, MAEModel):
        kinds = {ClassifierModel: "a classifier", RegressionModel: "a regression model"}
        what = kinds.get(type(model), "an encoder only")
        raise RequestError(f"--init {init} is {what}: reconstruction needs the decoder of a pre-trained model")
    return model

"""The figure of a chosen run: on the final split of its data, whose images decided nothing."""

from openmae.config import DetectConfig, FinetuneConfig, SegmentConfig
from openmae.errors import RequestError
from openmae.inference.detection.detector_model import DetectorModel
from openmae.inference.detection.result import detection_metrics, merge_parts
from openmae.inference.load import load
from openmae.inference.metrics import compute_metrics
from openmae.inference.models import ClassifierModel
from openmae.inference.predict import predict
from openmae.inference.segmentation_result import segmentation_metrics
from openmae.inference.segmenter_model import SegmenterModel
from openmae.machine.parallel import Processes
from openmae.tasks.classification.classification import open_data
from openmae.tasks.detect.detect import open_with_test as open_objects
from openmae.tasks.detect.evaluation import measure_images as measure_objects
from openmae.tasks.segment.evaluation import measure_images
from openmae.tasks.segment.segment import open_with_test


def final_top1(config: FinetuneConfig) -> dict[str, float]:
    """Top-1 in per cent, as `finetune`, of a fine-tuned run on the final split of its data."""
    classifier = load(config.out, config.device)
    assert isinstance(classifier, ClassifierModel)
    data = open_data(config, classifier.preprocessing, needs_validation=True)
    predictions = predict(
        classifier.classifier,
        data.final_source,
        classifier.preprocessing,
        device=classifier.device,
        precision="fp32",
        batch_size=256,
        workers=config.workers or 0,
        processes=Processes(),
    )
    return {"finetune": compute_metrics(predictions)["top1"]}


def final_miou(config: SegmentConfig) -> dict[str, float]:
    """Mean IoU in per cent, as `miou`, of a segmenter's run on the final split of its data.

    Raises:
        RequestError: none of its images can be read, or the data has not the run's classes any more.
    """
    model = load(config.out, config.device)
    assert isinstance(model, SegmenterModel)
    data = open_with_test(config, model.preprocessing)
    if data.classes != model.classes:
        raise RequestError(f"{config.dataset} has not the classes that {config.out} learnt: restore it, or begin anew")

    class_map_of = model.whole_image_segmenter().class_map
    indices, workers = range(len(data.final_source)), config.workers or 0
    result = measure_images(
        class_map_of, data.final_source, indices, model.preprocessing, data.classes, workers=workers
    )
    return {"miou": segmentation_metrics(result)["miou"]}


def final_aps(config: DetectConfig) -> dict[str, float]:
    """Box AP and mask AP in per cent, as `box_ap` and `mask_ap`, of a detector's run on the final split of its data.

    Raises:
        RequestError: none of its images can be read, or the data has not the run's classes any more.
    """
    model = load(config.out, config.device)
    assert isinstance(model, DetectorModel)
    data = open_objects(config, model.preprocessing)
    if data.classes != model.classes:
        raise RequestError(f"{config.dataset} has not the classes that {config.out} learnt: restore it, or begin anew")
    find, indices, workers = model.whole_image_detector().detect, range(len(data.final_source)), config.workers or 0
    part = measure_objects(find, data.final_source, indices, model.preprocessing, workers=workers)
    metrics = detection_metrics(merge_parts([part], data.classes, model.detector.shape.has_masks))
    return {name: metrics[name] for name in ("box_ap", "mask_ap") if name in metrics}

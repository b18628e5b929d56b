"""The detector whole in ONNX: its outputs are the model's, however many objects there are."""

import warnings

import jaxtyping
import pytest
import torch

from openmae.config import Conventions
from openmae.transfer.detection.exportable import ExportableDetector

from .detectors import detector_shape, images_of, make_detector

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("pyramid", "has_masks", "sees_nothing"),
    [("table-4", True, False), ("simple", False, False), ("simple", True, True)],
)
def test_onnx_equals_the_model(pyramid, has_masks, sees_nothing, tmp_path, monkeypatch):
    """Largest difference measured: 8e-6 px in boxes, 8e-7 in scores, 6e-8 in masks.

    What sees nothing takes all anchors for equally likely.
    """
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # while it traces, sizes are tensors
    norm = "batch" if pyramid == "table-4" else "layer"
    detector = make_detector(detector_shape(pyramid, has_masks, conventions=Conventions(head_norm=norm))).eval()
    predictor = detector.head.regions.box_predictor.cls_score
    with torch.no_grad():
        predictor.weight.normal_(std=0.02)
        if sees_nothing:
            detector.head.rpn.head.cls_logits.weight.zero_()
    module, path = ExportableDetector(detector).eval(), tmp_path / "detector.onnx"
    counts = []
    for background in (2.83, 100.0):
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            predictor.bias[0] = background
            axes = {name: {0: "found"} for name in module.output_names}
            torch.onnx.export(
                module,
                (images_of(1),),
                path,
                dynamo=False,
                opset_version=18,
                input_names=["images"],
                output_names=module.output_names,
                dynamic_axes=axes,
            )
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for seed, scale in ((0, 1), (1, 4), (2, 0)):
            images = images_of(1, seed=seed) * scale
            with torch.no_grad():
                expected = module(images)
            found = session.run(None, {"images": images.numpy()})
            assert len(found) == 3 + has_masks
            counts.append(len(expected[0]))
            for own, theirs in zip(expected, found, strict=True):
                torch.testing.assert_close(torch.from_numpy(theirs), own, rtol=1e-4, atol=1e-4)
    assert min(counts) == 0
    assert max(counts) > 0

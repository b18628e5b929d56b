"""Where training crops are made: by the readers, or on the device."""

from openmae.data.augment import Augmentation
from openmae.data.preprocess import DataFacts
from openmae.errors import RequestError, shown
from openmae.planning.decisions import Decisions, Machine


def decide_crop_on(facts: DataFacts, machine: Machine, decisions: Decisions) -> None:
    """Whether readers crop or the device does. Raises RequestError where the device is to and cannot."""
    augment = decisions.get("augment")
    if not Augmentation(kind=augment).only_crops:
        obstacle = f"--augment {augment} goes on with the crop where it is read"
        remedy = "--augment crop"
    elif facts.raw_shape is None:
        named = shown(str(decisions.config.dataset))
        obstacle = f"{named} is no raw pack, and only there all images are known to have one shape"
        remedy = "DATA from openmae pack --format raw"
    else:
        is_gpu = machine.device == "cuda"
        reasons = {"cuda": "a raw pack: its readers need only copy", "cpu": "faster than cropping on cpu"}
        why = reasons.get(machine.device, f"not measured on {machine.device}")
        decisions.decide("crop_on", "device" if is_gpu else "reader", why)
        return
    if decisions.get("crop_on") == "device":
        raise RequestError(f"--crop-on device: {obstacle}; give {remedy}, or --crop-on reader")
    decisions.decide("crop_on", "reader", obstacle)

"""A step in which weights get no gradient: a detector's mask norms where no region is an object (one process)."""

import pytest
import torch
from safetensors.torch import save_file

from openmae.config import Conventions
from openmae.machine.parallel import Processes
from openmae.run.step import accumulated_step
from openmae.training.checkpoint import OPTIMIZER, optimizer_tensors, restore_optimizer
from openmae.training.optim import adamw, set_learning_rate

from ..transfer.detection.detectors import detector_shape, images_of, instances_of, keys_of, make_detector


def make():
    detector = make_detector(detector_shape(conventions=Conventions(head_norm="batch"))).train()
    optimizer = adamw(detector, 0.05, (0.9, 0.999))
    set_learning_rate(optimizer, 0.01)
    return detector, optimizer


def take_step(detector, optimizer, counts, factor=1.0):
    """A step on images with so many objects; returns the norm of its gradients, and whether it was skipped."""

    def loss_fn(_):
        losses = detector(images_of(len(counts)), instances_of(counts), keys_of(len(counts)))
        return factor * sum(values.sum() for values in losses.values())

    _, norm, is_skipped = accumulated_step(detector, optimizer, [None], loss_fn, Processes())
    return float(norm), bool(is_skipped)


def copies(detector):
    return {name: value.clone() for name, value in detector.named_parameters()}


def is_mask_norm(detector, name):
    return name.startswith("head.regions.mask_head.") and dict(detector.named_parameters())[name].ndim == 1


def test_they_stay_as_they_are_and_the_step_counts():
    detector, optimizer = make()
    before = copies(detector)
    norm, is_skipped = take_step(detector, optimizer, [0, 0])
    assert 0 < norm < float("inf")
    assert not is_skipped
    after, mask_norms = copies(detector), [name for name in before if is_mask_norm(detector, name)]
    assert len(mask_norms) == 8  # four norms
    for name, parameter in detector.named_parameters():
        has_state = parameter in optimizer.state and len(optimizer.state[parameter]) > 0
        assert has_state == (name not in mask_norms)
    assert all(torch.equal(before[name], after[name]) for name in mask_norms)
    assert not torch.equal(before["encoder.patch_embed.proj.weight"], after["encoder.patch_embed.proj.weight"])
    take_step(detector, optimizer, [3, 2])
    assert not any(torch.equal(after[name], value) for name, value in copies(detector).items() if name in mask_norms)


def test_a_step_that_is_not_finite_is_skipped_all_the_same():
    detector, optimizer = make()
    before = copies(detector)
    _, is_skipped = take_step(detector, optimizer, [0, 0], factor=float("nan"))
    assert is_skipped
    assert all(torch.equal(before[name], value) for name, value in copies(detector).items())


@pytest.mark.parametrize("counts", [[3, 2], [0, 0]])
def test_an_optimiser_without_their_state_is_saved_and_goes_on(counts, tmp_path):
    detector, optimizer = make()
    take_step(detector, optimizer, [0, 0])
    save_file(optimizer_tensors(detector, optimizer), tmp_path / OPTIMIZER)
    other, its_optimizer = make()
    other.load_state_dict(detector.state_dict())
    restore_optimizer(tmp_path, other, its_optimizer)
    for model, its in ((detector, optimizer), (other, its_optimizer)):
        take_step(model, its, counts)
    assert all(map(torch.equal, detector.state_dict().values(), other.state_dict().values()))

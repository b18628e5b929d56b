"""How readers hand batches over, and how what goes wrong in one reaches the user."""

import os
import signal
import threading
import time
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from openmae.config import Preprocessing
from openmae.data import hand_over, readers
from openmae.data.batch import Batch, Crops, stack_images
from openmae.data.evaluation_loader import evaluation_batches
from openmae.data.hand_over import pipes_reason
from openmae.data.readers import ReaderKilled, iterate_batches, make_loader
from openmae.data.sources.folder import FolderSource
from openmae.errors import Fault, RequestError

GIB = 1 << 30


class Noise(Dataset):
    """Images of noise by their index; `action` is called first, in the reader's process."""

    def __init__(self, action=lambda index: None):
        self.action = action

    def __getitem__(self, index):
        self.action(index)
        return np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)

    def collate(self, images):
        count = len(images)
        crops = Crops(torch.arange(4 * count).view(count, 4), torch.ones(count, dtype=torch.bool))
        return Batch(stack_images(images), torch.arange(count), {"a name": "a reason"}, torch.ones(count, 5), crops)


def batches_of(workers, action=lambda index: None, use_pipes=False):
    dataset = Noise(action)
    batches = [[0, 1, 2], [3, 4], [5, 6, 7]]
    return iterate_batches(
        make_loader(dataset, batches, dataset.collate, workers=workers, pin_memory=False, use_pipes=use_pipes)
    )


def tensors(batch):
    return [batch.images, batch.keys, batch.labels, batch.crops.boxes, batch.crops.is_flipped]


def is_shared(batch):
    return batch.images.is_shared()


@pytest.mark.parametrize("way", ["shared", "pipe"])
def test_a_batch_arrives_as_it_was_made(way):
    wanted = list(batches_of(0))
    found = list(batches_of(2, use_pipes=way == "pipe"))
    assert [is_shared(batch) for batch in found] == [way == "shared"] * 3
    for one, other in zip(wanted, found, strict=True):
        assert one.bad == other.bad
        for a, b in zip(tensors(one), tensors(other), strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
        other.images.add_(1)  # not read-only


def test_a_reader_that_finds_no_room_takes_the_pipe(monkeypatch):
    monkeypatch.setattr(hand_over, "free_shared_memory", lambda: 100)
    found = list(batches_of(1))
    assert not any(is_shared(batch) for batch in found)
    assert all(torch.equal(a.images, b.images) for a, b in zip(found, batches_of(0), strict=True))


def test_shared_memory_that_another_process_took_in_between(monkeypatch):
    def no_room(*arguments, **options):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device")

    monkeypatch.setattr(torch.UntypedStorage, "_new_shared", no_room)
    assert len(list(batches_of(1))) == 3


@pytest.mark.parametrize(
    ("free", "bytes_per_batch", "workers", "needed"),
    [(64 << 20, 25 << 20, 4, "262 MB"), (64 << 20, 7 << 20, 4, "73.4 MB"), (GIB, GIB, 1, "4.29 GB")],
)
def test_what_readers_will_need_is_known_before(monkeypatch, free, bytes_per_batch, workers, needed):
    monkeypatch.setattr(hand_over, "free_shared_memory", lambda: free)
    reason = pipes_reason(bytes_per_batch, workers, 2)
    assert needed in reason
    assert "--shm-size" in reason


@pytest.mark.parametrize("free", [None, 8 * GIB, (2 * 4 + 2) * (25 << 20)])
def test_where_there_is_room_nothing_is_said(monkeypatch, free):
    monkeypatch.setattr(hand_over, "free_shared_memory", lambda: free)
    assert pipes_reason(25 << 20, 4, 2) is None


def test_without_readers_nothing_is_handed_over(monkeypatch):
    monkeypatch.setattr(hand_over, "free_shared_memory", lambda: 0)
    assert pipes_reason(25 << 20, 0, 2) is None


def test_evaluation_says_once_that_it_goes_through_pipes(monkeypatch, tmp_path, capsys):
    for number in range(6):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
    source = FolderSource(tmp_path, [f"{number}.png" for number in range(6)])
    size = {"batch_size": 2, "workers": 2, "crop_fraction": 1.0, "patch_size": 1, "with_labels": False}
    p = Preprocessing(
        channels=3, value_range=(0, 255), mean=(0.5,) * 3, std=(0.2,) * 3, image_size=(8, 8), background=1
    )
    monkeypatch.setattr(hand_over, "_printed", [])
    for free, lines in ((6 * 2 * 8 * 8 * 3, 0), (6 * 2 * 8 * 8 * 3 - 1, 1), (1, 0)):
        monkeypatch.setattr(hand_over, "free_shared_memory", lambda free=free: free)
        found = list(evaluation_batches(source, p, range(6), **size))
        assert [batch.indices.tolist() for batch in found] == [[0, 1], [2, 3], [4, 5]]
        assert is_shared(found[0]) == (free == 6 * 2 * 8 * 8 * 3)
        assert capsys.readouterr().out.count("readers    2 readers need 0.0023 MB of shared memory") == lines


def fail(error):
    def action(index):
        if index == 3:
            raise error

    return action


@pytest.mark.parametrize("workers", [0, 1])
def test_a_wrong_request_arrives_as_one(workers):
    with pytest.raises(RequestError, match=r"^give it a label$"):
        list(batches_of(workers, fail(RequestError("give it a label"))))


def test_another_error_of_a_reader_arrives_without_its_traceback():
    with pytest.raises(Fault) as fault:
        list(batches_of(1, fail(KeyError("colour"))))
    assert str(fault.value) == "a reader process failed: KeyError: 'colour'; --workers 0 reads in the main process"
    assert fault.value.__cause__ is None


def test_a_reader_that_the_system_kills_again_is_named_as_short_of_memory(capsys):
    def die(index):
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ReaderKilled, match=r"^a reader process was killed, most likely because the machine is short"):
        list(batches_of(4, die))
    assert capsys.readouterr().out.count("now 2 instead of 4") == 1


def test_batches_behind_a_killed_reader_come_in_their_order_once(tmp_path, capsys):
    def die_once(index):
        if index == 3 and not (tmp_path / "flag").exists():
            (tmp_path / "flag").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    found = list(batches_of(2, die_once))
    assert (tmp_path / "flag").exists()
    assert all(torch.equal(a.images, b.images) for a, b in zip(found, batches_of(0), strict=True))
    assert "now 1 instead of 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", "was killed, most likely because the machine is"),
        ("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that …", "docker run --shm-size"),
        ("DataLoader timed out after 300 seconds", "hung: no batch came for 300 s"),
        (
            "Caught OSError in pin memory thread for device 0.\nOriginal Traceback (most recent call …\nOSError: no",
            r"^a reader process failed: OSError: no; --workers 0",
        ),
        (
            "Caught OSError in DataLoader worker process 0.\nOriginal Traceback (most recent call …\nOSError: no",
            r"^a reader process failed: OSError: no; --workers 0",
        ),
        ("DataLoader worker (pid(s) 7) exited unexpectedly", r"died \(DataLoader worker \(pid\(s\) 7\) exited"),
    ],
)
def test_what_dataloader_says_is_put_in_words(said, wanted):
    fault = readers.reader_fault(RuntimeError(said))
    with pytest.raises(Fault, match=wanted):
        raise fault


def test_other_errors_are_left_alone():
    assert readers.reader_fault(RuntimeError("shapes do not match")) is None
    assert readers.reader_fault(ValueError("DataLoader")) is None


def test_small_tensors_do_not_need_shared_memory(monkeypatch):
    """torch would put keys and labels there, in a thread whose failure is a batch that never comes."""
    shared, real = [], hand_over.reduce_tensor
    monkeypatch.setattr(hand_over, "reduce_tensor", lambda tensor: shared.append(tuple(tensor.shape)) or real(tensor))
    hand_over.configure_transfer(use_pipes=False)
    try:
        batch = next(batches_of(0))
        ForkingPickler.dumps(batch)
        assert shared == []
        batch.images.share_memory_()
        ForkingPickler.dumps(batch)
        assert shared == [(3, 8, 8, 3)]
    finally:
        ForkingPickler.register(torch.Tensor, real)


@pytest.mark.slow
def test_a_wait_is_given_up_within_a_second_or_two():
    def hang(index):
        if index >= 3:
            time.sleep(600)

    given_up: list[bool] = []
    dataset = Noise(hang)
    batches = iterate_batches(
        make_loader(dataset, [[0], [3]], dataset.collate, workers=1, pin_memory=False), lambda: bool(given_up)
    )
    next(batches)
    threading.Timer(0.2, given_up.append, [True]).start()
    before = time.monotonic()
    assert next(batches, "no more") == "no more"
    assert time.monotonic() - before < 2 * readers.POLL_SECONDS + readers.SHUTDOWN_SECONDS + 3


def test_a_hung_reader_meets_its_timeout(monkeypatch):
    monkeypatch.setattr(readers, "TIMEOUT", 2)
    monkeypatch.setattr(readers, "SHUTDOWN_SECONDS", 0.5)
    with pytest.raises(Fault, match=r"^a reader process hung: no batch came for 2 s"):
        list(batches_of(1, lambda index: time.sleep(600)))


def test_readers_that_hang_are_ended_soon(monkeypatch):
    """Each of them would be waited for in turn, for five seconds."""

    def hang(index):
        if index >= 3:
            time.sleep(600)

    monkeypatch.setattr(readers, "SHUTDOWN_SECONDS", 0.5)
    batches = batches_of(3, hang)
    next(batches)
    before = time.monotonic()
    batches.close()
    assert time.monotonic() - before < 4

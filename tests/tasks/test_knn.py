"""kNN: the votes are scikit-learn's, every image counts once, and a run leaves what it should."""

import dataclasses
import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openmae.config.features import KnnConfig
from openmae.data.sources.open import open_source
from openmae.errors import Fault, RequestError
from openmae.inference.features import crop_fraction_for, extract
from openmae.inference.load import load
from openmae.inference.models import EncoderModel
from openmae.inference.neighbours import nearest, neighbour_votes
from openmae.tasks import knn as knn_module
from openmae.tasks.knn import knn

from ..processes import said, start, wait
from ..shared import snapshot


@pytest.fixture(scope="module")
def model(pixel_run):
    return load(str(pixel_run), "cpu")


@pytest.fixture(scope="module")
def digits():
    return open_source("embedded:digits", "train"), open_source("embedded:digits", "val")


@pytest.fixture(scope="module")
def features(model, digits):
    """Of 1,434 digits and 363 others, read off a trained encoder."""
    return [extract(model, source, batch_size=100, with_labels=True) for source in digits]


@pytest.fixture(scope="module")
def spread(features):
    """The same around their mean: a model hardly trained gives cosines near 1, which no temperature tells apart."""
    mean = features[0].values.mean(0)
    return [dataclasses.replace(part, values=part.values - mean) for part in features]


def votes(bank, queries, **settings):
    return neighbour_votes(
        torch.from_numpy(bank.values),
        torch.from_numpy(bank.labels),
        torch.from_numpy(queries.values),
        **{"ks": (1, 20), "temperature": 0.07, "num_classes": 10, **settings},
    )


def sklearn_votes(bank, queries, k, temperature):
    from sklearn.neighbors import KNeighborsClassifier  # takes a second, also in each process started below

    judge = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / temperature), algorithm="brute")
    return judge.fit(bank.values.astype(np.float64), bank.labels).predict(queries.values.astype(np.float64))


# --- the votes ---


@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
def test_the_votes_are_scikit_learn_s(spread, temperature):
    bank, queries = spread
    assert len(bank.values) > 1000
    assert len(queries.values) > 300
    ours = votes(bank, queries, ks=(1, 5, 20), temperature=temperature)
    for k, found in ours.items():
        expected = sklearn_votes(bank, queries, k, temperature)
        assert (found.numpy() == expected).all(), k
        assert 0.3 < (expected == queries.labels).mean() < 1, "neither chance nor all right: errors would show"


def test_the_temperature_and_k_matter(spread):
    bank, queries = spread
    sharp, usual, soft = (votes(bank, queries, temperature=t) for t in (0.01, 0.07, 10.0))
    assert (sharp[20] != usual[20]).any()
    assert (usual[20] != soft[20]).any()
    assert (usual[20] != usual[1]).any()
    # Sharp enough, the nearest alone decides, and nothing overflows.
    assert torch.equal(votes(bank, queries, ks=(200,), temperature=1e-9)[200], usual[1])


@pytest.mark.parametrize("chunk", [1, 7, 50, 4096])
def test_pieces_are_a_matter_of_memory(spread, chunk):
    bank, queries = spread
    few = dataclasses.replace(queries, values=queries.values[:60])
    expected = votes(bank, few)
    found = votes(bank, few, chunk=chunk)  # with 1 the bank is cut into 23 pieces, with 7 into 4
    assert all(torch.equal(found[k], expected[k]) for k in expected)


@pytest.mark.parametrize("chunk", [1, 3, 4, 100])
def test_of_equally_near_ones_the_first_come(chunk):
    bank = torch.tensor([0.5, 1.0, 1.0, 0.2, 1.0, 0.5, 0.5])[:, None]
    values, ids = nearest(bank, torch.ones(2, 1), 5, chunk)
    assert ids.tolist() == [[1, 2, 4, 0, 5]] * 2
    assert values.tolist() == [[1.0, 1.0, 1.0, 0.5, 0.5]] * 2
    assert nearest(bank, torch.ones(2, 1), 2, chunk)[1].tolist() == [[1, 2]] * 2


@pytest.mark.parametrize("chunk", [16, 1000])
def test_the_nearest_are_a_full_sort_s(chunk):
    generator = torch.Generator().manual_seed(0)
    bank = torch.randint(-2, 3, (500, 4), generator=generator).float()  # whole numbers: many exact ties
    queries = torch.randint(-2, 3, (40, 4), generator=generator).float()
    products = (queries @ bank.T).numpy()
    expected = np.argsort(-products, axis=1, kind="stable")[:, :30]
    assert (nearest(bank, queries, 30, chunk)[1].numpy() == expected).all()


def test_of_equal_votes_the_lower_class_wins():
    bank, labels = torch.eye(3)[[0, 0, 1]], torch.tensor([2, 1, 0])
    found = neighbour_votes(bank, labels, torch.eye(3)[:1], ks=(1, 2), temperature=0.07, num_classes=3)
    assert {k: v.tolist() for k, v in found.items()} == {1: [2], 2: [1]}


# --- the features ---


def test_features_are_the_model_s_own(model, digits, features):
    one_by_one = torch.cat([model.features(digits[1].read(index)) for index in range(40)])
    error = np.abs(features[1].values[:40] - one_by_one.numpy()).max() / np.abs(one_by_one.numpy()).max()
    assert error < 2e-6  # measured 0; elsewhere other batches may add up in another order
    assert features[1].labels[:40].tolist() == [digits[1].label(index) for index in range(40)]
    assert features[1].indices.tolist() == list(range(len(digits[1])))


def test_workers_change_no_bit_and_a_second_time_gives_the_same(model, digits, features):
    for workers in (0, 2):
        again = extract(model, digits[1], batch_size=100, workers=workers, with_labels=True)
        assert np.array_equal(again.values, features[1].values)
        assert np.array_equal(again.labels, features[1].labels)


def test_pools_layers_and_sizes_reach_the_encoder(model, digits):
    part = digits[1].read(0)
    grid = extract(model, digits[1], pool="grid", image_size=(12, 16), batch_size=200)
    assert grid.values.shape == (len(digits[1]), 6, 8, 24)
    mean = extract(model, digits[1], pool="mean", layer=1, batch_size=200)
    expected = model.features(model.prepare(part), pool="mean", layer=1)
    assert np.allclose(mean.values[:1], expected.numpy(), atol=1e-5)
    assert np.allclose(extract(model, digits[1], pool="mean", batch_size=200).values[0], mean.values[0]) is False


def test_small_images_keep_their_margin(digits, tmp_path):
    assert crop_fraction_for(digits[0], (8, 8)) == 1.0  # seven of eight pixels, enlarged, would be less than there is
    Image.new("RGB", (40, 60)).save(tmp_path / "a.png")
    assert crop_fraction_for(open_source(str(tmp_path)), (32, 32)) == 224 / 256
    assert crop_fraction_for(open_source(str(tmp_path)), (36, 36)) == 1.0
    assert crop_fraction_for(open_source(str(tmp_path)), (256, 256)) == 1.0


def test_the_margin_reaches_the_crop(model, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 1), np.uint8)
    Image.fromarray(image[..., 0]).save(tmp_path / "a.png")
    for crop_fraction, cut in ((None, 0), (1.0, 0), (224 / 256, 4), (0.5, 16)):
        found = extract(model, open_source(str(tmp_path)), crop_fraction=crop_fraction).values
        expected = model.features(image[cut : 64 - cut, cut : 64 - cut]).numpy()
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()  # measured 0


def test_what_is_not_finite_is_a_fault(pixel_run, digits):
    broken = load(str(pixel_run), "cpu")
    broken.encoder.cls_token.data[:] = float("nan")
    with pytest.raises(Fault, match="features of 363 of 363 images are not finite"):
        extract(broken, digits[1], batch_size=200)


@pytest.mark.parametrize(("size", "advice"), [(2, "--batch-size"), (1, "--image-size")])
def test_short_memory_is_refused_with_advice(model, digits, monkeypatch, size, advice):
    def features(model, images, **settings):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(EncoderModel, "features", features)
    with pytest.raises(RequestError, match=f"out of memory with {size} images at a time: give a smaller {advice}"):
        extract(model, digits[1], batch_size=size)


# --- several processes ---


def knn_in_a_process(config: KnnConfig, folder: str) -> None:
    """Run the command; keep the features that this process got on the way."""

    def kept(model, source, **settings):
        found = extract(model, source, **settings)
        rank = settings["processes"].rank
        np.savez(Path(folder) / f"{settings['title']}-{rank}.npz", **dataclasses.asdict(found))
        return found

    knn_module.extract = kept
    knn(config)


@pytest.mark.slow
def test_two_processes_find_what_one_finds(config, model, labelled, tmp_path):
    """27 images in batches of 4: one process takes 16, the other 11, one of which cannot be read."""
    log, two = tmp_path / "log", dataclasses.replace(config, out=str(tmp_path / "two"))
    assert wait(start("--version", log, 2, partial(knn_in_a_process, two, str(tmp_path)))) == [0, 0], said(log)
    for part, count in (("train", 26), ("val", 9)):
        alone = extract(model, open_source(str(labelled), part), batch_size=4, with_labels=True)
        assert len(alone.indices) == count
        for rank in (0, 1):
            with np.load(tmp_path / f"{part}-{rank}.npz", allow_pickle=True) as found:
                assert np.array_equal(found["values"], alone.values)
                assert np.array_equal(found["indices"], alone.indices)
                assert np.array_equal(found["labels"], alone.labels)
                assert found["bad"].item() == alone.bad
    together = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert {**together, "seconds": 0} == {**knn(config), "seconds": 0}
    assert said(log).count("top1 ") == 2, "only the first process speaks"


# --- the command ---


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Class folders of 27 and 10 digits, an image in each part cut short."""
    folder, digits = tmp_path_factory.mktemp("labelled"), open_source("embedded:digits", "train")
    for part, numbers in (("train", range(27)), ("val", range(27, 37))):
        for number in numbers:
            path = folder / part / f"digit {digits.label(number) % 3}" / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(digits.read(number)[..., 0]).save(path)
    for part in ("train", "val"):
        path = sorted((folder / part).rglob("*.png"))[-1]
        path.write_bytes(path.read_bytes()[:50])
    return folder


@pytest.fixture
def config(pixel_run, labelled, tmp_path):
    return KnnConfig(
        data=str(labelled),
        init=str(pixel_run),
        out=str(tmp_path / "run"),
        k=(3, 5),
        max_bad=0.1,
        batch_size=4,
        device="cpu",
        workers=0,
    )


def test_what_a_run_leaves(config, model, labelled, tmp_path, capsys):
    summary = knn(config)
    out = tmp_path / "run"
    assert json.loads((out / "summary.json").read_text()) == summary
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "quarantine.jsonl", "summary.json"]
    bank, queries = (extract(model, open_source(str(labelled), part), with_labels=True) for part in ("train", "val"))
    for name, k in (("top1", 3), ("top1_k5", 5)):
        right = sklearn_votes(bank, queries, k, 0.07) == queries.labels
        assert summary[name] == pytest.approx(100 * right.mean())
    counts = {name: summary[name] for name in ("images", "train_images", "unreadable", "bad_inputs", "classes", "k")}
    assert counts == {"images": 9, "train_images": 26, "unreadable": 1, "bad_inputs": 2, "classes": 3, "k": 3}
    assert (summary["status"], summary["report"]) == ("complete", "val")
    assert summary["top1_lower_bound"] == pytest.approx(summary["top1"] * 9 / 10)
    names = [json.loads(line)["name"] for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [name.split("/")[0] for name in names] == ["train", "val"]
    printed = capsys.readouterr().out
    assert f"top1 {summary['top1']:.2f} % with k = 3" in printed
    assert f"top1 {summary['top1_k5']:.2f} % with k = 5" in printed
    assert KnnConfig.from_dict(json.loads((out / "config.json").read_text())).k == (3, 5)


def test_a_finished_run_is_never_replaced_and_a_failed_one_is(config, labelled, tmp_path):
    with pytest.raises(
        RequestError, match=r"1 of 27 images of train cannot be read: 'train/digit 2/.*more than --max-"
    ):
        knn(dataclasses.replace(config, max_bad=0.01))
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == {"status": "failed"}
    assert (tmp_path / "run" / "quarantine.jsonl").read_text().count("\n") == 1
    knn(config)
    before = snapshot(tmp_path)
    with pytest.raises(RequestError, match="exists already and is not empty: choose another --out"):
        knn(config)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": (3, 28)}, "--k got 28, but there are 27 training images"),
        ({"k": (27,)}, "--k got 27, but there are 26 training images"),  # one of them cannot be read
        ({"image_size": 9}, "a patch of 2 px does not divide an image of 9x9 px"),
        ({"layer": 2}, "--layer got 2: it must be at least 1 and at most 1"),
        ({"init": "nowhere"}, "nowhere"),
    ],
)
def test_wrong_requests(config, changes, message):
    with pytest.raises(RequestError, match=message):
        knn(dataclasses.replace(config, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": ()}, "--k got nothing"),
        ({"k": (5, 5)}, "--k got a number twice: 5 5"),
        ({"k": (0,)}, "--k got 0: it must be at least 1"),
        ({"temperature": 0.0}, "--temperature got 0: it must be above 0"),
        ({"pool": "grid"}, "--pool got 'grid'"),
        ({"precision": "fp16"}, "--precision got 'fp16'"),
    ],
)
def test_wrong_settings(config, changes, message):
    with pytest.raises(RequestError, match=message):
        dataclasses.replace(config, **changes)


def test_several_labels_an_image(config, labelled, tmp_path):
    names = sorted(os.path.relpath(path, labelled) for path in labelled.rglob("*.png"))
    rows = [f"{name},{'a;b' if number % 2 else 'a'}" for number, name in enumerate(names)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,labels", *rows]) + "\n")
    with pytest.raises(RequestError, match="several labels have no nearest class"):
        knn(dataclasses.replace(config, label_file=str(tmp_path / "labels.csv")))

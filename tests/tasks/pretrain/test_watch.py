"""Watching on labels: the right images, the right figures, and not a bit of difference to the training."""

import json
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from openmae.config import Preprocessing, PretrainConfig, ResolvedPretrainConfig, ViTShape
from openmae.data.labels.subsets import labels_of
from openmae.data.preprocess import normalise
from openmae.errors import RequestError
from openmae.inference.load import load
from openmae.machine.signals import EvaluationStopped, StopRequest
from openmae.model.vit import ViT
from openmae.tasks.pretrain.held_out import pooled_features
from openmae.tasks.pretrain.pretrain import pretrain
from openmae.tasks.pretrain.watch import Watch, open_watch, predict_by_neighbours, predict_by_probe

from ...shared import metrics, pixel_config, same_training_state, untimed


def put_classes(root, **counts):
    """`put_classes(root, train_cat=3)`: three grey images in root/train/cat, brighter from class to class."""
    for number, (where, count) in enumerate(counts.items()):
        folder = root / where.replace("_", "/")
        folder.mkdir(parents=True)
        for image in range(count):
            Image.new("L", (8, 8), 40 * number + image).save(folder / f"{image:03}.png")
    return root


def names(source):
    return {source.name(index) for index in range(len(source))}


def watched(data, **changes):
    return open_watch(PretrainConfig(data=str(data), out="unused", **{"watch": "knn", **changes}))


def settled(run, **changes):
    values = json.loads((run / "config.json").read_text())
    return ResolvedPretrainConfig.from_dict({**values, **changes}), Preprocessing.from_dict(values["preprocessing"])


# --- which images ---


def test_off_unless_asked_for():
    assert open_watch(PretrainConfig(data="nowhere", out="unused")) is None


def test_queries_are_of_the_val_part(tmp_path):
    data = put_classes(tmp_path / "d", train_a=20, train_b=20, val_a=4, val_b=4)
    found = watched(data)
    assert names(found.queries) == {f"val/{name}/{i:03}.png" for name in "ab" for i in range(4)}
    assert all(name.startswith("train/") for name in names(found.bank))


def test_without_val_they_are_a_split_of_train_never_the_test_part(tmp_path):
    data = put_classes(tmp_path / "d", train_a=20, train_b=20, test_a=4, test_b=4)
    found = watched(data)
    assert not names(found.bank) & names(found.queries)
    assert names(found.bank) | names(found.queries) == {f"train/{name}/{i:03}.png" for name in "ab" for i in range(20)}
    again = watched(data)
    assert names(again.queries) == names(found.queries)


def test_with_val_and_test_they_are_of_val(tmp_path):
    data = put_classes(tmp_path / "d", train_a=9, train_b=9, val_a=4, val_b=4, test_a=2, test_b=2)
    found = watched(data)
    assert names(found.queries) == {f"val/{name}/{i:03}.png" for name in "ab" for i in range(4)}
    assert len(found.bank) == 18


def test_at_most_so_many_with_classes_in_proportion(tmp_path):
    data = put_classes(tmp_path / "d", train_a=60, train_b=20, val_a=30, val_b=10)
    found = watched(data, watch_images=16)
    assert np.bincount(labels_of(found.bank)).tolist() == [12, 4]
    assert np.bincount(labels_of(found.queries)).tolist() == [12, 4]


def test_other_data_can_be_watched(tmp_path):
    data = put_classes(tmp_path / "d", a=10, b=10)
    found = watched("embedded:photos", watch_data=str(data))
    assert found.source_lines == (f"parts      train from all of {data} (20 images)",)
    assert names(found.bank) | names(found.queries) == {f"{name}/{i:03}.png" for name in "ab" for i in range(10)}


# --- what is refused ---


def test_data_without_labels_is_refused_in_one_line(tmp_path):
    with pytest.raises(RequestError, match=r"--watch knn: embedded:photos has no labels; --watch-data takes labelled"):
        watched("embedded:photos")
    with pytest.raises(RequestError, match=r"no such file or folder: .*nowhere.*--watch-data"):
        watched("embedded:digits", watch_data=str(tmp_path / "nowhere"))


def test_fewer_images_than_classes_are_refused():
    with pytest.raises(RequestError, match=r"--watch-images 9: embedded:digits has 10 classes"):
        watched("embedded:digits", watch_images=9)
    assert len(watched("embedded:digits", watch_images=10).bank) == 10


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"watch": "svm"}, r"--watch got 'svm': .*known are knn, probe"),
        ({"watch_data": "embedded:digits"}, r"--watch-data is for --watch"),
        ({"watch_every": 5}, r"--watch-every is for --watch"),
        ({"watch": "knn", "watch_every": 0}, r"--watch-every got 0"),
        ({"watch": "knn", "watch_images": 0}, r"--watch-images got 0"),
    ],
)
def test_wrong_settings_are_refused(settings, said):
    with pytest.raises(RequestError, match=said):
        PretrainConfig(data="embedded:digits", out="unused", **settings)


@pytest.mark.parametrize(
    ("width", "said"),
    [
        (None, r"--watch knn: none of 7 images looked at can be read"),
        (1, r"--watch knn: none of its images can be used, the first '.*png' .*--watch-data"),
    ],
)
def test_images_of_which_none_can_be_used_are_refused(tmp_path, pixel_run, width, said):
    data = put_classes(tmp_path / "d", a=4, b=4)
    for path in data.rglob("*.png"):
        if width is None:
            path.write_bytes(b"no image")
        else:
            Image.new("L", (width, width)).save(path)  # smaller than a patch
    config, preprocessing = settled(pixel_run, watch="knn", watch_data=str(data))
    with pytest.raises(RequestError, match=said):
        Watch(open_watch(config), config, preprocessing)


# --- what is found ---


@pytest.fixture(scope="module")
def features(pixel_run):
    """Class tokens of the digits by the public interface, with their labels: bank, then queries."""
    config, preprocessing = settled(pixel_run, watch="probe", watch_images=200)
    watch = Watch(open_watch(config), config, preprocessing)
    model = load(str(pixel_run), "cpu")
    found = []
    for images, labels in ((watch.bank, watch.bank_labels), (watch.queries, watch.query_labels)):
        tokens = model.features(list(images.permute(0, 2, 3, 1).numpy()))  # pooled as `openmae knn` does
        found.append((tokens, labels))
    return found


def test_images_and_labels_belong_together(pixel_run):
    config, preprocessing = settled(pixel_run, watch="knn", watch_images=100)
    data = open_watch(config)
    watch = Watch(data, config, preprocessing)
    assert watch.bank.dtype == torch.uint8
    for index in range(0, 100, 9):
        assert torch.equal(watch.bank[index, 0], torch.from_numpy(data.bank.read(index)[..., 0]))
        assert watch.bank_labels[index] == data.bank.label(index)


def test_an_unreadable_image_is_left_out_with_its_label(tmp_path, pixel_run):
    data = put_classes(tmp_path / "d", train_a=5, train_b=5, val_a=3, val_b=3)
    (data / "train" / "a" / "001.png").write_bytes(b"no image")
    config, preprocessing = settled(pixel_run, watch="knn", watch_data=str(data))
    opened = open_watch(config)
    watch = Watch(opened, config, preprocessing)
    assert set(watch.bad) <= {"train/a/001.png"}
    assert len(watch.bank) == len(watch.bank_labels) == len(opened.bank) - len(watch.bad)
    brightness = watch.bank.float().mean(dim=(1, 2, 3)).numpy()
    assert ((brightness >= 40) == (watch.bank_labels == 1)).all()


def test_the_probe_is_a_logistic_regression(features, pixel_run):
    (bank, bank_labels), (queries, query_labels) = features
    mean, std = bank.numpy().mean(0), bank.numpy().std(0)
    probe = LogisticRegression(max_iter=2000).fit((bank.numpy() - mean) / std, bank_labels)
    expected = probe.predict((queries.numpy() - mean) / std)
    guesses = predict_by_probe(bank, bank_labels, queries)
    assert (guesses == expected).mean() >= 0.99  # measured: all 200
    config, preprocessing = settled(pixel_run, watch="probe", watch_images=200)
    model = load(str(pixel_run), "cpu").mae
    with StopRequest() as stop:
        found = Watch(open_watch(config), config, preprocessing).measure(model, torch.device("cpu"), stop)
    assert found == {"probe_top1": pytest.approx(100 * (expected == query_labels).mean(), abs=1)}
    assert found["probe_top1"] > 30  # of 10 digits


def test_neighbours_vote_as_in_scikit_learn(features):
    (bank, bank_labels), (queries, query_labels) = features
    by_cosine = KNeighborsClassifier(10, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    expected = by_cosine.fit(bank.numpy(), bank_labels).predict(queries.numpy())
    guesses = predict_by_neighbours(bank, bank_labels, queries, 10)
    assert (guesses == expected).mean() >= 0.99
    assert (guesses == query_labels).mean() > 0.3


def test_a_bank_of_one_class_answers_that_class():
    assert predict_by_probe(torch.randn(4, 3), np.full(4, 2), torch.randn(5, 3)).tolist() == [2] * 5


def test_a_stop_ends_it_early(pixel_run):
    config, preprocessing = settled(pixel_run, watch="probe", watch_images=50)
    watch = Watch(open_watch(config), config, preprocessing)
    assert threading.current_thread() is threading.main_thread()
    with StopRequest() as stop:
        stop.received = "SIGTERM"
        with pytest.raises(EvaluationStopped):
            watch.measure(load(str(pixel_run), "cpu").mae, torch.device("cpu"), stop)
        stop.received = None


@pytest.mark.parametrize("class_token", [True, False])
def test_the_mean_is_of_every_patch(pixel_run, class_token):
    config, preprocessing = settled(pixel_run)
    shape = ViTShape(
        image_size=(8, 8), patch_size=4, channels=1, width=8, depth=1, num_heads=2, class_token=class_token
    )
    encoder = ViT(shape)
    images = torch.randint(256, (3, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = pooled_features(encoder, images, config, preprocessing, torch.device("cpu"), StopRequest())
    with torch.no_grad():
        patches = encoder(normalise(images, preprocessing))[:, -4:]
    assert torch.equal(found, patches.mean(1))


# --- in a run ---


@pytest.mark.slow
@pytest.mark.parametrize("watch", ["knn", "probe"])
def test_training_is_the_same_to_the_bit(digits_config, pixel_run, tmp_path, capsys, watch):
    out = tmp_path / "run"
    summary = pretrain(pixel_config(digits_config, out, watch=watch, watch_every=6, watch_images=200))
    same_training_state(pixel_run, out)
    name = f"{watch}_top1"
    assert [line["step"] for line in metrics(out) if name in line] == [6, 12]
    unwatched = [{key: value for key, value in line.items() if key != name} for line in untimed(metrics(out))]
    assert [line for line in unwatched if len(line) > 3] == untimed(metrics(pixel_run))
    assert summary[name] == metrics(out)[-1][name]
    assert 10 < summary[name] <= 100
    assert f"{watch} top1 " in capsys.readouterr().out

"""ImageNet-C, -A, -R and -Sketch as folders: classes, layouts, and the mean corruption error."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from openmae.data.sources.imagenet_variants import (
    ALEXNET,
    EXTRA,
    IMAGENET,
    IMAGENET_A,
    IMAGENET_C,
    IMAGENET_R,
    IMAGENET_SKETCH,
    SEVERITIES,
    class_parts,
    corruption_errors,
    corruption_parts,
    known_classes,
    missing_corruptions,
    open_part,
    standard_classes,
    synsets_of,
)
from openmae.errors import RequestError

ARCHIVES = {  # as the released archives hold them (Hendrycks & Dietterich, 2019)
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    "extra": EXTRA,
}
ONE = "n01440764"


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)


# --- classes ---


def test_the_classes_are_the_standard_ones():
    """By timm's own API, its index lists (a second route to the same classes) and what is known of the sets."""
    from importlib.resources import files

    from timm.data import ImageNetInfo

    standard = standard_classes(IMAGENET)
    assert list(standard) == ImageNetInfo("imagenet-1k").label_names() == sorted(standard)
    assert (len(standard), standard[0], standard[999]) == (1000, "n01440764", "n15075141")  # tench, toilet tissue
    assert IMAGENET_C.classes == IMAGENET_SKETCH.classes == standard
    for variant, name in ((IMAGENET_A, "a"), (IMAGENET_R, "r")):
        indices = (files("timm.data") / "_info" / f"imagenet_{name}_indices.txt").read_text().split()
        assert [standard[int(i)] for i in indices] == list(variant.classes)
        assert len(set(variant.classes)) == 200
    assert "n01498041" in IMAGENET_A.classes  # stingray
    assert "n01443537" in IMAGENET_R.classes  # goldfish
    assert "n01443537" not in IMAGENET_A.classes


@pytest.mark.slow
def test_the_classes_are_read_without_importing_timm():
    code = (
        "import sys; from openmae.data.sources.imagenet_variants import IMAGENET_A; IMAGENET_A.classes; "
        "assert 'timm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_classifiers_classes_become_synsets():
    standard = standard_classes(IMAGENET)
    assert synsets_of(("n02", "n01440764", "x")[1:2]) == ((ONE,), False)
    assert synsets_of(standard[::-1]) == (standard[::-1], False)  # named: their own order is believed
    assert synsets_of(tuple(map(str, range(1000)))) == (standard, True)
    for wrong, why in (
        (tuple(map(str, range(999))), "999 classes, one named '0'"),
        ((ONE, "cat"), "2 classes, one named 'cat'"),
        ((*standard[:999], "cat"), "1000 classes, one named 'cat'"),  # not by order: most are named
        ((ONE, ONE), "a class twice"),
    ):
        with pytest.raises(RequestError, match=why):
            synsets_of(wrong)


def test_only_classes_of_the_set_that_the_model_knows_compete(tmp_path):
    some = IMAGENET_A.classes[:3]
    image(tmp_path / "a" / some[1] / "1.png")
    parts = class_parts(IMAGENET_A, str(tmp_path / "a"))
    goldfish = "n01443537"  # of ImageNet, not of ImageNet-A
    assert known_classes(IMAGENET_A, (some[1], goldfish, some[0]), parts) == some[:2]
    with pytest.raises(RequestError, match=f"{some[1]}, a class that the classifier was not trained on"):
        known_classes(IMAGENET_A, (some[0],), parts)
    image(tmp_path / "a" / goldfish / "1.png")
    with pytest.raises(RequestError, match=f"{goldfish}, which is none of ImageNet-A's 200 classes"):
        known_classes(IMAGENET_A, (some[1], goldfish), class_parts(IMAGENET_A, str(tmp_path / "a")))


# --- folders ---


def test_grouped_and_flat_layouts_are_the_same_parts(tmp_path):
    for group, corruptions in ARCHIVES.items():
        for corruption in corruptions:
            for severity in SEVERITIES:
                image(tmp_path / "grouped" / group / corruption / str(severity) / ONE / "1.png")
                image(tmp_path / "flat" / corruption / str(severity) / ONE / "1.png")
    grouped, extra = corruption_parts(str(tmp_path / "grouped"))
    flat, extra_too = corruption_parts(str(tmp_path / "flat"))
    places = [(part.corruption, part.severity, part.classes) for part in flat]
    assert places == [(part.corruption, part.severity, part.classes) for part in grouped]
    assert places == [(corruption, severity, (ONE,)) for corruption in ALEXNET for severity in SEVERITIES]
    assert sorted(extra) == sorted(extra_too) == sorted(EXTRA)
    assert not {place[0] for place in places} & set(EXTRA)
    assert missing_corruptions({place[:2]: 0 for place in places}) == []


def test_a_folder_around_the_set_is_looked_through(tmp_path):
    image(tmp_path / "imagenet-r" / "inner" / ONE / "1.png")
    (tmp_path / "imagenet-r" / "README.txt").touch()
    (part,) = class_parts(IMAGENET_R, str(tmp_path))
    assert (part.folder.name, part.classes, part.name) == ("inner", (ONE,), "imagenet-r")
    image(tmp_path / "c" / "tars" / "weather" / "fog" / "3" / ONE / "1.png")
    ((part,), extra) = corruption_parts(str(tmp_path / "c"))
    assert (part.name, extra) == ("imagenet-c/fog/3", [])


@pytest.mark.parametrize(
    ("files", "why"),
    [
        (["gausian_noise/1/n01440764/1.png", "fog/1/n01440764/1.png"], "did you mean gaussian_noise"),
        (["noise/fog/1/n01440764/1.png", "fog/1/n01440764/1.png"], "holds fog twice"),
        (["fog/6/n01440764/1.png"], "severities are folders named 1 to 5"),
        (["fog/1/1.png"], "an image outside the class folders"),
        (["fog/1/n01440764/1.png", "fog/1/stray.png"], "stray.png, an image outside the class folders"),
        (["spatter/1/n01440764/1.png"], "none of the 15 corruptions"),
        ([], "none of the 15 corruptions"),
    ],
)
def test_other_layouts_of_imagenet_c_are_refused(tmp_path, files, why):
    for file in files:
        image(tmp_path / file)
    with pytest.raises(RequestError, match=why):
        corruption_parts(str(tmp_path))


def test_other_layouts_of_class_folders_are_refused(tmp_path):
    for root, why in ((tmp_path / "nothing", "cannot be read as a folder"), (tmp_path, "holds no class folders")):
        with pytest.raises(RequestError, match=why):
            class_parts(IMAGENET_A, str(root))
    (tmp_path / ONE).mkdir()
    (part,) = class_parts(IMAGENET_R, str(tmp_path))
    with pytest.raises(RequestError, match="no images in"):
        open_part(part, (ONE,))


def test_labels_count_through_the_classes_that_are_asked_for(tmp_path):
    two = "n01443537"
    for name in (ONE, two):
        image(tmp_path / name / "deeper" / "1.png")
    (part,) = class_parts(IMAGENET_SKETCH, str(tmp_path))
    source = open_part(part, ("n01484850", two, ONE))
    assert {source.name(i): source.label(i) for i in range(2)} == {f"{ONE}/deeper/1.png": 2, f"{two}/deeper/1.png": 1}


# --- the mean corruption error ---


def test_alexnets_own_errors_give_100():
    errors = {(corruption, s): ALEXNET[corruption] for corruption in ALEXNET for s in SEVERITIES}
    assert list(corruption_errors(errors).values()) == pytest.approx([100.0] * 15)


def test_a_corruption_error_by_hand():
    """Σ (.2 .3 .4 .5 .6) / (5 × .819324) = 2 / 4.09662 = .488207."""
    values = corruption_errors({("fog", s): 0.1 * (s + 1) for s in SEVERITIES})
    assert values == {"fog": pytest.approx(48.8207, abs=1e-4)}


def test_a_corruption_without_all_severities_has_no_figure():
    found = {("fog", s): 0.5 for s in (1, 2, 4)} | {("snow", s): 0.5 for s in SEVERITIES}
    assert set(corruption_errors(found)) == {"snow"}
    missing = missing_corruptions(found)
    assert len(missing) == 14
    assert "fog 3 5" in missing
    assert "gaussian_noise" in missing

"""Class names from text, tables and JSON."""

import json

import pytest

from openmae.data.masks.class_names import read_class_names
from openmae.errors import RequestError

NAMES = {0: "road", 1: "sky, cloud", 7: "Bäume"}


def read(tmp_path, text, name="names.txt"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_class_names(str(path))


def test_one_name_a_line(tmp_path):
    assert read(tmp_path, "\ufeffwall\nfloor, flooring\r\ntree\n\n") == {0: "wall", 1: "floor, flooring", 2: "tree"}
    assert read(tmp_path, "wall") == {0: "wall"}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('0,road\n1,"sky, cloud"\n7,Bäume\n', "names.txt"),
        ('id,name\n0,road\n1,"sky, cloud"\n7,Bäume\n', "names.csv"),
        ("name\tid\nroad\t0\nsky, cloud\t1\nBäume\t7\n", "names.tsv"),
        ("Idx\tRatio\tStuff\tName\n0\t.1\t1\troad\n1\t.1\t1\tsky, cloud\n7\t.2\t0\tBäume\n", "objects.txt"),
        (json.dumps(NAMES), "names.json"),
        (json.dumps([{"id": key, "name": name, "isthing": 1} for key, name in NAMES.items()]), "names"),
    ],
)
def test_numbered(tmp_path, text, name):
    assert read(tmp_path, text, name) == NAMES


def test_lists(tmp_path):
    assert read(tmp_path, '["a", "b"]', "x.json") == {0: "a", 1: "b"}
    assert read(tmp_path, "name\na\nb\n", "x.csv") == {0: "a", 1: "b"}


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", "x.txt", "is empty"),
        ("\n \n", "x.txt", "is empty"),
        ("a\n\nb", "x.txt", "class 1 has an empty name"),
        ('["a", ""]', "x.json", "class 1 has an empty name"),
        ("{", "x.json", "is not JSON that can be read"),
        ('{"a": 0}', "x.json", "holds other JSON"),
        ('{"0": 1}', "x.json", "holds other JSON"),
        ("[1, 2]", "x.json", "holds other JSON"),
        ("3", "x.json", "holds other JSON"),
        ("[]", "x.json", "has no names"),
        ('{"0": "a", "0": "b"}', "x.json", "class 0 is both a and b"),
        ('{"-1": "a"}', "x.json", "class number -1"),
        ("70000,a\n1,b", "x.csv", "class number 70000"),
        ("id,name\n0,a\nb\n", "x.csv", "got the row b"),
        ("0,1,a\n1,1,b\n", "x.csv", "got the row 0,1,a"),
        ("x,y,z\n0,1,a\n", "x.csv", "has columns x, y, z"),
        ("0,a\n0,b\n", "x.csv", "class 0 is both a and b"),
        (b"\xe4", "x.txt", "is not UTF-8"),
    ],
)
def test_refusals(tmp_path, text, name, message):
    with pytest.raises(RequestError, match=message) as caught:
        read(tmp_path, text, name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("names.csv", ",\n", "has no names"),
        ("names.csv", f"{'9' * 5000},a\n1,b\n", "got the row"),
        ("names.csv", "-1,a\n0,b\n", "got the row -1,a"),
        ("names.csv", "²,a\n3,b\n", "has columns|got the row"),
        ("names.json", '[{"id": 1e999, "name": "a"}]', "holds other JSON"),
        ("names.json", '[{"id": 0.5, "name": "a"}, {"id": 1.7, "name": "b"}]', "holds other JSON"),
        ("names.json", '[{"id": true, "name": "a"}]', "holds other JSON"),
        ("names.txt", "0: road\n1: sky\n", "begins each line with a number, as 0: road"),
        ("names.txt", "0 road\n1 sky\n", "begins each line with a number"),
        ("names.txt", "a\na\nb\n", "classes 0 and 1 are both called a"),
    ],
)
def test_numbers_that_are_none_and_names_that_stand_twice_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(RequestError, match=message):
        read_class_names(str(tmp_path / name))

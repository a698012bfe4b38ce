"""The file of --classes in all its forms."""

from __future__ import annotations

import pytest

from unetfast.data.class_file import ClassRow, read_class_file
from unetfast.errors import UserError


def read(tmp_path, text, name="classes.txt"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return read_class_file(path)


ROAD_CAR = (ClassRow("road", 0, (128, 64, 128)), ClassRow("car", 1, (0, 0, 142)))


@pytest.mark.parametrize(
    "text",
    [
        "road 128 64 128\ncar 0 0 142\n",
        "road\t128\t64\t128\ncar\t0\t0\t142",
        "road,128,64,128\ncar, 0, 0, 142\n\n",
        "road;128;64;128\ncar;0;0;142",
        "road,#804080\ncar,#00008E",
        "road #804080\ncar #00008e\n",
        "# a comment\nroad 128 64 128\n\ncar 0 0 142",
        "name,r,g,b\nroad,128,64,128\ncar,0,0,142",
        "name;color\nroad;#804080\ncar;#00008e",
        "\ufeffid,name,red,green,blue\n0,road,128,64,128\n1,car,0,0,142",
        "road 128 64 128\r\ncar 0 0 142\r\n",
    ],
)
def test_forms(tmp_path, text):
    assert read(tmp_path, text) == ROAD_CAR


def test_names_alone(tmp_path):
    rows = read(tmp_path, "background\ntraffic light\nchest of drawers\ncar, auto\n")
    assert [(row.name, row.value, row.color) for row in rows] == [
        ("background", 0, None),
        ("traffic light", 1, None),
        ("chest of drawers", 2, None),
        ("car, auto", 3, None),
    ]


def test_names_of_several_words_with_colours(tmp_path):
    assert read(tmp_path, "traffic light 1 2 3\n")[0] == ClassRow("traffic light", 0, (1, 2, 3))
    assert read(tmp_path, '"car, auto",1,2,3\n')[0].name == "car, auto"


def test_labelme(tmp_path):
    rows = read(tmp_path, "__ignore__\n_background_\naeroplane\n")
    assert [(row.name, row.value, row.ignored) for row in rows] == [
        ("__ignore__", -1, True),
        ("background", 0, False),
        ("aeroplane", 1, False),
    ]


def test_ignore_in_the_middle_takes_its_number(tmp_path):
    rows = read(tmp_path, "a\n__ignore__\nb\n")
    assert [(row.value, row.ignored) for row in rows] == [(0, False), (1, True), (2, False)]


def test_values_of_a_table(tmp_path):
    rows = read(tmp_path, "value,name\n0,background\n255,cell\n", "classes.csv")
    assert [(row.value, row.name) for row in rows] == [(0, "background"), (255, "cell")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no class"),
        ("\n# nothing\n", "holds no class"),
        ("car\nroad\ncar\n", "class 'car' stands twice"),
        ("car 1 2 300\n", "line 1: colour 1 2 300 is not within 0..255"),
        ("name,r,g,b\ncar,1,2\n", "line 2: 3 columns, the header has 4"),
        ("name,r,g,b\ncar,1,2,x\n", "line 2: invalid literal"),
        ("name,r,g,b\ncar,1,2,256\n", "line 2: colour"),
        ("name,r,g,b\n", "holds a header and no class"),
        ("value,name\n1,a\n1,b\n", "value 1 stands twice"),
        ("value,name\n0,a\n70000,b\n", "line 3: value 70000: values of masks lie between -32768 and 65535"),
        ("car,1,2\n", "line 1: 'car,1,2' is of no known form"),
        ("car,#12\n", "is of no known form"),
    ],
)
def test_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, text)
    assert str(tmp_path) in str(caught.value)


def test_unreadable(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_class_file(tmp_path / "gone.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match="is not UTF-8 text"):
        read_class_file(tmp_path / "binary.txt")


@pytest.mark.real
def test_real_files(real_data):
    rows = read_class_file(real_data / "ade20k" / "ade20k_150_classes.csv")
    assert len(rows) == 150
    assert rows[0] == ClassRow("wall", 1, (120, 120, 120))
    assert len(read_class_file(real_data / "folder" / "voc_labelme" / "class_names.txt")) == 21

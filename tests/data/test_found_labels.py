"""What the values in masks mean: taken for granted where it is one thing, asked for where it is not."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from unetfast.data.found_labels import default_colors, find_labels
from unetfast.data.masks import parse_value_map
from unetfast.data.sample import FileSpan
from unetfast.errors import BadSampleError, UserError


@pytest.fixture
def find(tmp_path):
    """Write one mask for each list of values and find their labels; colours where values are tuples."""

    def run(*masks, classes=None, ignore=None, maps=(), dtype=np.uint8):
        spans = []
        for number, values in enumerate(masks):
            array = np.array([values], dtype)
            path = tmp_path / f"m{number}.{'png' if array.dtype == np.uint8 else 'npy'}"
            if array.dtype == np.uint8:
                Image.fromarray(array).save(path)
            else:
                np.save(path, array)
            spans.append(FileSpan(str(path)))
        classes_file = None
        if classes is not None:
            classes_file = tmp_path / "classes.txt"
            classes_file.write_text(classes)
        found = find_labels(
            spans, classes_file=classes_file, ignore_value=ignore, value_map=parse_value_map(list(maps)), where="SRC"
        )
        return found.labels, [found.read_mask(span)[0].tolist() for span in spans], [note for note, _ in found.notes]

    return run


def summary(labels):
    return [(info.name, info.value) for info in labels.classes], labels.ignore_value


def test_two_values_0_and_255(find):
    labels, ids, notes = find([0, 255], [0, 0])
    assert summary(labels) == ([("background", 0), ("foreground", 255)], None)
    assert ids == [[0, 1], [0, 0]]
    assert labels.mask_bits == 1
    assert notes == []
    assert [info.color for info in labels.classes] == [(0, 0, 0), (255, 255, 255)]


def test_counting_up(find):
    labels, ids, _ = find([0, 2], [1, 3])
    assert summary(labels) == ([("class_0", 0), ("class_1", 1), ("class_2", 2), ("class_3", 3)], None)
    assert ids == [[0, 2], [1, 3]]


def test_255_beside_three_classes_is_ignore(find):
    labels, ids, notes = find([0, 1], [2, 255])
    assert summary(labels) == ([("class_0", 0), ("class_1", 1), ("class_2", 2)], 255)
    assert ids == [[0, 1], [2, 255]]
    assert notes == ["value 255 in the masks is taken for ignored pixels"]


def test_255_at_the_end_of_a_row_of_classes(find):
    labels, _, _ = find(list(range(300)), dtype=np.uint16)
    assert (labels.num_classes, labels.ignore_value) == (300, None)
    with pytest.raises(UserError, match="all 256 values of a byte occur"):
        find(list(range(256)))
    assert find(list(range(256)), ignore=255)[0].num_classes == 255


def test_minus_one_is_ignore(find):
    labels, ids, notes = find([-1, 0, 1], dtype=np.int32)
    assert summary(labels) == ([("class_0", 0), ("class_1", 1)], -1)
    assert ids == [[255, 0, 1]]
    assert notes == ["value -1 in the masks is taken for ignored pixels"]


def test_ignore_option(find):
    assert summary(find([0, 1, 255], ignore=255)[0]) == ([("class_0", 0), ("class_1", 1)], 255)
    assert find([-1, 0, 1], ignore=-1, dtype=np.int32)[1:] == ([[255, 0, 1]], [])
    labels, ids, _ = find([0, 1, 2], ignore=0)
    assert summary(labels) == ([("class_1", 1), ("class_2", 2)], 0)
    assert ids == [[255, 0, 1]]
    labels, ids, _ = find([0, 1, 2], ignore=2)
    assert ids == [[0, 1, 255]]
    labels, ids, _ = find([0, 128, 255], ignore=128)
    assert summary(labels) == ([("background", 0), ("foreground", 255)], 128)
    assert ids == [[0, 255, 1]]


@pytest.mark.parametrize("value", [70000, -40000])
def test_ignore_that_no_mask_can_hold(find, value):
    with pytest.raises(UserError, match=rf"--ignore {value}: values of masks lie between -32768 and 65535"):
        find([0, 1], ignore=value)


def test_ignore_that_never_occurs_is_still_declared(find):
    labels, _, _ = find([0, 1], ignore=9)
    assert labels.has_ignore
    assert labels.mask_bits == 8


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0, 1, 255], np.uint8),
        ([1, 2, 3], np.uint8),
        ([0, 1, 2, 4], np.uint8),
        ([255], np.uint8),
        ([0, 7, 255], np.uint8),
        ([-2, 0, 1], np.int32),
    ],
)
def test_ambiguous_values_are_asked_for(find, values, dtype):
    with pytest.raises(UserError, match="can mean several things") as caught:
        find(values, values, dtype=dtype)
    text = str(caught.value)
    for value in values:
        assert f"{value} in 2 of 2 masks, first in m0" in text
    for option in ("--classes", "--ignore", "--map"):
        assert option in text


def test_resized_masks_are_recognised_in_the_message(find):
    with pytest.raises(UserError, match="resized or compressed"):
        find(list(range(0, 256, 5)))


def test_instance_masks_are_refused(find):
    with pytest.raises(UserError, match="more than 1024 values"):
        find(list(range(2000)), dtype=np.uint16)


def test_map(find):
    labels, ids, _ = find([0, 255], maps=["255=1"])
    assert summary(labels) == ([("class_0", 0), ("class_1", 255)], None)
    assert ids == [[0, 1]]
    labels, ids, _ = find([0, 7, 255], maps=["7=1", "255=ignore"])
    assert summary(labels) == ([("class_0", 0), ("class_1", 7)], 255)
    assert ids == [[0, 1, 255]]
    labels, ids, _ = find([0, 1, 2, 9], maps=["9=1"])
    assert summary(labels) == ([("class_0", 0), ("class_1", 1), ("class_2", 2)], None)
    assert ids == [[0, 1, 2, 1]]
    labels, ids, _ = find([5, 6], maps=["5=0,6=1"])
    assert summary(labels) == ([("class_0", 5), ("class_1", 6)], None)


def test_map_with_gaps_is_refused(find):
    with pytest.raises(UserError, match="with this --map the class ids are 0, 5"):
        find([0, 7], maps=["7=5"])
    with pytest.raises(UserError, match="with this --map the class ids are 0, 1, 255"):
        find([0, 7, 255], maps=["7=1"])


def test_classes_file(find):
    labels, ids, notes = find([0, 1, 2], classes="sky 1 2 3\nroad\ncar\nbus\n")
    assert labels.names == ["sky", "road", "car", "bus"]
    assert labels.classes[0].color == (1, 2, 3)
    assert ids == [[0, 1, 2]]
    assert notes == []


def test_masks_are_not_read_where_the_options_say_all(find, monkeypatch):
    monkeypatch.setattr("unetfast.data.found_labels._collect_values", lambda masks: pytest.fail("masks were read"))
    labels, ids, _ = find([0, 1, 255], classes="a\nb\n", ignore=255)
    assert summary(labels) == ([("a", 0), ("b", 1)], 255)
    assert ids == [[0, 1, 255]]


def test_classes_file_of_two_with_255(find):
    labels, ids, _ = find([0, 255], classes="background\ncell\n")
    assert summary(labels) == ([("background", 0), ("cell", 255)], None)
    assert ids == [[0, 1]]
    labels, ids, notes = find([0, 1, 255], classes="background\ncell\n")
    assert summary(labels) == ([("background", 0), ("cell", 1)], 255)
    assert ids == [[0, 1, 255]]
    assert notes == ["value 255 in the masks is taken for ignored pixels"]


def test_classes_file_leaves_strange_values_to_the_packer(find):
    with pytest.raises(BadSampleError, match="holds the values 0, 9, of which 9 belong to none"):
        find([0, 1], [0, 9], classes="a\nb\n")


def test_classes_file_with_ignored_rows(find):
    labels, ids, _ = find([0, 1, 255], classes="__ignore__\n_background_\ncat\n")
    assert summary(labels) == ([("background", 0), ("cat", 1)], 255)
    assert ids == [[0, 1, 255]]
    labels, ids, _ = find([-1, 0, 1], classes="__ignore__\n_background_\ncat\n", dtype=np.int32)
    assert labels.ignore_value == -1
    assert ids == [[255, 0, 1]]
    labels, ids, _ = find([0, 1, 2], classes="void\na\nb\n", ignore=0)
    assert summary(labels) == ([("a", 1), ("b", 2)], 0)
    assert ids == [[255, 0, 1]]
    with pytest.raises(UserError, match="every class of the --classes file is ignored"):
        find([0], classes="a\n", ignore=0)


def test_classes_file_with_map(find):
    labels, ids, _ = find([0, 100, 200], classes="a\nb\n", maps=["100=1", "200=ignore"])
    assert summary(labels) == ([("a", 0), ("b", 100)], 200)
    assert ids == [[0, 1, 255]]
    with pytest.raises(UserError, match=r"--map 7=2: SRC has the classes 0\.\.1"):
        find([0, 7], classes="a\nb\n", maps=["7=2"])


RED, GREEN, BLACK, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 0), (255, 255, 255)


def test_colours(find):
    labels, ids, _ = find([BLACK, RED], [RED, GREEN], classes="background 0 0 0\ncar 255 0 0\ntree 0 255 0\n")
    assert [info.value for info in labels.classes] == [BLACK, RED, GREEN]
    assert ids == [[0, 1], [1, 2]]
    labels, ids, _ = find([BLACK, RED, WHITE], classes="b 0 0 0\ncar 255 0 0\n__ignore__ 255 255 255\n")
    assert (labels.ignore_value, ids) == (WHITE, [[0, 1, 255]])
    labels, ids, _ = find([BLACK, RED, WHITE], classes="b 0 0 0\ncar 255 0 0\n", ignore=255)
    assert (labels.ignore_value, ids) == (WHITE, [[0, 1, 255]])
    labels, ids, _ = find([BLACK, RED, GREEN], maps=["#ff0000=0", "#000000=1", "#00ff00=ignore"])
    assert summary(labels) == ([("class_0", RED), ("class_1", BLACK)], GREEN)
    assert ids == [[1, 0, 255]]


def test_colours_without_a_table(find):
    with pytest.raises(BadSampleError, match="RGB mask without a colour table; its colours are #000000, #ff0000"):
        find([BLACK, RED])
    with pytest.raises(BadSampleError, match="RGB mask without a colour table"):
        find([BLACK, RED], classes="background\ncar\n")


def test_colour_mistakes(find):
    with pytest.raises(UserError, match="gives class 'car' no colour"):
        find([BLACK, RED], classes="background 0 0 0\ncar\n")
    with pytest.raises(UserError, match="#000000 stands for two classes"):
        find([BLACK, RED], classes="background 0 0 0\ncar 0 0 0\n")
    with pytest.raises(UserError, match="masks of SRC are RGB; name colours"):
        find([BLACK, RED], classes="background 0 0 0\ncar 255 0 0\n", maps=["1=0"])
    with pytest.raises(UserError, match="--ignore 300: the masks of SRC are RGB, whose values lie between 0 and 255"):
        find([BLACK, RED], classes="background 0 0 0\ncar 255 0 0\n", ignore=300)
    with pytest.raises(UserError, match="ids count up from 0"):
        find([BLACK, RED], maps=["#ff0000=3"])
    with pytest.raises(UserError, match="is not RGB; map its numbers"):
        find([0, 1], maps=["#ff0000=0"])
    with pytest.raises(BadSampleError, match="#00ff00 belong to none"):
        find([BLACK, GREEN], classes="background 0 0 0\ncar 255 0 0\n")


def test_grey_saved_as_rgb(find):
    labels, ids, _ = find([BLACK, WHITE])
    assert summary(labels) == ([("background", 0), ("foreground", 255)], None)
    assert ids == [[0, 1]]


def test_palette_gives_the_colours(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "L").convert("P")
    image.putpalette([9, 8, 7, 6, 5, 4, 3, 2, 1])
    image.putdata([0, 1, 2])
    image.save(tmp_path / "m.png")
    found = find_labels([FileSpan(str(tmp_path / "m.png"))], classes_file=None, ignore_value=None, value_map=(), where="SRC")
    assert [info.color for info in found.labels.classes] == [(9, 8, 7), (6, 5, 4), (3, 2, 1)]


def test_unreadable_masks_are_left_to_the_packer(tmp_path):
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"nonsense")
    spans = [FileSpan(str(tmp_path / "bad.png")), FileSpan(str(tmp_path / "good.png"))]
    found = find_labels(spans, classes_file=None, ignore_value=None, value_map=(), where="SRC")
    assert found.labels.num_classes == 2
    with pytest.raises(BadSampleError, match=r"bad\.png: is no image"):
        find_labels(spans[:1], classes_file=None, ignore_value=None, value_map=(), where="SRC")


def test_default_colours_are_distinct():
    colors = default_colors(256)
    assert len(set(colors)) == 256
    assert colors[:3] == [(0, 0, 0), (128, 0, 0), (0, 128, 0)]

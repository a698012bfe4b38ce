"""Every kind of damage to a shard folder is found, and a sound one passes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xxhash
from plain_source import edit_manifest, write_source

from unetfast.data import verify as verify_module
from unetfast.data.manifest import INDEX_DTYPE
from unetfast.data.options import PackOptions
from unetfast.data.pack import pack_scan
from unetfast.data.verify import verify_shards
from unetfast.errors import UserError


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("verify")
    scan = write_source(root / "src", 12)
    options = PackOptions(shard_mib=0.004, val_fraction=0.3, image_codec="jpeg")
    pack_scan(scan, root / "src", root / "shards", options=options, workers=1)
    return root / "shards"


@pytest.fixture
def folder(packed: Path, tmp_path: Path) -> Path:
    shutil.copytree(packed, tmp_path / "shards")
    return tmp_path / "shards"


def load_rows(folder: Path) -> np.ndarray:
    rows: np.ndarray = np.load(folder / "train/index.npy")
    assert rows.dtype == INDEX_DTYPE
    return rows


def save_rows(folder: Path, rows: np.ndarray) -> None:
    np.save(folder / "train/index.npy", rows)
    edit_manifest(folder, index_xxh3=xxhash.xxh3_64_hexdigest((folder / "train/index.npy").read_bytes()))


def rehash_shard(folder: Path) -> None:
    """Make the manifest agree with the first tar and idx as they are now."""
    shards = json.loads((folder / "manifest.json").read_text())["splits"]["train"]["shards"]
    tar = folder / "train/000000.tar"
    shards[0]["xxh3"] = xxhash.xxh3_64_hexdigest(tar.read_bytes())
    shards[0]["idx_xxh3"] = xxhash.xxh3_64_hexdigest(tar.with_suffix(".idx").read_bytes())
    shards[0]["bytes"] = tar.stat().st_size
    edit_manifest(folder, shards=shards)


def edit_bytes(path: Path, place: int, new: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[place : place + len(new)] = new
    path.write_bytes(data)


def flip_padding(folder: Path) -> None:
    """One byte between a JSON and the next header, unseen by any reader."""
    row = load_rows(folder)[0]
    edit_bytes(folder / "train/000000.tar", int(row["json_offset"]) + 511, b"x")


def rename_member(folder: Path) -> None:
    row = load_rows(folder)[0]
    edit_bytes(folder / "train/000000.tar", int(row["mask_offset"]) - 512, b"else")
    rehash_shard(folder)


def change_json(folder: Path) -> None:
    """A consistent lie: JSON, its hash, the tar's hash."""
    rows = load_rows(folder)
    tar = folder / "train/000000.tar"
    start, length = int(rows[0]["json_offset"]), int(rows[0]["json_length"])
    old = tar.read_bytes()[start : start + length]
    new = old.replace(b'"image_codec": "jpeg"', b'"image_codec": "webp"')
    assert new != old
    edit_bytes(tar, start, new)
    rows["json_xxh3"][0] = xxhash.xxh3_64_intdigest(new)
    save_rows(folder, rows)
    rehash_shard(folder)


def change_idx(folder: Path) -> None:
    idx = folder / "train/000000.idx"
    idx.write_text(idx.read_text().replace(" 512 ", " 513 "))
    rehash_shard(folder)


def swap_groups(folder: Path) -> None:
    rows = load_rows(folder)
    rows["group"][0] += 1
    save_rows(folder, rows)


def swap_presence(folder: Path) -> None:
    path = folder / "train/presence.npy"
    presence = np.load(path)
    presence[0] ^= 1
    np.save(path, presence)
    edit_manifest(folder, presence_xxh3=xxhash.xxh3_64_hexdigest(path.read_bytes()))


def interleave_shards(folder: Path) -> None:
    rows = load_rows(folder)
    rows["shard"] = rows["shard"][::-1]
    save_rows(folder, rows)


def repeat_sample(folder: Path) -> None:
    rows = load_rows(folder)
    assert rows["shard"][0] == rows["shard"][1]
    rows[1] = rows[0]
    save_rows(folder, rows)


def flip_pixel_data(folder: Path) -> None:
    row = load_rows(folder)[0]
    edit_bytes(folder / "train/000000.tar", int(row["mask_offset"]) + int(row["mask_length"]) // 2, b"\xff\xff\xff\xff")


def edit_labels(folder: Path) -> None:
    path = folder / "manifest.json"
    tree = json.loads(path.read_text())
    tree["labels"]["classes"].pop()
    path.write_text(json.dumps(tree))


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (flip_padding, "000000.tar: is not the file that was packed"),
    (flip_pixel_data, "the bytes are not those that were packed"),
    (rename_member, "no header of"),
    (change_json, "image_codec is 'webp', the index says 'jpeg'"),
    (change_idx, "000000.idx: does not fit its tar"),
    (swap_groups, "in the index is not group 'scene"),
    (swap_presence, "presence.npy: row 0 is not what the mask of"),
    (interleave_shards, "the index does not list all samples of one shard"),
    (repeat_sample, "has the same key"),
    (edit_labels, "num_classes or ignore_index of the manifest differ"),
    (lambda folder: (folder / "train/000000.tar").unlink(), "000000.tar: cannot be read (No such file"),
    (lambda folder: (folder / "train/000000.idx").unlink(), "000000.idx: cannot be read (No such file"),
    (lambda folder: (folder / "train/index.npy").unlink(), "index.npy: cannot be read"),
    (lambda folder: (folder / "train/presence.npy").unlink(), "presence.npy: cannot be read"),
    (
        lambda folder: shutil.copy(folder / "train/000000.tar", folder / "train/999999.tar"),
        "999999.tar: is not in the manifest",
    ),
    (lambda folder: edit_manifest(folder, class_pixels=[1, 2, 3]), "class_pixels of the manifest is (1, 2, 3), counted were"),
    (lambda folder: edit_manifest(folder, class_images=[1, 2, 3]), "class_images of the manifest"),
    (lambda folder: edit_manifest(folder, ignored_pixels=0), "ignored_pixels of the manifest is 0"),
    (lambda folder: edit_manifest(folder, groups=99), "groups of the manifest is 99"),
    (lambda folder: edit_manifest(folder, min_hw=[1, 1]), "min_hw of the manifest is (1, 1)"),
    (lambda folder: edit_manifest(folder, max_hw=[1, 1]), "max_hw of the manifest is (1, 1)"),
    (lambda folder: edit_manifest(folder, mean=[0.9, 0.9, 0.9]), "mean of the manifest is (0.9, 0.9, 0.9)"),
]


def test_a_sound_folder_passes(packed: Path) -> None:
    counted: list[int] = []
    assert verify_shards(packed, threads=2, report=counted.append) == []
    assert sum(counted) == 12


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[message for _, message in DAMAGE])
def test_damage_is_found(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    problems = verify_shards(folder, threads=1)
    assert any(message in problem for problem in problems), problems


def test_unknown_ids_are_found(tmp_path: Path) -> None:
    scan = write_source(tmp_path / "src", 4, ignore=True)
    pack_scan(scan, tmp_path / "src", tmp_path / "shards", options=PackOptions(val_fraction=0), workers=1)
    path = tmp_path / "shards/manifest.json"
    tree = json.loads(path.read_text())
    tree["num_classes"] = 2
    tree["labels"]["classes"].pop()
    tree["splits"]["train"]["class_pixels"].pop()
    tree["splits"]["train"]["class_images"].pop()
    path.write_text(json.dumps(tree))
    assert any("holds ids that no class has (2)" in problem for problem in verify_shards(tmp_path / "shards"))


def test_the_list_has_an_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module, "MAX_PROBLEMS", 3)
    for tar in folder.rglob("*.tar"):
        tar.unlink()
    problems = verify_shards(folder)
    assert len(problems) == 4
    assert problems[-1] == "... and more"


def test_no_folder_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        verify_shards(tmp_path / "nowhere")

"""The manifest's own JSON writer gives what the json module gives, for any folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from plain_source import write_source

from unetfast.data.manifest import ShardInfo, manifest_to_json, read_manifest
from unetfast.data.options import PackOptions
from unetfast.data.pack import pack_scan
from unetfast.errors import UserError


@pytest.mark.parametrize("num_shards", [0, 1, 3])
def test_manifest_is_what_the_json_module_writes(tmp_path: Path, num_shards: int) -> None:
    scan = write_source(tmp_path / "src", 12)
    options = PackOptions(shard_mib=0.01, val_fraction=0.3)
    pack_scan(scan, tmp_path / "src", tmp_path / "shards", options=options, workers=1)
    manifest = read_manifest(tmp_path / "shards")
    odd = [
        ShardInfo(file=f'{n}\n"ö\\.tar', samples=n, bytes=n << 40, xxh3="0" * 16, idx_xxh3="f" * 16) for n in range(num_shards)
    ]
    train = manifest.splits["train"].model_copy(update={"shards": tuple(odd)})
    for made in (manifest, manifest.model_copy(update={"splits": manifest.splits | {"train": train}})):
        plain = json.dumps(made.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        assert manifest_to_json(made) == plain
    assert (tmp_path / "shards" / "manifest.json").read_text(encoding="utf-8") == manifest_to_json(manifest)


@pytest.mark.parametrize("value", [[], {}, [[]], [[1], [2.5]], {"b": None, "a": True}, "\u00f6\n", 1e-5, [{"name": "x"}, {}]])
def test_options_of_any_shape_are_written_as_the_json_module_writes_them(tmp_path: Path, value: Any) -> None:
    scan = write_source(tmp_path / "src", 3)
    pack_scan(scan, tmp_path / "src", tmp_path / "shards", workers=1)
    manifest = read_manifest(tmp_path / "shards").model_copy(update={"options": {"value": value}})
    plain = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    assert manifest_to_json(manifest) == plain


@pytest.mark.parametrize("data", [b"\xff\xfe", b"", b"[]", b'{"format_version": 1}'])
def test_what_is_no_manifest_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(
        UserError, match=r"(cannot be read as JSON|format version None|not a valid manifest: dataset).*; pack the"
    ):
        read_manifest(tmp_path)

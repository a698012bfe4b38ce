"""The manifest's own JSON writer gives what the json module gives, for any folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from plain_source import write_source

from unetfast.data.manifest import ShardInfo, manifest_to_json, read_manifest
from unetfast.data.options import PackOptions
from unetfast.data.pack import pack_scan


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

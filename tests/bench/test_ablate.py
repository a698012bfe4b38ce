"""Ablations: which optimisations can be switched off on which device and data, and what one run of them says."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from small_config import make_config

from unetfast.bench import ablate, loader
from unetfast.bench.ablate import FULL, Switch, Unswitched, change, find_switches, format_ablation, run_ablation
from unetfast.bench.harness import spread
from unetfast.bench.rung import RungResult
from unetfast.config import Config
from unetfast.data.options import PackOptions
from unetfast.data.pack import pack
from unetfast.device import AmpPolicy
from unetfast.errors import UserError
from unetfast.loader.build import BackendChoice

SOURCE = Path("source")


def listed(shards: Path, source: Path | None = SOURCE, **sections: dict[str, Any]) -> dict[str, Switch | Unswitched]:
    return {one.name: one for one in find_switches(shards, make_config(**sections), source)}


def reason(found: Switch | Unswitched) -> str:
    assert isinstance(found, Unswitched), found
    return found.reason


def test_everything_on_can_be_switched_off_one_by_one(car_shards: Path) -> None:
    # 64x96 pixels are eight times 8x12
    found = listed(car_shards, train={"amp": "bf16", "compile": "on"}, loader={"size_hw": [8, 12], "threads": 2})
    assert {name: (one.rung, one.off) for name, one in found.items() if isinstance(one, Switch)} == {
        "channels_last": ("model", "train.channels_last=false"),
        "compile": ("model", "train.compile=off"),
        "bf16": ("model", "train.amp=off"),
        "scaled decode": ("loader", "loader.decode=full"),
        "LZ4 masks": ("loader", "--mask-codec png"),
        "threads": ("loader", "loader.threads=1"),
        "checksum": ("loader", "loader.checksum=false"),
    }


def test_what_is_off_already_is_listed_with_its_reason(car_shards: Path) -> None:
    found = listed(car_shards, None, train={"channels_last": False}, loader={"decode": "full", "checksum": False})
    assert reason(found["channels_last"]) == "off: train.channels_last = false"
    assert reason(found["compile"]).startswith("off: train.compile = auto, which compiles on a GPU alone")
    assert reason(found["bf16"]) == "off: train.amp = off"
    assert reason(found["scaled decode"]) == "off: loader.decode = full"
    assert reason(found["LZ4 masks"]) == "there is no source folder here to pack anew"
    assert reason(found["threads"]) == "loader.threads = 1"
    assert reason(found["checksum"]) == "off: loader.checksum = false"


def test_hardware_without_bf16_is_the_reason(car_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablate, "resolve_amp", lambda name, device: AmpPolicy("off", "this CPU has no bf16 instructions"))
    assert reason(listed(car_shards, train={"amp": "auto"})["bf16"]) == "off: this CPU has no bf16 instructions"


def test_scaled_decode_needs_large_jpegs_and_the_cpu_backend(
    car_shards: Path, car_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = reason(listed(car_shards)["scaled decode"])
    assert near == "not taken: loader.decode = exact, and no JPEG is large enough against 32x48"
    assert isinstance(listed(car_shards, loader={"decode": "fast"})["scaled decode"], Switch)  # 1/2 is left
    pack(car_source, tmp_path / "raw", options=PackOptions(val_fraction=0.0, image_codec="lz4"), workers=1)
    assert reason(listed(tmp_path / "raw", loader={"size_hw": [8, 12]})["scaled decode"]) == "no image is a JPEG"
    monkeypatch.setattr(ablate, "choose_backend", lambda config, device, training=False: BackendChoice("dali", "made up"))
    assert reason(listed(car_shards, loader={"size_hw": [8, 12]})["scaled decode"]) == "DALI has no scaled decode"


def test_cache_is_switched_itself_and_makes_decoding_no_matter(car_shards: Path) -> None:
    found = listed(car_shards, loader={"cache": "ram", "threads": 2})
    assert found["cache"] == Switch("cache", "loader", "loader.cache=off")
    for name in ("scaled decode", "LZ4 masks", "checksum"):
        assert reason(found[name]) == "loader.cache = ram: done once, in the first epoch"
    assert isinstance(found["threads"], Switch)
    assert "cache" not in listed(car_shards)


def test_compiled_steps_are_switched_for_a_process_alone(car_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "NUMBA_DISABLE_JIT=1" in reason(listed(car_shards)["compiled steps"])
    monkeypatch.setattr(ablate, "choose_backend", lambda config, device, training=False: BackendChoice("dali", "made up"))
    assert "compiled steps" not in listed(car_shards)


@pytest.mark.parametrize(
    "override",
    ["train.channels_last=false", "train.compile=off", "train.amp=off", "loader.decode=full", "loader.threads=1"],
)
def test_every_switch_sets_its_key_alone(override: str) -> None:
    config = make_config(train={"amp": "bf16", "compile": "on"}, loader={"threads": 2})
    changed = change(config, override).model_dump()
    section, key = override.partition("=")[0].split(".")
    former = config.model_dump()
    assert changed[section][key] != former[section][key]
    changed[section][key] = former[section][key]
    assert changed == former


def test_wrong_value_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"loader\.decode"):
        change(make_config(), "loader.decode=quarter")


def test_run_measures_each_switch_and_lists_the_rest(
    car_shards: Path, car_source: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "_DECODE_S", 0.001)
    config = make_config(loader={"threads": 2, "decode": "fast", "batch_size": 2})
    notes = io.StringIO()
    record = run_ablation(car_shards, config, source=car_source, rounds=3, seconds=0.01, console=Console(file=notes, width=200))
    assert json.loads(json.dumps(record)) == record
    names = [row["name"] for row in record["switched"]]
    assert names == ["channels_last", "scaled decode", "LZ4 masks", "threads", "checksum"]
    assert [one["name"] for one in record["unswitched"]] == ["compile", "bf16", "compiled steps"]
    for row in record["switched"]:
        assert len(row["speedup"]["rounds"]) == 3
        assert row["speedup"]["rounds"][0] == pytest.approx(
            row["images_per_s_on"]["rounds"][0] / row["images_per_s_off"]["rounds"][0], rel=0.01
        )
        assert row["says"] == "cannot tell"  # of three rounds
    masks = record["switched"][2]
    assert masks["data"] == f"{car_source.name}, packed for this"
    assert not list(car_source.parent.glob("ablation-*"))
    assert "loader: all on, and without scaled decode, threads, checksum" in notes.getvalue()
    text = format_ablation(record)
    assert "loader.decode=full" in text
    assert "not switched: compile (model): off: train.compile = auto" in text
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("on", "off", "says"),
    [
        ((12, 12.1, 12.2, 12.1), (10, 10.1, 10, 10.2), "faster"),
        ((10, 10.1, 10, 10.2), (12, 12.1, 12.2, 12.1), "slower"),
        ((10.1, 10.1, 10.1, 10.1), (10, 10, 10, 10), "same"),  # each round is faster, by less than counts
        ((12, 13, 15, 18), (10, 11, 11, 11.5), "cannot tell"),  # the rounds move more than what lies between them
        ((10, 12, 9, 12), (10, 10, 10, 10), "cannot tell"),
        ((15, 15, 15), (10, 10, 10), "cannot tell"),  # too few
    ],
)
def test_an_ablation_is_judged_as_two_records_are(on: tuple[float, ...], off: tuple[float, ...], says: str) -> None:
    switch = Switch("checksum", "loader", "loader.checksum=false")
    row = ablate._compare(switch, made_result(on), made_result(off), data="shards")
    assert row["says"] == says
    assert row["speedup"]["rounds"] == pytest.approx([one / other for one, other in zip(on, off, strict=True)], rel=1e-3)
    told = format_ablation({"switched": [row], "unswitched": []})
    assert ("take --rounds 4 or more" in told) == (len(on) < 4)
    assert "other programs" not in told
    busy = {"switched": [row], "unswitched": [], "cores": 2, "other_cores": 0.7}
    assert "other programs had 0.7 of 2 cores meanwhile" in format_ablation(busy)


def test_the_switches_of_one_rung_alone_can_be_asked_for(car_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def note(shards: Path, config: Config, switches: list[Switch], rung: str, *_: Any, **__: Any) -> dict[str, RungResult]:
        measured.append(rung)
        return {name: made_result((1.0,) * 4) for name in (FULL, *(one.name for one in switches))}

    monkeypatch.setattr(ablate, "_measure_sides", note)
    settings: dict[str, Any] = {"source": None, "rounds": 4, "seconds": 0.01, "console": Console(file=io.StringIO())}
    for rung, name in (("model", "channels_last"), ("loader", "threads")):
        record = run_ablation(car_shards, make_config(loader={"threads": 2}), **settings, rungs={rung})
        assert name in [row["name"] for row in record["switched"]]
        assert {one["rung"] for one in (*record["switched"], *record["unswitched"])} == {rung}
    assert measured == ["model", "loader"]


def made_result(images_per_s: tuple[float, ...]) -> RungResult:
    return RungResult("loader", spread(images_per_s), spread([1.0] * len(images_per_s)), 100.0, None, {})


def test_rounds_too_short_to_count_processor_time_have_no_core_ratio() -> None:
    assert ablate._divide(spread([0.0, 1.0]), spread([1.0, 1.0])) is None
    row = {"name": "a", "rung": "loader", "off": "b=c", "says": "faster", "core_s_ratio": None, "data": "shards"}
    figures = {name: spread([2.0]) for name in ("speedup", "images_per_s_on", "images_per_s_off")}
    assert " - " in format_ablation({"switched": [row | figures], "unswitched": []})
    assert format_ablation({"switched": [], "unswitched": []}) == "nothing can be switched off here"

"""Bad samples are found and named, whatever is wrong with them; one body for every backend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from loader_backends import dali_only
from loader_batches import keep
from loader_faults import BEFORE_BY_MARKERS, FAULTS, NAMELESS, NUM_SAMPLES, ODD_FOR_DALI, PLACES, lose_shard
from loader_shards import make_sample, write_shards

from unetfast.data.reader import open_shards
from unetfast.errors import CorruptShardError, UserError
from unetfast.loader.batch import Loader

MakeLoader = Callable[..., Loader]
BadShards = Callable[[str, int], Path]

ALL_IDS = list(range(NUM_SAMPLES))


def catch(loader: Loader) -> str:
    with pytest.raises(CorruptShardError) as caught:
        keep(loader)
    return str(caught.value)


def check_message(message: str, fault: str, bad: int) -> None:
    """One line that names key, shard and offset, and one that says what to do."""
    problem, remedy = message.splitlines()
    shard = bad - 1 if fault == "wrong index" else bad
    assert f"{shard:06}.tar" in problem
    if fault not in NAMELESS:
        assert problem.startswith(f"sample{bad:03} (")
        assert " at byte " in problem
    assert "inspect SHARDS --verify" in remedy


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_sample_is_named(make_loader: MakeLoader, bad_shards: BadShards, fault: str, place: str) -> None:
    bad = PLACES[place]
    loader = make_loader(folder=bad_shards(fault, bad), training=False)
    batches = iter(loader)
    assert next(batches).sample_ids.tolist() == [0, 1, 2, 3]
    with pytest.raises(CorruptShardError) as caught:
        next(batches)
    check_message(str(caught.value), fault, bad)
    assert loader.position == 4  # nothing was handed out, nothing is lost
    assert loader.num_skipped == 0
    assert catch(loader) == str(caught.value)


@pytest.mark.parametrize("fault", BEFORE_BY_MARKERS)
def test_markers_out_of_order_are_seen_without_decoding(make_loader: MakeLoader, bad_shards: BadShards, fault: str) -> None:
    folder = bad_shards(fault, 6)
    check_message(catch(make_loader(folder=folder, training=False)), fault, 6)
    lenient = make_loader(folder=folder, training=False, on_bad="skip")
    assert [i for batch in keep(lenient) for i in batch.ids] == [i for i in ALL_IDS if i != 6]


@pytest.mark.parametrize("fault", ["zeroed bytes", "truncated JPEG", "progressive JPEG without a table", "vanished shard"])
def test_training_stays_in_front_of_a_bad_sample(make_loader: MakeLoader, bad_shards: BadShards, fault: str) -> None:
    loader = make_loader(folder=bad_shards(fault, 6), sampler="sequential")
    assert keep(loader, 1)[0].ids == [0, 1, 2, 3]
    messages = {catch(loader) for _ in range(3)}
    assert len(messages) == 1
    check_message(messages.pop(), fault, 6)
    assert loader.position == loader.state_dict()["position"] == 4


@pytest.mark.parametrize("fault", ["zeroed mask", "truncated JPEG", "truncated raw image", "damaged PNG mask", "wrong size"])
def test_without_checksums_damage_that_cannot_be_decoded_is_named(
    make_loader: MakeLoader, bad_shards: BadShards, fault: str
) -> None:
    check_message(catch(make_loader(folder=bad_shards(fault, 6), training=False, checksum=False)), fault, 6)


def peak_growth_mib(work: Callable[[], object]) -> float:
    """Run something, and return by how much this process was larger meanwhile than before."""

    def read(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))

    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = read("VmRSS")
    work()
    return (read("VmHWM") - before) / 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux: /proc tells the peak of memory")
@pytest.mark.parametrize("fault", ["bomb", "bomb with its index row", "PNG bomb", "PNG bomb with its index row"])
def test_a_bomb_takes_no_memory(make_loader: MakeLoader, bad_shards: BadShards, fault: str) -> None:
    """30,000 x 30,000 pixels would take 2,575 MiB, and the header is all that may be believed of them."""
    loader = make_loader(folder=bad_shards(fault, 6), training=False, on_bad="skip", threads=1)
    next(iter(loader))  # the pipeline is there now
    assert peak_growth_mib(lambda: keep(loader)) < 200
    assert loader.skipped == ["sample006"]


def test_a_split_without_one_good_sample_ends_in_an_error(make_loader: MakeLoader, tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "none", [make_sample(i, (30, 40)) for i in range(5)])
    for bad in (0, 4):
        lose_shard(folder, "train", bad)
    with pytest.raises(UserError, match="not one of its 5 samples can be loaded"):
        next(iter(make_loader(folder=folder, on_bad="skip")))


def test_keys_of_the_test_shards_are_read_back(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "good", [make_sample(i, (30, 40)) for i in range(3)])
    with open_shards(folder).split("train") as reader:
        assert [reader.key(i) for i in range(3)] == ["sample000", "sample001", "sample002"]


@dali_only
@pytest.mark.parametrize("place", PLACES)
def test_a_sample_that_dali_alone_rejects_is_named(make_loader: MakeLoader, bad_shards: BadShards, place: str) -> None:
    bad = PLACES[place]
    folder = bad_shards(ODD_FOR_DALI, bad)
    on_host = make_loader(folder=folder, training=False, backend="cpu", device=torch.device("cpu"))
    assert [i for batch in keep(on_host) for i in batch.ids] == ALL_IDS
    loader = make_loader(folder=folder, training=False)
    message = catch(loader)
    check_message(message, ODD_FOR_DALI, bad)
    assert "DALI cannot decode it (nvImageCodec failure" in message
    assert catch(loader) == message
    assert loader.position == 4


@dali_only
def test_a_failure_of_dali_that_no_sample_explains_comes_out(make_loader: MakeLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    from unetfast.loader.dali import DaliGraph

    loader = make_loader()
    whole = keep(make_loader(), 6)
    begun = keep(loader, 2)
    take, fail = DaliGraph.take, [True]

    def take_or_fail(graph: DaliGraph) -> object:
        if fail:
            fail.clear()
            raise RuntimeError("out of something")
        return take(graph)

    monkeypatch.setattr(DaliGraph, "take", take_or_fail)
    with pytest.raises(UserError, match=r"(?s)batch of sound samples: out of something.*loader\.batch_size"):
        keep(loader, 1)
    assert loader.position == 8
    assert begun + keep(loader, 4) == whole  # with a new pipeline, not one sample lost

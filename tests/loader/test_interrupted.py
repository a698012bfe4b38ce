"""A batch that goes wrong on its way, at any point: nothing is counted that nobody got, and no batch is made of two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from loader_backends import dali_only
from loader_batches import ALL, keep

from unetfast.errors import UserError
from unetfast.loader.batch import Loader
from unetfast.loader.prefetch import PrefetchLoader
from unetfast.loader.stream import SampleStream

MakeLoader = Callable[..., Loader]


def fail_once(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, error: BaseException, *, call: int = 1) -> list[int]:
    """Let the nth call of a method raise; returns the list of its calls so far."""
    method, calls = getattr(owner, name), []

    def call_or_fail(self: Any, *args: Any, **settings: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise error
        return method(self, *args, **settings)

    monkeypatch.setattr(owner, name, call_or_fail)
    return calls


@pytest.mark.parametrize("step", ["plan", "advance", "_go_ahead", "_submit_jobs", "hand_out"])
def test_a_stop_while_a_batch_is_handed_out_loses_and_counts_nothing(
    make_loader: MakeLoader, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    whole = keep(make_loader(augment=ALL), 12)
    loader = make_loader(augment=ALL)
    begun = keep(loader, 3)
    owner = SampleStream if step in ("plan", "advance") else PrefetchLoader if step == "_submit_jobs" else type(loader)
    calls = fail_once(monkeypatch, owner, "_hand_out" if step == "hand_out" else step, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        keep(loader, 6)
    assert calls
    assert loader.state_dict()["position"] == 12
    assert begun + keep(loader, 9) == whole


@dali_only
@pytest.mark.parametrize("name", ["image", "mask", "roi_start", "hue", "mask_matrix"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("cannot allocate pinned memory")])
def test_a_batch_that_was_fed_by_halves_is_fed_anew(
    make_loader: MakeLoader, monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException
) -> None:
    from nvidia.dali import Pipeline

    whole = keep(make_loader(augment=ALL), 10)
    loader = make_loader(augment=ALL)
    begun = keep(loader, 3)
    feed_input, failing = Pipeline.feed_input, [True]

    def feed_or_fail(pipe: Pipeline, node: str, *args: Any, **settings: Any) -> None:
        if failing and node == name:
            failing.clear()
            raise error
        feed_input(pipe, node, *args, **settings)

    monkeypatch.setattr(Pipeline, "feed_input", feed_or_fail)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else UserError
    with pytest.raises(
        expected, match=None if expected is KeyboardInterrupt else "takes no batch: cannot allocate pinned memory"
    ):
        keep(loader, 4)
    assert not failing
    assert loader.position % 4 == 0
    done = loader.position // 4
    assert begun == whole[:3]
    assert keep(loader, 10 - done) == whole[done:]


@dali_only
def test_a_stop_while_dali_works_loses_nothing(make_loader: MakeLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    from unetfast.loader.dali import DaliGraph

    whole = keep(make_loader(augment=ALL), 8)
    loader = make_loader(augment=ALL)
    begun = keep(loader, 3)
    fail_once(monkeypatch, DaliGraph, "take", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        keep(loader, 1)
    assert loader.position == 12
    assert begun + keep(loader, 5) == whole


@dali_only
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_broken_device_is_not_taken_for_bad_samples(
    make_loader: MakeLoader, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    from unetfast.loader.dali import DaliGraph

    def fail(graph: DaliGraph) -> object:
        raise RuntimeError("CUDA error 719")

    loader = make_loader(on_bad="skip", batch_size=batch_size)
    monkeypatch.setattr(DaliGraph, "take", fail)
    with pytest.raises(UserError, match=r"(?s)batch of sound samples: CUDA error 719.*loader\.backend=cpu"):
        keep(loader, 1)
    assert loader.num_skipped == 0
    assert loader.position == 0


@dali_only
def test_pixels_that_the_host_has_decoded_are_never_to_blame(make_loader: MakeLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where nvImageCodec has no decoder for them: the raw samples beside JPEGs are sound."""
    from unetfast.loader.dali import DaliGraph

    schedule, take, refused = DaliGraph.schedule, DaliGraph.take, []

    def schedule_and_look(graph: DaliGraph, samples: Any, numbers: Any) -> None:
        refused[:] = [sample for sample in samples if sample.image[:2].tobytes() == b"P6"]
        schedule(graph, samples, numbers)

    def take_or_refuse(graph: DaliGraph) -> object:
        if refused:
            raise RuntimeError("Failed to decode sample")
        return take(graph)

    loader = make_loader(on_bad="skip", training=False, batch_size=13)
    monkeypatch.setattr(DaliGraph, "schedule", schedule_and_look)
    monkeypatch.setattr(DaliGraph, "take", take_or_refuse)
    with pytest.raises(UserError, match=r"decoded on the host: Failed to decode sample; nvImageCodec may lack"):
        keep(loader, 1)
    assert loader.num_skipped == 0


@pytest.mark.parametrize("how", ["jump", "thread"])
def test_giving_up_batches_goes_on_where_it_was_broken_off(
    make_loader: MakeLoader, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    from unetfast.loader import prefetch

    whole = keep(make_loader(augment=ALL), 9)
    loader = make_loader(augment=ALL)
    keep(loader, 3)
    state = loader.state_dict()
    keep(loader, 1)
    original, failing = prefetch.wait, [True]

    def wait_or_stop(futures: Any) -> Any:
        if failing:
            failing.clear()
            raise KeyboardInterrupt
        return original(futures)

    if how == "jump":
        monkeypatch.setattr(prefetch, "wait", wait_or_stop)
        with pytest.raises(KeyboardInterrupt):
            loader.load_state_dict(state)
        assert keep(loader, 6) == whole[3:]
    else:
        pool = loader._pool  # type: ignore[attr-defined]
        monkeypatch.setattr(pool, "submit", lambda *args: (_ for _ in ()).throw(RuntimeError("can't start new thread")))
        for _ in range(5):
            with pytest.raises(RuntimeError, match="new thread"):
                keep(loader, 4)
        monkeypatch.undo()
        done = loader.position // 4
        assert keep(loader, 9 - done) == whole[done:]

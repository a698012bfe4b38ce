"""Processes that train together: who is who, shares, sums, and who speaks when one fails.

What takes two real processes stands in tests/integration/test_distributed_train.py.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from unetfast.cli.program import main
from unetfast.config import build_config
from unetfast.distributed import (
    RunningMax,
    World,
    current_world,
    even_out_buffers,
    failures,
    join_world,
    read_environment,
    world,
)
from unetfast.distributed.failures import Witness, is_lost_contact
from unetfast.errors import RankError, ToldError, UserError
from unetfast.loader.order import rank_places
from unetfast.model.sync_norm import SyncBatchNorm, synchronize_batch_norm
from unetfast.train.processes import choose_device, describe_processes, share_cores, speaking_console, wrap_network
from unetfast.train.randomness import seed_generators
from unetfast.train.signals import StopRequest

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set exactly these of torchrun's variables."""

    def set_them(**values: str) -> None:
        for name in (*TORCHRUN, *MEETING, world.TIMEOUT_VARIABLE):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_them


@pytest.fixture
def group_of_one() -> Iterator[None]:
    """A real process group of this process alone, on gloo."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


# -- who is who --


def test_one_process_alone_starts_nothing(variables: Callable[..., None]) -> None:
    variables()
    with join_world() as here:
        assert here == current_world() == World()
        assert here.is_main
        assert not dist.is_initialized()
        tensor = torch.ones(3, requires_grad=True)
        assert here.total(tensor) is tensor
        assert here.sum(tensor) is here.mean(tensor) is tensor
        assert (here.gather("a"), here.broadcast("a"), here.from_main(lambda: "a")) == (["a"], "a", "a")
        assert (here.min_int(3), here.max_int(3)) == (3, 3)
        here.barrier()


def test_torchrun_of_one_process_is_one_alone(variables: Callable[..., None]) -> None:
    variables(**TORCHRUN | MEETING | {"WORLD_SIZE": "1", "RANK": "0"})
    assert read_environment() == World()


def test_environment_is_torchruns(variables: Callable[..., None]) -> None:
    variables(**TORCHRUN, **MEETING)
    assert read_environment() == World(rank=1, size=4, local_rank=1, local_size=2)
    variables(WORLD_SIZE="4", RANK="1")
    with pytest.raises(UserError, match=r"WORLD_SIZE=4 is set, but not LOCAL_RANK, .*: start the processes with `torchrun"):
        read_environment()
    variables(**TORCHRUN | MEETING | {"RANK": "4"})
    with pytest.raises(UserError, match=r"RANK=4, WORLD_SIZE=4, LOCAL_RANK=1, LOCAL_WORLD_SIZE=2: not what torchrun sets"):
        read_environment()
    variables(**TORCHRUN | MEETING | {"RANK": "first"})
    with pytest.raises(UserError, match="RANK=first"):
        read_environment()


def test_others_that_do_not_come_are_told(variables: Callable[..., None]) -> None:
    variables(**TORCHRUN, **MEETING, **{world.TIMEOUT_VARIABLE: "0.5"})
    with pytest.raises(UserError, match=r"rank 1 of 4 did not meet the others at 127\.0\.0\.1:1 within 0\.5 s"), join_world():
        pass
    variables(**TORCHRUN, **MEETING, **{world.TIMEOUT_VARIABLE: "soon"})
    with pytest.raises(UserError, match="UNETFAST_TIMEOUT_S=soon: give seconds above 0"), join_world():
        pass


@pytest.mark.parametrize(("command", "said"), [("eval", "`unetfast eval` runs in one process"), ("train", "did you mean")])
@pytest.mark.parametrize("local_rank", ["0", "1"])
def test_before_they_meet_the_first_on_each_machine_speaks(
    variables: Callable[..., None], capfd: pytest.CaptureFixture[str], command: str, said: str, local_rank: str
) -> None:
    variables(**TORCHRUN | MEETING | {"LOCAL_RANK": local_rank})
    arguments = {"eval": ["--shards", "s", "--checkpoint", "c"], "train": ["--set", "train.epoch=1"]}[command]
    with pytest.raises(SystemExit) as end:
        main([command, *arguments])
    assert end.value.code == 2
    error = capfd.readouterr().err
    assert (said in error) == (local_rank == "0")
    assert error.count("error:") == (local_rank == "0")


# -- shares --


@pytest.mark.parametrize(
    ("size", "num_parts", "batch_size", "fitting"), [(2, 1, 5, 6), (4, 1, 6, 8), (2, 3, 8, 12), (8, 2, 1, 16)]
)
def test_batch_that_cannot_be_shared_names_the_next_that_can(size: int, num_parts: int, batch_size: int, fitting: int) -> None:
    here = World(size=size)
    with pytest.raises(UserError, match=f"loader.batch_size = {batch_size}: .* by {size} processes.*batch_size={fitting}$"):
        here.check_batch(batch_size, num_parts)
    here.check_batch(fitting, num_parts)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 4))
def test_micro_batches_hold_the_same_samples_for_any_number_of_processes(size: int, num_parts: int, each: int) -> None:
    num = size * num_parts * each
    of_ranks = [rank_places(num, rank, size, num_parts).reshape(num_parts, each) for rank in range(size)]
    together = np.concatenate(of_ranks, axis=1)
    assert together.tolist() == np.arange(num).reshape(num_parts, -1).tolist()


@given(st.integers(0, 9), st.integers(1, 12))
def test_a_last_batch_is_shared_without_loss(num: int, size: int) -> None:
    """Also with fewer samples than processes."""
    assert [place for rank in range(size) for place in rank_places(num, rank, size, 1)] == list(range(num))


def test_processes_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unetfast.train.processes.num_usable_cores", lambda: 9)
    config = build_config({})
    assert share_cores(config, World()).loader.threads == 0
    assert share_cores(config, World(size=4, local_size=4)).loader.threads == 2
    assert share_cores(config, World(size=20, local_size=20)).loader.threads == 1
    own = build_config({"loader": {"threads": 5}})
    assert share_cores(own, World(size=4, local_size=4)) is own


def test_only_the_main_process_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    for rank in range(2):
        speaking_console(None, World(rank=rank, size=2)).print(f"I am {rank}")
    assert capsys.readouterr().err == "I am 0\n"
    assert describe_processes(World(), 0) == []
    assert describe_processes(World(size=8, local_size=4), 18) == [
        "world   8 processes on 2 machines; loader.batch_size is of all together, batch norm over all of them (18 layers)"
    ]


def test_ranks_and_later_steps_draw_other_numbers() -> None:
    found = []
    for rank, step in ((0, 0), (1, 0), (2, 0), (1, 7), (0, 0)):
        seed_generators(5, rank=rank, step=step)
        found.append(torch.rand(1).item())
    assert found[0] == found[-1]
    assert len(set(found)) == 4


# -- devices --


class FakeWorld(World):
    """Processes that all say what `answers` says."""

    answers: Callable[[Any], list[Any]]

    def gather(self, item: Any) -> list[Any]:
        return FakeWorld.answers(item)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, list[str]], None]:
    """Let a machine have GPUs; the list says which one each process takes."""

    def set_them(count: int, taken: list[str]) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"GPU-{device.index}"))
        FakeWorld.answers = lambda item: [(item[0], uuid) for uuid in taken] if isinstance(item, tuple) else [item] * len(taken)

    return set_them


def test_each_process_takes_its_gpu(gpus: Callable[[int, list[str]], None]) -> None:
    gpus(4, ["a", "b", "c", "d"])
    for name in ("auto", "cuda"):
        assert choose_device(name, FakeWorld(2, 4, 2, 4)) == torch.device("cuda", 2)
    assert choose_device("cpu", FakeWorld(2, 4, 2, 4)) == torch.device("cpu")


def test_a_launcher_may_show_each_process_its_own_gpu(gpus: Callable[[int, list[str]], None]) -> None:
    gpus(1, ["a", "b", "c", "d"])
    assert choose_device("auto", FakeWorld(2, 4, 2, 4)) == torch.device("cuda", 0)


def test_more_processes_than_gpus_are_refused(gpus: Callable[[int, list[str]], None]) -> None:
    gpus(2, ["a", "b", "a", "b"])
    with pytest.raises(UserError, match=r"^4 processes on .*, which has 2 GPUs for them; take torchrun --nproc-per-node 2, or"):
        choose_device("cuda", FakeWorld(2, 4, 2, 4))
    gpus(1, ["a", "a"])
    with pytest.raises(UserError, match="has 1 GPU for them; take torchrun --nproc-per-node 1"):
        choose_device("auto", FakeWorld(0, 2, 0, 2))


def test_other_devices_that_do_not_fit(gpus: Callable[[int, list[str]], None]) -> None:
    gpus(2, ["a", "b"])
    with pytest.raises(UserError, match=r"train.device = 'cuda:1' names one GPU for 2 processes"):
        choose_device("cuda:1", FakeWorld(0, 2, 0, 2))
    FakeWorld.answers = lambda item: [item, 0]
    with pytest.raises(UserError, match="the processes of rank 1 see no GPU, the others do"):
        choose_device("auto", FakeWorld(0, 2, 0, 2))
    gpus(0, ["", ""])
    assert choose_device("auto", FakeWorld(0, 2, 0, 2)) == torch.device("cpu")
    with pytest.raises(UserError, match=r"sees no GPU; take --set train\.device=cpu"):
        choose_device("cuda", FakeWorld(0, 2, 0, 2))


# -- sums --


@pytest.mark.usefixtures("group_of_one")
def test_sums_keep_gradients_apart_from_none() -> None:
    here = SimpleNamespace(size=2)  # a group of one, taken for several: each sum goes through the collectives
    tensor = torch.tensor([1.0, 2.0], requires_grad=True)
    (World.total(here, tensor) * torch.tensor([3.0, 4.0])).sum().backward()  # type: ignore[arg-type]
    assert tensor.grad is not None
    assert tensor.grad.tolist() == [3.0, 4.0]
    total = World.sum(here, tensor)  # type: ignore[arg-type]
    assert not total.requires_grad
    assert total.data_ptr() != tensor.data_ptr()


@pytest.mark.usefixtures("group_of_one")
def test_running_max_answers_one_call_late() -> None:
    votes = RunningMax(World(size=2))
    assert [votes.ask(number) for number in (0, 15, 0, 0)] == [0, 0, 15, 0]
    votes.ask(2)
    assert (votes.finish(), votes.finish()) == (2, 0)
    assert RunningMax(World()).ask(7) == 7


@pytest.mark.usefixtures("group_of_one")
def test_a_stop_that_was_agreed_stands() -> None:
    stop = StopRequest()
    stop.join(World(size=2))
    stop.number = 15
    assert [stop.poll() for _ in range(3)] == [False, True, True]
    assert (stop.name, stop.exit_code) == ("SIGTERM", 143)
    stop.leave()


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (6, 3)])
def test_synchronized_batch_norm_is_torchs(shape: tuple[int, ...], momentum: float | None) -> None:
    """Values, gradients, running statistics, names, evaluation; of one process, against torch."""
    kind = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d
    torch.manual_seed(0)
    theirs = nn.Sequential(kind(3, momentum=momentum)).double()
    nn.init.normal_(theirs[0].weight)
    ours = nn.Sequential(kind(3, momentum=momentum)).double()
    ours.load_state_dict(theirs.state_dict())
    assert synchronize_batch_norm(ours) == 1
    assert synchronize_batch_norm(ours) == 0
    assert isinstance(ours[0], SyncBatchNorm)
    for _ in range(3):
        input_NC = torch.randn(shape, dtype=torch.float64) * 3 + 50
        given = [input_NC.clone().requires_grad_() for _ in range(2)]
        for model, each in zip((theirs, ours), given, strict=True):
            (model(each) ** 3).sum().backward()
        torch.testing.assert_close(given[1].grad, given[0].grad)
    for (name, mine), (other, wanted) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert name == other
        torch.testing.assert_close(mine, wanted)
    for mine, wanted in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, wanted.grad)
    torch.testing.assert_close(ours.eval()(input_NC), theirs.eval()(input_NC))


@pytest.mark.usefixtures("group_of_one")
def test_synchronized_batch_norm_keeps_half_precision_apart() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    synchronize_batch_norm(model)
    input_NCHW = torch.randn(2, 3, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    output_NCHW = model(input_NCHW)
    output_NCHW.sum().backward()
    assert output_NCHW.dtype == input_NCHW.grad.dtype == torch.bfloat16
    assert model[0].weight.grad.dtype == torch.float32
    with pytest.raises(ValueError, match="input has 1 dimensions"):
        model[0](torch.ones(3))


@pytest.mark.usefixtures("group_of_one")
def test_only_unsynchronized_statistics_are_evened_out(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.Tensor] = []
    monkeypatch.setattr(World, "mean", lambda _, tensor: asked.append(tensor) or tensor + 1)
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Sequential(nn.BatchNorm2d(3)), nn.BatchNorm2d(1, track_running_stats=False))
    synchronize_batch_norm(model[1])
    even_out_buffers(model, World())
    assert not asked
    even_out_buffers(model, World(size=2))
    assert [len(tensor) for tensor in asked] == [4]
    assert model[0].running_mean.tolist() == [1, 1]
    assert model[0].running_var.tolist() == [2, 2]
    assert model[1][0].running_mean.tolist() == [0, 0, 0]


def test_one_process_has_no_wrapper() -> None:
    model = nn.Linear(1, 1)
    assert wrap_network(model, build_config({}), World()) is model


# -- who speaks --


@pytest.fixture
def tell(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[BaseException | None]]:
    """Let processes (threads with one store) fail with errors; None lives on, "gone" leaves no note."""
    # they fail at the same moment, and the times are long beside what a busy machine keeps a thread waiting
    monkeypatch.setattr(failures, "GRACE_S", 4.0)
    monkeypatch.setattr(failures, "SETTLE_S", 1.5)

    def do(*errors: BaseException | None) -> list[BaseException | None]:
        store = dist.HashStore()
        all_fail = threading.Barrier(sum(error is not None for error in errors))
        found: list[BaseException | None] = [None] * len(errors)

        def fail(rank: int, error: BaseException) -> None:
            witness = Witness(dist.PrefixStore("test", store), rank, len(errors))
            witness.introduce([f"host{rank}, process {rank}" for rank in range(len(errors))])
            all_fail.wait()
            found[rank] = witness.tell(error)

        threads = [threading.Thread(target=fail, args=(rank, error)) for rank, error in enumerate(errors) if error is not None]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    return do


LOST = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1")


def split(found: list[BaseException | None]) -> tuple[list[str], int]:
    spoken = [str(error) for error in found if isinstance(error, RankError)]
    return spoken, sum(isinstance(error, ToldError) for error in found)


def test_the_same_mistake_in_all_is_said_once_and_plainly(tell: Callable[..., list[Any]]) -> None:
    assert split(tell(UserError("no such key"), UserError("no such key"), UserError("no such key"))) == (["no such key"], 2)


def test_a_failure_of_one_names_it_and_the_others_are_silent(tell: Callable[..., list[Any]]) -> None:
    spoken, num_silent = split(tell(LOST, UserError("000003.tar: damaged"), LOST))
    assert spoken == ["rank 1 of 3 (host1, process 1): 000003.tar: damaged"]
    assert num_silent == 2


def test_the_main_process_has_no_need_to_name_itself(tell: Callable[..., list[Any]]) -> None:
    assert split(tell(UserError("runs/x: holds a run already"), LOST)) == (["runs/x: holds a run already"], 1)


def test_a_process_that_left_no_note_is_named_by_one(tell: Callable[..., list[Any]]) -> None:
    spoken, num_silent = split(tell(LOST, None, LOST))
    assert num_silent == 1
    assert len(spoken) == 1
    assert spoken[0].startswith(
        "rank 1 of 3 (host1, process 1) no longer answers: killed, crashed or stuck; all others end too."
    )


def test_lost_contact_without_a_dead_process(tell: Callable[..., list[Any]]) -> None:
    spoken, num_silent = split(tell(LOST, LOST))
    assert num_silent == 1
    assert "the processes have lost contact with each other ([gloo" in spoken[0]


def test_a_bug_keeps_its_traceback_in_one_process(tell: Callable[..., list[Any]]) -> None:
    bug = ZeroDivisionError("ours")
    found = tell(bug, LOST)
    assert found[0] is bug
    assert bug.__notes__ == ["in rank 0 of 2 (host0, process 0)"]
    assert isinstance(found[1], ToldError)
    interrupt = KeyboardInterrupt()
    assert tell(interrupt)[0] is interrupt


def test_a_meeting_point_that_is_gone_is_said(tell: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise dist.DistNetworkError("no connection")

    monkeypatch.setattr(dist.PrefixStore, "set", fail)
    spoken, _ = split(tell(None, LOST))
    assert spoken[0].startswith("rank 0 of 2 (host0, process 0) no longer answers, and the meeting point is gone with it")
    mine = UserError("mine")
    assert tell(None, mine)[1] is mine


def test_what_counts_as_lost_contact() -> None:
    assert is_lost_contact(LOST)
    assert is_lost_contact(dist.DistBackendError("NCCL"))
    assert not is_lost_contact(RuntimeError("shapes do not fit"))
    assert not is_lost_contact(UserError("gloo"))
    assert not is_lost_contact(torch.OutOfMemoryError("CUDA out of memory; timeout"))


def test_a_process_that_cannot_end_is_ended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    codes: queue.SimpleQueue[int] = queue.SimpleQueue()
    monkeypatch.setattr(failures, "STUCK_S", 0.01)
    monkeypatch.setattr(failures.os, "_exit", codes.put)
    failures.end_if_stuck("stuck")
    assert codes.get(timeout=120) == 2
    assert capsys.readouterr().err == "error: stuck\n"

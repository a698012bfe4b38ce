"""How `train.compile` compiles a run's network, what it refuses, what a run says of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.utils import counters
from torch._inductor.exc import TritonMissing

from unetfast.config import Config
from unetfast.device import resolve_device
from unetfast.distributed import World
from unetfast.errors import UserError
from unetfast.hostmemory import FreedMemory
from unetfast.model.unet import UNet
from unetfast.train.compiling import (
    check_graphs,
    check_parts,
    compile_network,
    explaining_compiler,
    warn_of_skipped_graphs,
)
from unetfast.train.epoch import validate_both
from unetfast.train.loop import train
from unetfast.train.randomness import numeric_settings
from unetfast.train.runfolder import RunFolder
from unetfast.train.setup import build_run, describe_memory, describe_run
from unetfast.train.signals import StoppedError, StopRequest
from unetfast.train.step import take_smaller_parts, train_step
from unetfast.train.validate import collect_first_panels

MakeConfig = Callable[..., Config]
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def graphs(make_config: MakeConfig, **sections: dict[str, Any]) -> Config:
    return make_config(**sections, train={"device": "auto", "compile": "graphs"})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `nn.Module.compile` is asked for; nothing is compiled."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: calls.append(options))
    return calls


def test_each_mode_is_one_static_graph(asked: list[dict[str, Any]], make_config: MakeConfig) -> None:
    net = UNet(2, base_channels=2, depth=1)
    compile_network(net, make_config(train={"compile": "on"}), CPU, World())
    compile_network(net, graphs(make_config), CUDA, World())
    assert asked == [{"fullgraph": True, "dynamic": False}, {"fullgraph": True, "dynamic": False, "mode": "reduce-overhead"}]


def test_a_network_of_the_users_own_may_be_compiled_in_parts(asked: list[dict[str, Any]], make_config: MakeConfig) -> None:
    config = make_config(model={"factory": "package:function"}, train={"compile": "on"})
    compile_network(UNet(2, base_channels=2, depth=1), config, CPU, World())
    assert asked == [{"fullgraph": False, "dynamic": False}]


def test_graphs_are_refused_where_they_cannot_be_had(make_config: MakeConfig) -> None:
    check_graphs(graphs(make_config), CUDA, World())
    with pytest.raises(UserError, match=r"needs a GPU, this run is on the cpu; take --set train\.compile=on"):
        check_graphs(graphs(make_config), CPU, World())
    with pytest.raises(UserError, match=r"not sure of what package:function builds"):
        check_graphs(graphs(make_config, model={"factory": "package:function"}), CUDA, World())
    with pytest.raises(UserError, match="for one process, and 2 train together"):
        check_graphs(graphs(make_config), CUDA, World(size=2))


def test_a_run_on_a_cpu_refuses_graphs_before_its_first_step(
    toy_shards: Path, tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="CUDA graphs and needs a GPU"):
        train(toy_shards, graphs(make_config), tmp_path / "run")
    assert not (tmp_path / "run" / "last.pt").exists()


def test_smaller_parts_are_refused_with_graphs(toy_shards: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    check_parts(graphs(make_config), 1)
    check_parts(make_config(train={"compile": "on"}), 4)
    with pytest.raises(UserError, match="cuts its batches into 4 parts"):
        check_parts(graphs(make_config), 4)
    with build_run(toy_shards, make_config(), RunFolder(tmp_path)) as run:
        asked = replace(run, config=graphs(make_config))
        with pytest.raises(UserError, match=r"(?s)out of memory.*CUDA graphs \(train\.compile\) have no micro-batches"):
            take_smaller_parts(asked, "no memory")
        assert asked.accumulation == 1


def test_graphs_that_torch_leaves_out_are_said(
    asked: list[dict[str, Any]], make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = UNet(2, base_channels=2, depth=1)
    monkeypatch.setitem(counters["inductor"], "cudagraph_skips", 3)  # another run's, in the same process
    before = compile_network(net, graphs(make_config), CUDA, World())
    assert warn_of_skipped_graphs(graphs(make_config), before) is None
    monkeypatch.setitem(counters["inductor"], "cudagraph_skips", 4)
    assert "runs some passes without CUDA graphs" in str(warn_of_skipped_graphs(graphs(make_config), before))
    config = make_config(train={"compile": "on"})
    assert warn_of_skipped_graphs(config, compile_network(net, config, CPU, World())) is None


def test_a_run_says_how_it_is_compiled_and_where_that_is_kept(
    toy_shards: Path, tmp_path: Path, make_config: MakeConfig, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kept"))
    with build_run(toy_shards, make_config(train={"compile": "on"}), RunFolder(tmp_path)) as run:
        assert f", compiled (kept in {tmp_path / 'kept'}), " in describe_run(run, toy_shards)[2]
        told = describe_run(replace(run, config=graphs(make_config)), toy_shards)[2]
        assert "), replayed as CUDA graphs, " in told
    with build_run(toy_shards, make_config(train={"compile": "off"}), RunFolder(tmp_path)) as run:
        assert ", not compiled, " in describe_run(run, toy_shards)[2]


def test_memory_that_cannot_be_kept_is_said() -> None:
    assert describe_memory(FreedMemory(2**31 - 1)) == []
    (line,) = describe_memory(FreedMemory(2**25, "the C library refuses larger ones"))
    assert "blocks above 32 MiB go back to the system" in line
    (line,) = describe_memory(FreedMemory(0, "GLIBC_TUNABLES is set"))
    assert "large blocks go back" in line
    assert line.endswith("(GLIBC_TUNABLES is set)")


def take_steps(shards: Path, folder: Path, make_config: MakeConfig, **settings: Any) -> dict[str, torch.Tensor]:
    """Take six steps of a small net, and no more: one graph to compile. Returns the weights."""
    model = {"base_channels": 2, "depth": 1, "convs_per_block": 1}
    config = make_config(train=settings, optimizer={"name": "sgd"}, model=model)
    device = resolve_device(config.train.device)
    with (
        numeric_settings(seed=config.train.seed, deterministic=False, device=device),
        build_run(shards, config, RunFolder(folder)) as run,
    ):
        batches = iter(run.loader)
        for _ in range(6):
            train_step(run, next(batches))
        return {name: weight.cpu().clone() for name, weight in run.model.state_dict().items()}


def test_steps_are_one_graph(
    toy_shards: Path, tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_plainly = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **given: compile_plainly(self, backend="eager", **given))
    torch._dynamo.reset()
    counters.clear()
    compiled, plain = (take_steps(toy_shards, tmp_path, make_config, compile=mode) for mode in ("on", "off"))
    assert counters["stats"]["unique_graphs"] == 1
    for name, weight in plain.items():
        torch.testing.assert_close(compiled[name], weight)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "error",
    [RuntimeError("no C++ compiler found\nand more"), TritonMissing(None)],
    ids=lambda error: type(error).__name__,
)
def test_a_compiler_that_fails_is_a_users_error(
    error: Exception, toy_shards: Path, tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(graph: Any, inputs: Any) -> Any:
        raise error

    compile_plainly = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **given: compile_plainly(self, backend=fail, **given))
    torch._dynamo.reset()
    told = r"train\.compile: .* \((RuntimeError: no C\+\+ compiler found|.*working triton.*)\); take --set train\.compile=off"
    with pytest.raises(UserError, match=told):
        take_steps(toy_shards, tmp_path, make_config, compile="on")
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "error", [RuntimeError("no C++ compiler found"), TritonMissing(None)], ids=lambda error: type(error).__name__
)
def test_a_compiler_that_fails_in_an_evaluation_is_a_users_error(
    error: Exception, toy_shards: Path, tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_without_gradients(graph: Any, inputs: Any) -> Any:
        if not torch.is_grad_enabled():
            raise error
        return graph

    compile_plainly = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **given: compile_plainly(self, backend=fail_without_gradients, **given)
    )
    torch._dynamo.reset()
    config = make_config(train={"compile": "on"}, model={"base_channels": 2, "depth": 1, "convs_per_block": 1})
    told = r"train\.compile: .* \((RuntimeError: no C\+\+ compiler found|.*working triton.*)\); take --set train\.compile=off"
    with build_run(toy_shards, config, RunFolder(tmp_path)) as run:
        train_step(run, next(iter(run.loader)))
        with pytest.raises(UserError, match=told):
            validate_both(run, StopRequest())
        with pytest.raises(UserError, match=told):
            collect_first_panels(run, 1)
    torch._dynamo.reset()


def test_errors_that_are_no_compilers_stay_as_they_are() -> None:
    for error in (MemoryError("no memory"), RuntimeError("CUDA out of memory"), KeyError("key"), StoppedError()):
        with pytest.raises(type(error)) as caught, explaining_compiler(True):
            raise error
        assert caught.value is error
    with pytest.raises(TritonMissing), explaining_compiler(False):
        raise TritonMissing(None)


def test_a_process_may_train_more_networks_than_torch_allows_by_itself(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_plainly = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **given: compile_plainly(self, backend="eager", **given))
    torch._dynamo.reset()
    counters.clear()
    nets = []  # kept, as a notebook keeps them
    with torch._dynamo.config.patch(recompile_limit=2), torch.no_grad():
        for place in range(3):
            nets.append(UNet(2, base_channels=2, depth=1, convs_per_block=1))
            compile_network(nets[-1], make_config(train={"compile": "on"}), CPU, World())
            nets[-1](torch.zeros(1, 3, 8, 8 + 2 * place, dtype=torch.uint8))
    assert counters["stats"]["unique_graphs"] == 3
    torch._dynamo.reset()


def test_too_many_graphs_are_a_users_error(
    toy_shards: Path, tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give_up(*_: Any) -> Any:
        raise FailOnRecompileLimitHit("Hard failure due to fullgraph=True")

    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: setattr(self, "_compiled_call_impl", give_up))
    with pytest.raises(UserError, match=r"train\.compile: .* \(this process has reached torch's limit of graphs"):
        take_steps(toy_shards, tmp_path, make_config, compile="on")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_graphs_train_as_a_compiled_run_does(toy_shards: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    torch._dynamo.reset()
    counters.clear()
    launched, replayed = (
        take_steps(toy_shards, tmp_path, make_config, device="cuda", compile=mode) for mode in ("on", "graphs")
    )
    assert not counters["inductor"]["cudagraph_skips"]
    for name, weight in launched.items():
        torch.testing.assert_close(replayed[name], weight, rtol=1e-4, atol=1e-5)

"""Sinks: each real one written and read back by its own reader, resumed, failing, slow, missing."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from unetfast.config import LogConfig
from unetfast.errors import UserError
from unetfast.train.log import MetricsLog, read_rows
from unetfast.train.sinks.base import Outcome, Row, RunIdentity, Sink, flatten, scalars_of
from unetfast.train.sinks.carrier import MAX_FAILURES, Carrier
from unetfast.train.sinks.opening import check_sinks, open_sinks
from unetfast.train.sinks.tensorboard_sink import MAX_PICTURE_PX, table_of_classes

CLASSES = [
    {"name": "car", "iou": 0.25, "dice": 0.4, "pixels": 7},
    {"name": "sky", "iou": None, "dice": None, "pixels": 0},
    {"name": "tree, big|<b>", "iou": 0.125, "dice": 0.2, "pixels": 3},
]
CONFIG = {"train": {"epochs": 3, "seed": 1}, "loss": {"class_weights": "none"}}


def train_row(step: int, **more: Any) -> Row:
    return {"kind": "train", "step": step, "epoch": 1, "loss": step / 100, **more}


def val_row(step: int) -> Row:
    return {"kind": "val", "step": step, "epoch": 1, "mean_iou": 0.1875, "loss": None, "classes": CLASSES, "warnings": []}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "toy-1"
    path.mkdir(parents=True)
    (path / "config.toml").write_text("[train]\nepochs = 3\n")
    Image.new("RGB", (40, 30), (10, 200, 30)).save(path / "predictions_initial.png")
    return path


def identity(folder: Path, *, step: int = 0, epochs: int = 3) -> RunIdentity:
    return RunIdentity(folder, "a project", {**CONFIG, "train": {"epochs": epochs, "seed": 1}}, step)


def open_one(folder: Path, *, step: int = 0, epochs: int = 3, **settings: Any) -> Sink:
    config = LogConfig(**{"tensorboard": False, "project": "a project", **settings})
    (sink,) = open_sinks(config, identity(folder, step=step, epochs=epochs), tensorboard=folder / "tensorboard")
    return sink


def test_numbers_of_a_row_whatever_its_kind() -> None:
    row = val_row(3) | {"kind": "val_ema", "improved": True, "size": "training"}
    assert dict(scalars_of(row)) == {"val_ema/mean_iou": 0.1875, "val_ema_iou/car": 0.25, "val_ema_iou/tree, big|<b>": 0.125}


def test_a_config_is_flattened_to_dotted_keys() -> None:
    assert dict(flatten({"a": {"b": {"c": 1}, "d": [1, 2]}, "e": {}})) == {"a.b.c": 1, "a.d": [1, 2], "e": {}}


# TensorBoard


def test_tensorboard_reads_numbers_pictures_and_the_table_back(folder: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    Image.new("RGB", (2 * MAX_PICTURE_PX, 50)).save(folder / "wide.png")
    sink = open_one(folder, tensorboard=True)
    for step in (10, 20, 30):
        sink.add_row(train_row(step))
    sink.add_row(val_row(30))
    sink.add_picture("predictions", folder / "predictions_initial.png", 0)
    sink.add_picture("predictions", folder / "wide.png", 30)
    sink.close("finished")
    sink = open_one(folder, tensorboard=True, step=10)
    sink.add_row(train_row(20, loss=0.5))
    sink.close("finished")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    # step 30 was cut off by the resume, 20 done again
    assert [(event.step, round(event.value, 6)) for event in events.Scalars("train/loss")] == [(10, 0.1), (20, 0.5)]
    assert "val_iou/sky" not in events.Tags()["scalars"]
    assert [(event.step, event.width, event.height) for event in events.Images("predictions")] == [(0, 40, 30)]


def test_the_table_of_classes_has_the_worst_first_and_escapes_names() -> None:
    lines = table_of_classes(val_row(3)).splitlines()
    assert lines[0] == "| class | IoU | Dice | pixels |"
    assert lines[2:] == [
        "| tree, big\\|&lt;b> | 0.1250 | 0.2000 | 3 |",
        "| car | 0.2500 | 0.4000 | 7 |",
        "| sky | - | - | 0 |",
    ]


# Weights & Biases


def read_wandb(path: Path) -> list[Any]:
    """Read a .wandb file: a LevelDB log of W&B's own messages, in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    data, place, part, records = path.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _checksum, length, kind = struct.unpack_from("<IHB", data, place)
        part += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            records.append(record)
            part = b""
    return records


def processes_of_wandb() -> list[str]:
    found = []
    for child in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
        with contextlib.suppress(OSError):  # it has ended since it was listed
            found.append(Path(f"/proc/{child}/comm").read_text())
    return [name for name in found if "wandb" in name]


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


@pytest.mark.usefixtures("_no_network")
def test_wandb_offline_is_read_back_with_the_messages_of_wandb(folder: Path) -> None:
    pytest.importorskip("wandb")
    for step, epochs in ((0, 3), (20, 5)):
        sink = open_one(folder, wandb="offline", step=step, epochs=epochs)
        sink.add_row(train_row(step + 10))
        sink.add_row(val_row(step + 10))
        if not step:
            sink.add_picture("predictions", folder / "predictions_initial.png", 0)
        sink.close("finished")
        time.sleep(1.1)  # W&B names a start's folder by its second
    assert processes_of_wandb() == []
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    # both starts of the run stand under one id
    assert len(files) == 2
    assert {file.stem for file in files} == {f"run-{json.loads((folder / 'sinks.json').read_text())['wandb']['id']}"}
    (first, second) = (read_wandb(file) for file in files)
    runs = [next(record.run for record in part if record.WhichOneof("record_type") == "run") for part in (first, second)]
    assert {run.project for run in runs} == {"a project"}
    assert {run.display_name for run in runs} == {"toy-1"}
    kept = [{item.key: json.loads(item.value_json) for item in run.config.update} for run in runs]
    assert [tree["train"]["epochs"] for tree in kept] == [3, 5]
    rows = [
        {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
        for record in first + second
        if record.WhichOneof("record_type") == "history"
    ]
    assert [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row] == [(10, 0.1), (30, 0.3)]
    assert [row["val_iou/car"] for row in rows if "val_iou/car" in row] == [0.25, 0.25]
    (picture,) = (row for row in rows if "predictions/path" in row)
    assert (picture["step"], picture["predictions/width"], picture["predictions/height"]) == (0, 40, 30)
    assert (files[0].parent / "files" / picture["predictions/path"]).is_file()
    exits = [record.exit.exit_code for record in first + second if record.WhichOneof("record_type") == "exit"]
    assert exits == [0, 0]


@pytest.mark.usefixtures("_no_network")
def test_wandb_online_without_a_key_is_refused_before_training(folder: Path) -> None:
    pytest.importorskip("wandb")
    with pytest.raises(UserError, match=r"log.wandb = 'online': W&B does not start .*\n.*wandb login.*log.wandb=offline"):
        open_one(folder, wandb="online")
    assert processes_of_wandb() == []
    assert not (folder / "sinks.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/usr/bin/strace").exists(), reason="no strace to watch the processes with")
def test_offline_sinks_open_no_connection(folder: Path) -> None:
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    script = (
        "from pathlib import Path\n"
        "from unetfast.config import LogConfig\n"
        "from unetfast.train.sinks.base import RunIdentity\n"
        "from unetfast.train.sinks.opening import open_sinks\n"
        f"folder = Path({str(folder)!r})\n"
        "config = LogConfig(tensorboard=False, wandb='offline', mlflow=str(folder / 'mlruns'))\n"
        "sinks = open_sinks(config, RunIdentity(folder, 'p', {'a': 1}), tensorboard=folder)\n"
        "for sink in sinks:\n"
        "    sink.add_row({'kind': 'train', 'step': 1, 'loss': 0.5})\n"
        "    sink.close('finished')\n"
    )
    quiet = ("MLFLOW_", "WANDB_", "PYTEST_", "CI")  # what would switch reports off by itself
    environment = {key: value for key, value in os.environ.items() if not key.startswith(quiet)} | {"HOME": str(folder)}
    trace = folder / "trace.txt"
    # io_uring is not traced: none of them uses it
    command = ["strace", "-f", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(trace), sys.executable, "-c", script]
    subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parents[2], timeout=120)
    calls = trace.read_text()
    assert "exited with 0" in calls  # something was watched
    assert [line for line in calls.splitlines() if "AF_INET" in line] == []


# MLflow


def test_mlflow_folder_is_read_back_by_its_client(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    where = tmp_path / "ml runs"
    for step, epochs, outcome in ((0, 3, "stopped"), (20, 5, "finished")):
        sink = open_one(folder, mlflow=str(where), step=step, epochs=epochs)
        sink.add_row(train_row(step + 10))
        sink.add_row(val_row(step + 10))
        if not step:
            sink.add_picture("predictions", folder / "predictions_initial.png", 0)
        sink.close(outcome)  # type: ignore[arg-type]  # of a tuple
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=where.as_uri())
    experiment = client.get_experiment_by_name("a project")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])  # the resumed run went on in the same one
    assert run.info.run_name == "toy-1"
    assert run.info.status == "FINISHED"
    assert run.data.params == {
        "train.epochs": "3",
        "train.epochs.from_step_20": "5",
        "train.seed": "1",
        "loss.class_weights": "none",
    }
    found = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "train/loss")]
    assert found == [(10, 0.1), (30, 0.3)]
    assert run.data.metrics["val_iou/tree_ big__b_"] == 0.125
    assert [item.path for item in client.list_artifacts(run.info.run_id)] == ["config.toml", "predictions"]


def test_mlflow_of_another_address_begins_a_new_run(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    ids = set()
    for name in ("one", "one", "two"):
        open_one(folder, mlflow=str(tmp_path / name)).close("finished")
        ids.add(json.loads((folder / "sinks.json").read_text())["mlflow"]["run"])
    assert len(ids) == 2


def test_mlflow_names_that_become_alike_stay_apart(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    sink = open_one(folder, mlflow=str(tmp_path / "ml"))
    classes = [{"name": name, "iou": value} for name, value in (("a,b", 0.1), ("a;b", 0.2), ("a_b", 0.3))]
    sink.add_row({"kind": "val", "step": 1, "classes": classes})
    sink.close("finished")
    from mlflow.tracking import MlflowClient

    run_id = json.loads((folder / "sinks.json").read_text())["mlflow"]["run"]
    metrics = MlflowClient(tracking_uri=(tmp_path / "ml").as_uri()).get_run(run_id).data.metrics
    assert metrics == {"val_iou/a_b": 0.1, "val_iou/a_b_2": 0.2, "val_iou/a_b_3": 0.3}


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("sqlite:///{}/ml.db", r"sqlite:///.*pip install mlflow"),
        ("http://127.0.0.1:9", r"127\.0\.0\.1.*\n  is the server running"),
        ("{}/a_file", r"a_file.*\n  take a folder that can be written to"),
    ],
)
def test_mlflow_that_cannot_be_used_is_refused_before_training(
    folder: Path, tmp_path: Path, where: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    if where.startswith("sqlite"):
        from importlib.util import find_spec

        if find_spec("sqlalchemy"):
            pytest.skip("sqlalchemy is installed: databases work")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "a_file").write_text("x")
    with pytest.raises(UserError, match=r"(?s)log\.mlflow = .*" + message):
        open_one(folder, mlflow=where.format(tmp_path))


def test_a_damaged_file_of_ids_is_refused(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    (folder / "sinks.json").write_text("[1]")
    with pytest.raises(UserError, match=r"sinks\.json: does not hold the ids of a run; remove it"):
        open_one(folder, mlflow=str(tmp_path / "ml"))
    (folder / "sinks.json").write_text("{")
    with pytest.raises(UserError, match=r"sinks\.json: cannot be read .*; remove it"):
        open_one(folder, mlflow=str(tmp_path / "ml"))


# what is not installed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"wandb": "offline"}, r"log\.wandb: wandb is not installed: pip install 'unetfast\[watch\]', .*--set log\.wandb=off"),
        ({"mlflow": "mlruns"}, r"log\.mlflow: mlflow is not installed: pip install 'unetfast\[watch\]', .*--set log\.mlflow="),
    ],
)
def test_a_missing_package_is_named_with_what_installs_it(
    settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unetfast.train.sinks.opening.find_spec", lambda name: None)
    with pytest.raises(UserError, match=message) as caught:
        check_sinks(LogConfig(**settings))
    assert "\n" not in str(caught.value)
    check_sinks(LogConfig())


# sinks that fail or are slow


class Toy:
    """Takes rows, or fails, or waits, as told."""

    name = "Toy"

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.outcome: str = ""
        self.fails = False
        self.tries = 0
        self.gate = threading.Event()
        self.gate.set()

    def add_row(self, row: Row) -> None:
        self.gate.wait()
        self.tries += 1
        if self.fails:
            raise ConnectionError("the network\nis gone")
        self.steps.append(row["step"])

    def add_picture(self, name: str, path: Path, step: int) -> None:
        self.add_row({"step": step})

    def close(self, outcome: Outcome) -> None:
        self.outcome = outcome


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def toy() -> Iterator[Toy]:
    toy = Toy()
    yield toy
    toy.gate.set()


def test_rows_and_pictures_arrive_in_order_and_before_the_end(toy: Toy, said: list[str], tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "metrics.jsonl", sinks=[toy], say=said.append) as log:
        for step in range(100):
            log.add(train_row(step))
        log.add_picture("predictions", tmp_path / "a.png", 100)
    assert toy.steps == list(range(101))
    assert toy.outcome == "finished"
    assert said == []


def test_a_sink_that_fails_is_said_once_and_counted_and_the_run_goes_on(toy: Toy, said: list[str], tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, sinks=[toy], say=said.append) as log:
        log.add(train_row(1))
        wait_for(lambda: toy.tries == 1)
        toy.fails = True
        for step in range(2, 6):
            log.add(train_row(step))
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3, 4, 5]
    assert said == [
        "warning: Toy failed (ConnectionError: the network); the run goes on, metrics.jsonl holds every row",
        "warning: Toy has not taken 4 of 5 rows and pictures; metrics.jsonl holds every row",
    ]
    assert toy.tries == 1 + MAX_FAILURES  # then it was left alone
    assert toy.outcome == "finished"


def test_a_sink_that_comes_back_is_used_again(toy: Toy, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    time_s = [1000.0]
    monkeypatch.setattr("unetfast.train.sinks.carrier.time", SimpleNamespace(monotonic=lambda: time_s[0]))
    carrier = Carrier(toy, said.append, rest_s=60)
    toy.fails = True
    for step in range(MAX_FAILURES):
        carrier.add_row(train_row(step))
    wait_for(lambda: carrier._rests_until_s > 0)  # it is left alone from now on
    assert toy.tries == MAX_FAILURES
    toy.fails = False
    time_s[0] += 61
    carrier.add_row(train_row(9))
    carrier.close("finished")
    assert toy.steps == [9]
    assert len(said) == 2


def test_a_slow_sink_holds_up_neither_the_run_nor_its_end(toy: Toy, said: list[str]) -> None:
    carrier = Carrier(toy, said.append, close_within_s=0.1)
    toy.gate.clear()  # until this test is over: whoever waited for the sink would wait for ever
    for step in range(1000):
        carrier.add_row(train_row(step))
    carrier.close("finished")
    assert (toy.tries, toy.outcome) == (0, "")
    assert said == ["warning: Toy has not taken 1,000 of 1,000 rows and pictures within 0.1 s; metrics.jsonl holds every row"]


def test_an_error_of_training_reaches_the_sinks_as_a_failed_run(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), MetricsLog(tmp_path / "metrics.jsonl", sinks=[toy]):
        raise ZeroDivisionError
    assert toy.outcome == "failed"


def test_sinks_that_were_opened_are_closed_where_a_later_one_cannot_be(
    folder: Path, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    (tmp_path / "a_file").write_text("x")
    monkeypatch.setattr("unetfast.train.sinks.opening._open_tensorboard", lambda identity, folder: toy)
    with pytest.raises(UserError, match=r"log\.mlflow"):
        open_sinks(LogConfig(mlflow=str(tmp_path / "a_file")), identity(folder), tensorboard=folder / "tensorboard")
    assert toy.outcome == "failed"


def wait_for(condition: Any) -> None:
    end_s = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.002)


# a real run


@pytest.mark.slow
@pytest.mark.usefixtures("_no_network")
def test_a_run_and_its_continuation_are_one_run_in_every_sink(toy_shards: Path, make_config: Any, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    from unetfast.train.loop import train

    out, where = tmp_path / "toy", tmp_path / "mlruns"
    for epochs in (1, 2):
        log = {"wandb": "offline", "mlflow": str(where), "project": "p", "every_steps": 1, "report": False, "tensorboard": True}
        train(toy_shards, make_config(train={"epochs": epochs}, log=log), out, resume=epochs > 1)
        time.sleep(1.1)  # W&B names a start's folder by its second
    client = MlflowClient(tracking_uri=where.as_uri())
    experiment = client.get_experiment_by_name("p")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    losses = [row["loss"] for row in read_rows(out / "metrics.jsonl") if row["kind"] == "train"]
    assert [metric.value for metric in client.get_metric_history(run.info.run_id, "train/loss")] == losses
    assert len(losses) == 6
    pictures = {Path(item.path).name for item in client.list_artifacts(run.info.run_id, "predictions")}
    assert pictures == {"predictions_initial.png", "predictions_epoch_final.png"}
    files = sorted(out.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert len({file.stem for file in files}) == 1
    steps = [
        json.loads(item.value_json)
        for file in files
        for record in read_wandb(file)
        if record.WhichOneof("record_type") == "history"
        for item in record.history.item
        if (item.key or "/".join(item.nested_key)) == "step"
    ]
    assert sorted(set(steps)) == [0, 1, 2, 3, 4, 5, 6]
    assert processes_of_wandb() == []

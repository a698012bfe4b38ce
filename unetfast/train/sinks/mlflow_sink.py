"""MLflow: to a tracking server, a database, or a folder."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

from unetfast.errors import UserError
from unetfast.train.sinks.base import Outcome, Row, RunIdentity, flatten, scalars_of
from unetfast.train.sinks.carrier import first_line
from unetfast.train.sinks.identity import read_ids, write_ids

_STATUS: dict[Outcome, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_MAX_PARAMS = 100  # of one call
_MAX_METRICS = 1000
_MAX_VALUE = 6000  # letters of a parameter


class MlflowSink:
    """Logs rows as metrics over the optimizer step, the config as parameters, pictures and config.toml as artifacts.

    A resumed run goes on in the same MLflow run. MLflow keeps what it was once given: steps that are done again after a
    kill stand twice there, and a parameter that a resume changed is added as `KEY.from_step_N`.

    Args:
        identity: of the run.
        where: a tracking address (http://..., sqlite:///..., file:...), or a folder for MLflow's file store.

    Raises:
        UserError: the address cannot be used or reached, or the run of sinks.json is not there.
    """

    name = "MLflow"

    def __init__(self, identity: RunIdentity, where: str) -> None:
        # MLflow reports its use to its makers unless told not to; it must be told before its first import
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # a server that is away must not hold up the start for minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        address = address_of(where)
        if address.startswith("file:"):
            # MLflow 3 refuses its own file store unless asked; who names a folder asks for it
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.tracking import MlflowClient

        kept = read_ids(identity.folder, "mlflow")
        self._names: dict[str, str] = {}
        try:
            self._client = MlflowClient(tracking_uri=address)
            known = self._client.get_experiment_by_name(identity.project)
            experiment = known.experiment_id if known else self._client.create_experiment(identity.project)
            if kept.get("address") == address and kept.get("experiment") == experiment:
                self._run_id = kept["run"]
                self._client.update_run(self._run_id, status="RUNNING")
            else:
                self._run_id = self._client.create_run(experiment, run_name=identity.name).info.run_id
                write_ids(identity.folder, "mlflow", {"address": address, "experiment": experiment, "run": self._run_id})
            self._log_config(identity)
        except Exception as error:
            raise UserError(f'log.mlflow = "{where}": {first_line(error)}\n  {_remedy(address)}') from None

    def add_row(self, row: Row) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        metrics = [Metric(self._name_of(name), value, now_ms, row["step"]) for name, value in scalars_of(row)]
        for start in range(0, len(metrics), _MAX_METRICS):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + _MAX_METRICS])

    def add_picture(self, name: str, path: Path, step: int) -> None:  # noqa: ARG002  # its file name says which step it shows
        self._client.log_artifact(self._run_id, str(path), name)

    def close(self, outcome: Outcome) -> None:
        self._client.set_terminated(self._run_id, _STATUS[outcome])

    def _log_config(self, identity: RunIdentity) -> None:
        from mlflow.entities import Param

        wanted = {key: str(value)[:_MAX_VALUE] for key, value in flatten(identity.config)}
        there: dict[str, Any] = self._client.get_run(self._run_id).data.params
        new = {key: value for key, value in wanted.items() if key not in there}
        new |= {f"{key}.from_step_{identity.step}": value for key, value in wanted.items() if there.get(key, value) != value}
        params = [Param(key, value) for key, value in new.items() if key not in there]
        for start in range(0, len(params), _MAX_PARAMS):
            self._client.log_batch(self._run_id, params=params[start : start + _MAX_PARAMS])
        config = identity.folder / "config.toml"
        if config.exists():
            self._client.log_artifact(self._run_id, str(config))

    def _name_of(self, name: str) -> str:
        """Turn a name into one that MLflow takes: two that would be the same are kept apart by a number."""
        if name not in self._names:
            plain = wanted = re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)
            number = 1
            while plain in self._names.values():
                number += 1
                plain = f"{wanted}_{number}"
            self._names[name] = plain
        return self._names[name]


def address_of(where: str) -> str:
    """Turn a folder into the address of a file store; an address stays."""
    return where if "://" in where or where.startswith(("file:", "databricks")) else Path(where).resolve().as_uri()


def _remedy(address: str) -> str:
    if address.startswith("http"):
        return "is the server running and reachable? `--set log.mlflow=FOLDER` writes to a folder instead"
    if not address.startswith("file:"):
        return "databases need the full package: pip install mlflow; `--set log.mlflow=FOLDER` writes to a folder instead"
    return "take a folder that can be written to, or leave MLflow out with --set log.mlflow="

"""Weights & Biases: offline into the run folder, or online to the server that the user is logged in to."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import Any, Literal

from unetfast.errors import UserError
from unetfast.train.sinks.base import Outcome, Row, RunIdentity, scalars_of
from unetfast.train.sinks.carrier import first_line
from unetfast.train.sinks.identity import read_ids, write_ids

_START_WITHIN_S = 60.0


class WandbSink:
    """Logs rows over the optimizer step; a resumed run goes on under the same id.

    W&B keeps what it was once given: steps that are done again after a kill stand twice there. Offline, each start of a run
    writes a folder `wandb/offline-run-...` with the same id, and `wandb sync` joins them.

    Args:
        identity: of the run.
        mode: "offline" writes files alone, nothing leaves the machine; "online" sends them.

    Raises:
        UserError: W&B cannot be started: not logged in, no network.
    """

    name = "Weights & Biases"

    def __init__(self, identity: RunIdentity, mode: Literal["offline", "online"]) -> None:
        # its own reports of errors look up a host even offline
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        # a user's own program may have runs under way in W&B's process: it is not ours to end then
        self._is_alone = getattr(sys.modules.get("wandb.sdk.wandb_setup"), "_singleton", None) is None
        import wandb

        kept = read_ids(identity.folder, "wandb")
        run_id = kept["id"] if kept.get("project") == identity.project else secrets.token_hex(4)
        settings = wandb.Settings(
            silent=True,
            console="off",  # what a terminal shows stays there
            disable_code=True,
            disable_git=True,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            init_timeout=_START_WITHIN_S,
        )
        try:
            self._run: Any = wandb.init(
                mode=mode,
                project=identity.project,
                name=identity.name,
                id=run_id,
                resume="allow",
                reinit="create_new",
                dir=str(identity.folder),
                config=identity.config,
                allow_val_change=True,
                settings=settings,
            )
        except Exception as error:
            self._teardown()
            raise UserError(
                f"log.wandb = {mode!r}: W&B does not start ({first_line(error)})\n"
                "  log in with `wandb login`, or take --set log.wandb=offline, and send it later with `wandb sync`"
            ) from None
        write_ids(identity.folder, "wandb", {"id": run_id, "project": identity.project})
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def add_row(self, row: Row) -> None:
        self._run.log({"step": row["step"], "epoch": row.get("epoch"), **dict(scalars_of(row))})

    def add_picture(self, name: str, path: Path, step: int) -> None:
        import wandb

        self._run.log({"step": step, name: wandb.Image(str(path), caption=path.stem)})

    def close(self, outcome: Outcome) -> None:
        """Finish the run, and end W&B's own process unless somebody else may be using it."""
        try:
            self._run.finish(exit_code=1 if outcome == "failed" else 0)
        finally:
            self._teardown()

    def _teardown(self) -> None:
        if self._is_alone:
            import wandb

            wandb.teardown()

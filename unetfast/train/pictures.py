"""The pictures of a run folder: predictions before, during and after training, and the history of its numbers."""

from __future__ import annotations

from typing import Any

from unetfast.train.log import MetricsLog
from unetfast.train.run import Run
from unetfast.train.runfolder import save_picture
from unetfast.train.validate import collect_first_panels
from unetfast.viz.panels import Panel, draw_panels

SERIES = "predictions"  # what the sinks call these pictures


def draw_initial_predictions(run: Run, log: MetricsLog) -> None:
    """Write predictions_initial.png: what the net says before it has learned anything."""
    if not run.world.is_main:
        return
    panels = collect_first_panels(run, run.config.log.num_panels)
    path = run.folder.predictions("initial")
    save_picture(draw_page(run, panels), path)
    log.add_picture(SERIES, path, run.step)


def draw_predictions(run: Run, log: MetricsLog, panels: list[Panel], *, is_last: bool) -> None:
    """Write predictions_epoch_N.png where it is due.

    At the end of the run write predictions_epoch_final.png too, and one picture a sample into saved_images/.
    """
    if not run.world.is_main:
        return
    config = run.config.log
    page = draw_page(run, panels[: config.num_panels])
    path = None
    if run.epoch and run.epoch % config.panels_every_epochs == 0:
        path = run.folder.predictions(run.epoch)
        save_picture(page, path)
    if is_last:
        path = run.folder.predictions("final")
        save_picture(page, path)
    if path is not None:
        log.add_picture(SERIES, path, run.step)
    if not is_last:
        return
    if config.num_saved_images:
        run.folder.saved_images.mkdir(exist_ok=True)
    for place, panel in enumerate(panels[: config.num_saved_images]):
        save_picture(draw_page(run, [panel]), run.folder.saved_images / f"{place:03d}_{panel.title}.png")


def draw_page(run: Run, panels: list[Panel]) -> Any:
    return draw_panels(panels, run.labels.palette, run.labels.names, run.labels.ignore_index)


def draw_history(run: Run, rows: list[dict[str, Any]]) -> None:
    """Write training_history.png."""
    if not run.world.is_main:
        return
    from unetfast.viz.curves import draw_curves  # matplotlib, which only this picture needs

    save_picture(draw_curves(rows, title=run.folder.path.name), run.folder.history)

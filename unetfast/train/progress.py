"""progress.gif: the predictions of a run over its epochs, from the pictures that stand in its folder."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

from unetfast.train.runfolder import RunFolder
from unetfast.wholefile import write_whole

_EPOCH = re.compile(r"predictions_epoch_(\d+)\.png")


def write_progress(folder: RunFolder, palette_K3: np.ndarray, *, max_epoch: int, is_inside: bool = False) -> bool:
    """Write progress.gif from predictions_initial.png, predictions_epoch_N.png and predictions_epoch_final.png.

    It is made anew from what stands on the disk, so a resumed run has all of its frames.

    Args:
        folder: of the run.
        palette_K3: colours of the classes, uint8, (K, 3).
        max_epoch: epochs finished; pictures of later ones are of steps that were cut off by a resume.
        is_inside: whether the run ended inside the next epoch.

    Returns:
        Whether there was a picture to show.
    """
    from unetfast.viz.gif import draw_progress_gif

    found = list_pictures(folder, max_epoch=max_epoch, is_inside=is_inside)
    if not found:
        return False
    pictures = []
    for title, path in found:
        with Image.open(path) as picture:
            pictures.append((title, picture.convert("RGB")))
    data = draw_progress_gif(pictures, palette_K3)
    write_whole(folder.progress, lambda file: file.write(data))
    return True


def list_pictures(folder: RunFolder, *, max_epoch: int, is_inside: bool = False) -> list[tuple[str, Path]]:
    """List the pictures of predictions with what they show: before training, the epochs in order, the end.

    The last epoch's own picture is left out where it is that of the end.
    """
    epochs = sorted(int(match[1]) for match in map(_EPOCH.fullmatch, (path.name for path in folder.path.iterdir())) if match)
    final, initial = folder.predictions("final"), folder.predictions("initial")
    is_final = final.exists() and not is_inside
    shown = [epoch for epoch in epochs if epoch < max_epoch or (epoch == max_epoch and not is_final)]
    pictures = [("before training", initial)] if initial.exists() else []
    pictures += [(f"epoch {epoch}", folder.predictions(epoch)) for epoch in shown]
    if final.exists():
        pictures.append((f"epoch {max_epoch + is_inside}, the end", final))
    return pictures

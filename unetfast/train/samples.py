"""Pictures of single validation samples: those that the best weights do worst and best on."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from unetfast.data.reader import SplitReader
from unetfast.infer.load import TrainedModel, load_model
from unetfast.loader.plainresize import resize_by_libraries
from unetfast.train.history import SAMPLES_NAME
from unetfast.train.pictures import draw_page
from unetfast.train.run import Run
from unetfast.train.runfolder import save_picture
from unetfast.viz.panels import Panel
from unetfast.wholefile import write_whole

NUM_EACH = 6  # worst samples, and best ones


def draw_samples(run: Run) -> None:
    """Write samples/: a picture of each of the worst and best samples of the best validation pass, and samples.json.

    The masks are predicted anew, with the weights of best.pt. Nothing is written where no pass was the best.
    """
    folder = run.folder
    if run.val_reader is None or not folder.best_validation.exists() or not folder.best.exists():
        return
    validation = json.loads(folder.best_validation.read_text(encoding="utf-8"))
    images = validation["images"]
    chosen = choose_extremes(images["iou"])
    trained = load_model(folder.best, device=str(run.device))
    folder.samples.mkdir(exist_ok=True)
    for old in folder.samples.glob("*.png"):  # of a run that went on since
        old.unlink()
    entries: list[dict[str, Any]] = []
    for kind, places in chosen.items():
        for rank, place in enumerate(places, 1):
            sample_id = images["sample"][place]
            panel = predict_panel(trained, run.val_reader, sample_id)
            name = f"{kind}_{rank:02d}_{panel.title}.png"
            save_picture(draw_page(run, [panel]), folder.samples / name)
            scores = {"iou": images["iou"][place], "accuracy": images["accuracy"][place]}
            entries.append({"kind": kind, "sample": sample_id, "name": panel.caption, "picture": name, **scores})
    tree = {"step": validation["step"], "epoch": validation["epoch"], "weights": validation["weights"], "samples": entries}
    text = json.dumps(tree, ensure_ascii=False) + "\n"
    write_whole(folder.samples / SAMPLES_NAME, lambda file: file.write(text.encode()))


def choose_extremes(scores: list[float | None], num_each: int = NUM_EACH) -> dict[str, list[int]]:
    """Choose the places of the lowest and the highest scores, the most extreme first; no place stands in both.

    Args:
        scores: None where there is no score; such places are not chosen.
        num_each: of each kind; fewer where there are not enough.
    """
    places = [place for place, score in enumerate(scores) if score is not None]
    ranked = sorted(places, key=lambda place: (scores[place], place))
    num_worst = min(num_each, -(-len(ranked) // 2))
    num_best = min(num_each, len(ranked) - num_worst)
    return {"worst": ranked[:num_worst], "best": ranked[len(ranked) - num_best :][::-1]}


def predict_panel(trained: TrainedModel, reader: SplitReader, sample_id: int) -> Panel:
    """Predict one sample at training size."""
    height, width = trained.checkpoint.config.loader.size_hw
    stored_HWC = np.ascontiguousarray(reader.decode_image(sample_id))
    stored_hw = stored_HWC.shape[:2]
    image_HWC = np.empty((height, width, 3), dtype=np.uint8)
    resize_by_libraries(stored_HWC, np.array([0.0, 0.0, *stored_hw]), image_HWC)
    rows, columns = ((2 * np.arange(n) + 1) * stored // (2 * n) for n, stored in zip((height, width), stored_hw, strict=True))
    mask_HW = np.array(reader.decode_mask(sample_id)[rows[:, None], columns])
    image_NCHW = torch.from_numpy(image_HWC)[None].permute(0, 3, 1, 2).to(trained.device)
    with torch.no_grad(), trained.amp.autocast(trained.device):
        logits_NKHW = trained.model(image_NCHW)
    pred_HW = logits_NKHW[0].max(dim=0).indices.cpu().numpy().astype(mask_HW.dtype)
    caption = str(reader.read_json(sample_id).get("source_path") or reader.key(sample_id))
    return Panel(image_HWC, mask_HW, pred_HW, reader.key(sample_id), caption)

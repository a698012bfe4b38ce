"""A report of one run: what each of its sections says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unetfast.viz.report.charts import Series, draw_chart, draw_histogram
from unetfast.viz.report.html import Child, Html, number, tag
from unetfast.viz.report.matrix import draw_confusion, swatch
from unetfast.viz.report.page import build_page, facts, inline_picture, navigation, section, table, tiles
from unetfast.viz.report.record import Row, RunRecord, Sample
from unetfast.viz.report.settings import write_config
from unetfast.viz.series import collect, running_mean

METRIC_WORDS = {"mean_dice": "mean Dice", "mean_iou": "mean IoU", "pixel_accuracy": "pixel accuracy", "val_loss": "loss"}
WEIGHTS_WORDS = {"val": "weights", "val_ema": "their average (EMA)"}
SMOOTHED_POINTS = 60  # above this many, single training losses are drawn faint, with a running mean over them
NUM_CLASS_CURVES = 6
SCORE_KEYS = ("mean_dice", "mean_iou", "pixel_accuracy")


def build_report(record: RunRecord) -> str:
    """Write the report of a run as one HTML file that needs nothing else.

    Args:
        record: what the run folder says; sections that it has nothing for say so or are left out.
    """
    parts: list[tuple[str, str, Html | None]] = [
        ("curves", "Curves", _write_curves(record)),
        ("scores", "Validation", _write_scores(record)),
        ("classes", "Classes", _write_classes(record)),
        ("confusion", "Confusion matrix", _write_confusion(record)),
        ("samples", "Worst and best samples", _write_samples(record)),
        ("predictions", "Predictions", _write_predictions(record)),
        ("throughput", "Throughput", _write_throughput(record)),
        ("data", "Data set", _write_data(record)),
        ("config", "Config", write_config(record)),
        ("starts", "Starts and versions", _write_starts(record)),
    ]
    there = [(name, title, content) for name, title, content in parts if content is not None]
    return build_page(
        f"{record.name}: unetfast report",
        tag("header", tag("h1", record.name), tag("span", record.outcome, class_="chip"), _dataset_chip(record)),
        navigation([(name, title) for name, title, _ in there]),
        _write_tiles(record),
        _write_warnings(record),
        [section(name, title, content) for name, title, content in there],
        footer=f"Made by unetfast from the files of {record.path}. Nothing in this page asks for a network.",
    )


def _dataset_chip(record: RunRecord) -> Html | None:
    dataset = record.facts.get("dataset")
    return tag("span", f"{dataset}, {len(record.class_names)} classes", class_="chip") if dataset else None


def _write_tiles(record: RunRecord) -> Html:
    entries = []
    best, metric = record.best_row(), record.best_metric
    if best is not None:
        ema = " (EMA)" if best["kind"] == "val_ema" else ""
        keys = [metric, *(key for key in ("mean_dice", "mean_iou", "pixel_accuracy") if key != metric)]
        for key in keys:
            value = best["loss"] if key == "val_loss" else best[key]
            small = f"best validation{ema}, step {best['step']:,}" if key == metric else "of the same weights"
            entries.append((METRIC_WORDS[key], number(value), small))
    else:
        epoch = next((row for row in reversed(record.rows) if row["kind"] == "epoch"), None)
        if epoch is not None:
            entries.append(("mean IoU", number(epoch["mean_iou"]), f"on training samples, epoch {epoch['epoch']}"))
    epochs = max((row["epoch"] for row in record.rows if row["kind"] == "epoch"), default=0)
    wanted = record.value("train.epochs")
    entries.append(("steps", f"{record.num_steps:,}", f"{epochs} of {wanted} epochs" if wanted else f"{epochs} epochs"))
    rates, waits = (_values(record, key) for key in ("images_per_s", "data_wait_pct"))
    if rates.size:
        entries.append(
            ("images/s", f"{np.median(rates):,.0f}" if np.median(rates) >= 100 else f"{np.median(rates):.1f}", "median")
        )
    if waits.size:
        entries.append(("data-wait", f"{np.median(waits):.1f} %", "median share of the time"))
    return tiles(entries)


def _write_warnings(record: RunRecord) -> Html | None:
    lines = record.warnings
    bad = [row for row in record.rows if row["kind"] == "bad_step"]
    if bad:
        steps = ", ".join(f"{row['step']:,}" for row in bad[:10]) + (", ..." if len(bad) > 10 else "")
        were = "step was" if len(bad) == 1 else "steps were"
        lines.append(f"{len(bad)} {were} not applied: loss or gradients were not finite (at {steps})")
    if record.starts and "outcome" not in record.starts[-1]:
        lines.append("the run's end is not recorded: it is still running, or it was killed")
    if not lines:
        return None
    return tag("div", tag("strong", "Warnings"), tag("ul", [tag("li", line) for line in lines]), class_="warnings")


def _write_curves(record: RunRecord) -> Html:
    rows, marks = record.rows, resume_steps(record)
    steps, losses = collect(rows, "train", "loss")
    if len(steps) > SMOOTHED_POINTS:
        smooth = running_mean(losses, len(losses) // 20)
        loss = [Series("", steps, losses, 0, faint=True), Series("training (running mean)", steps, smooth, 0)]
    else:
        loss = [Series("training", steps, losses, 0)]
    loss += [
        Series("validation", *collect(rows, "val", "loss"), 1),
        Series("validation, EMA", *collect(rows, "val_ema", "loss"), 2),
    ]
    scores = [
        Series("mean IoU, training", *collect(rows, "epoch", "mean_iou"), 0),
        Series("mean IoU, validation", *collect(rows, "val", "mean_iou"), 1),
        Series("mean IoU, EMA", *collect(rows, "val_ema", "mean_iou"), 2),
        Series("mean Dice, validation", *collect(rows, "val", "mean_dice"), 3),
        Series("mean Dice, EMA", *collect(rows, "val_ema", "mean_dice"), 4),
        Series("pixel accuracy, validation", *collect(rows, "val", "pixel_accuracy"), 5),
    ]
    charts = [
        draw_chart("Loss", loss, log=True, marks=marks),
        draw_chart("Scores, from one confusion matrix each", scores, y_range=(0, 1), marks=marks),
        draw_chart("Learning rate", [Series("learning rate", *collect(rows, "train", "learning_rate"), 0)], marks=marks),
        draw_chart("IoU of the largest classes", class_series(record), y_range=(0, 1), marks=marks),
    ]
    return tag("div", tag("div", charts, class_="charts"), _note_resumes(marks))


def _write_throughput(record: RunRecord) -> Html:
    marks = resume_steps(record)
    charts = [
        draw_chart(
            "Throughput", [Series("images/s", *collect(record.rows, "train", "images_per_s"), 0)], unit="images/s", marks=marks
        ),
        draw_chart(
            "Data-wait",
            [Series("data-wait", *collect(record.rows, "train", "data_wait_pct"), 1)],
            unit="% of the time",
            marks=marks,
        ),
    ]
    memory = Series("GPU memory", *collect(record.rows, "train", "gpu_memory_gib"), 2)
    if memory.steps.size:
        charts.append(draw_chart("GPU memory", [memory], unit="GiB", marks=marks))
    note = "Pauses (validation, checkpoints, pictures) are left out. Data-wait: the share in which training waited for a batch."
    return tag("div", tag("div", charts, class_="charts"), tag("p", note, class_="muted"))


def class_series(record: RunRecord) -> list[Series]:
    """Make a curve over the validation passes for each of the classes with the most pixels."""
    passes = [row for row in record.rows if row["kind"] == "val" and row.get("classes")]
    if not passes:
        return []
    last = passes[-1]["classes"]
    known = sorted((place for place in range(len(last)) if last[place]["iou"] is not None), key=lambda k: -last[k]["pixels"])
    steps = np.array([row["step"] for row in passes], dtype=np.int64)
    return [
        Series(last[k]["name"], steps, np.array([row["classes"][k]["iou"] for row in passes], dtype=np.float64), number)
        for number, k in enumerate(known[:NUM_CLASS_CURVES])
    ]


def resume_steps(record: RunRecord) -> list[int]:
    """List the steps at which the run was resumed."""
    return sorted({start["step"] for start in record.starts[1:] if start["step"]})


def _note_resumes(marks: Sequence[int]) -> Html | None:
    if not marks:
        return None
    return tag(
        "p",
        f"Dotted vertical lines: the run was resumed after step {', '.join(f'{mark:,}' for mark in marks)}.",
        class_="muted",
    )


def _write_scores(record: RunRecord) -> Html:
    best = record.best_row()
    if best is None:
        why = (
            "No validation pass gave a number." if record.last_row() else "Nothing was validated: the shards have no val split."
        )
        return tag("p", why, class_="empty")
    chosen: list[tuple[str, Row]] = [(f"best, by {METRIC_WORDS[record.best_metric]}", best)]
    chosen += [("last", row) for kind in WEIGHTS_WORDS if (row := record.last_row(kind)) is not None and row is not best]
    head = ["validation pass", "weights", "epoch", "step", "mean Dice", "mean IoU", "pixel accuracy", "loss"]
    rows = [
        [
            title,
            WEIGHTS_WORDS[row["kind"]],
            f"{row['epoch']:,}",
            f"{row['step']:,}",
            *(number(row[key]) for key in SCORE_KEYS),
            number(row["loss"]),
        ]
        for title, row in chosen
    ]
    size = "at the stored size" if best.get("size") == "source" else f"at training size {_size(record)}"
    images = f"{best['num_images']:,} images, pixels counted {size}. " if "num_images" in best else ""
    convention = best.get("convention", "")
    return tag(
        "div", table(head, rows, numbers_from=2), tag("p", images, convention[:1].upper() + convention[1:], ".", class_="muted")
    )


def _size(record: RunRecord) -> str:
    size = record.value("loader.size_hw")
    return f"{size[0]}x{size[1]}" if size else ""


def _write_classes(record: RunRecord) -> Html | None:
    best = record.best_row() or record.last_row()
    if best is None or not best.get("classes"):
        return None
    colors = record.class_colors
    total = max(1, sum(entry["pixels"] for entry in best["classes"]))
    absent = [entry["name"] for entry in best["classes"] if entry["iou"] is None]
    shown = [(place, entry) for place, entry in enumerate(best["classes"]) if entry["iou"] is not None]
    shown.sort(key=lambda pair: (pair[1]["iou"], pair[0]))
    head = tag("div", *(tag("span", word) for word in ("class", "IoU", "", "Dice", "pixels")), class_="class head")
    lines = [
        tag(
            "div",
            tag("span", swatch(colors[place] if place < len(colors) else None), entry["name"], class_="class-name"),
            tag("span", tag("span", style=f"width:{100 * entry['iou']:.2f}%"), class_="track"),
            tag("span", number(entry["iou"])),
            tag("span", number(entry["dice"])),
            tag("span", f"{100 * entry['pixels'] / total:.2f} %" if entry["pixels"] else "none"),
            class_="class",
        )
        for place, entry in shown
    ]
    half = -(-len(lines) // 2) if len(lines) > 12 else len(lines)
    columns = [tag("div", head, part) for part in (lines[:half], lines[half:]) if part]
    ema = " (EMA)" if best["kind"] == "val_ema" else ""
    of = f"Of the validation pass at step {best['step']:,}{ema}; the worst classes first."
    note = (
        tag("p", f"Neither true nor predicted, and left out of the means: {', '.join(absent)}.", class_="muted")
        if absent
        else None
    )
    return tag("div", tag("p", of, class_="muted"), tag("div", columns, class_="classes"), note)


def _write_confusion(record: RunRecord) -> Html | None:
    confusion_KK, names = record.confusion_KK(), record.class_names
    if confusion_KK is None or record.validation is None or len(names) != len(confusion_KK):
        return None
    step, weights = record.validation["step"], " (EMA)" if record.validation.get("weights") == "ema" else ""
    note = f"Of the validation pass at step {step:,}{weights}; each row is divided by its true pixels."
    return tag("div", tag("p", note, class_="muted"), draw_confusion(confusion_KK, names, record.class_colors))


def _write_samples(record: RunRecord) -> Html | None:
    scores = record.image_scores()
    if not scores.size:
        return None
    note = (
        f"By the mean IoU of each image over the classes that are true or predicted in it ({scores.size:,} images: "
        f"lowest {scores.min():.4f}, median {np.median(scores):.4f}, highest {scores.max():.4f}). "
        "This is for finding images, and is not the score of the split."
    )
    groups = [("Worst", [one for one in record.samples if one.kind == "worst"])]
    groups.append(("Best", [one for one in record.samples if one.kind == "best"]))
    pictures = [
        (tag("h3", title), tag("div", [_draw_sample(one) for one in found], class_="pictures two"))
        for title, found in groups
        if found
    ]
    missing = None if record.samples else tag("p", "no pictures: the run did not come to its end", class_="empty")
    histogram = tag("div", draw_histogram("Images by their score", scores), class_="charts")
    return tag("div", tag("p", note, class_="muted"), histogram, pictures, missing)


def _draw_sample(sample: Sample) -> Html:
    scores = f": IoU {number(sample.iou)}, accuracy {number(sample.accuracy)}"
    caption = tag("figcaption", tag("code", sample.name), scores)
    return tag(
        "figure",
        caption,
        inline_picture(sample.picture, sample.media_type, f"image, truth, prediction, error of {sample.name}"),
    )


def _write_predictions(record: RunRecord) -> Html | None:
    if not record.pictures:
        return None
    figures = [
        tag("figure", tag("figcaption", caption), inline_picture(data, media_type, f"predictions: {caption}"))
        for caption, data, media_type in record.pictures
    ]
    return tag("div", figures, class_="pictures")


def _write_data(record: RunRecord) -> Html:
    known = record.facts
    if not known:
        return tag("p", "facts.json is not in the run folder: the run is of an older version", class_="empty")
    splits = known["splits"]
    rows: list[list[Child]] = []
    for name, split in splits.items():
        low, high = ("x".join(map(str, split[key])) for key in ("min_hw", "max_hw"))
        labelled = sum(split["class_pixels"])
        ignored = split["ignored_pixels"] / max(1, labelled + split["ignored_pixels"])
        size = low if low == high else f"{low} to {high}"
        mean = ", ".join(f"{value:.3f}" for value in split["mean"])
        rows.append(
            [
                name,
                f"{split['samples']:,}",
                f"{split['groups']:,}" if split["groups"] else "\N{EN DASH}",
                size,
                f"{100 * ignored:.2f} %",
                mean,
            ]
        )
    counts = next(iter(splits.values()))
    shares = np.array(counts["class_pixels"], dtype=np.float64)
    order = np.argsort(-shares, kind="stable")[:10].tolist()
    names = record.class_names
    most = ", ".join(f"{names[place]} {100 * shares[place] / max(1, shares.sum()):.1f} %" for place in order)
    never = [names[place] for place in np.flatnonzero(shares == 0).tolist()]
    first = next(iter(splits))
    entries: list[tuple[str, Child]] = [
        ("data set", f"{known['dataset']} ({known['layout']})"),
        ("shards", tag("code", known["shards"])),
        ("digest", tag("code", known["manifest_digest"])),
        ("split", known["split_rule"]),
        ("classes", f"{len(names)}; largest in {first}: {most}"),
    ]
    if never:
        entries.append((f"not in {first}", ", ".join(never)))
    head = ["split", "samples", "groups", "height x width", "ignored pixels", "mean of R, G, B"]
    return tag("div", facts(entries), tag("h3", "Splits"), table(head, rows))


def _write_starts(record: RunRecord) -> Html | None:
    if not record.starts:
        return None
    head = ["began", "at step", "to step", "ended", "device", "number format", "loader"]
    rows = [
        [
            start["began"].replace("+00:00", "Z"),
            f"{start['step']:,}",
            f"{start['end_step']:,}" if "end_step" in start else "\N{EN DASH}",
            start.get("outcome", "not recorded"),
            start["device"] + (", compiled" if start.get("compiled") else ""),
            start["number_format"],
            start["loader"],
        ]
        for start in record.starts
    ]
    versions = ", ".join(f"{name} {value}" for name, value in record.starts[-1]["versions"].items())
    entries: list[tuple[str, Child]] = [("versions", versions)]
    if "parameters" in record.facts:
        entries.append(("parameters", f"{record.facts['parameters']:,}"))
    return tag("div", table(head, rows, numbers_from=7), tag("div", facts(entries), style="margin-top:12px"))


def _values(record: RunRecord, key: str) -> np.ndarray:
    values = collect(record.rows, "train", key)[1]
    finite: np.ndarray = values[np.isfinite(values)]
    return finite

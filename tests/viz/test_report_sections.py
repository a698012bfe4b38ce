"""What a report and a comparison say, of whole and of poor run folders."""

from __future__ import annotations

import re
from typing import Any

import pytest
from test_report_html import Reader
from toy_record import CONVENTION, EVIL, make_facts, make_record, make_rows, make_validation

from unetfast.viz.report.compare import build_comparison, delta
from unetfast.viz.report.comparison import Comparison, compare_records, label_runs
from unetfast.viz.report.record import RunRecord
from unetfast.viz.report.sections import build_report, resume_steps

SECTIONS = ["curves", "scores", "classes", "confusion", "samples", "predictions", "throughput", "data", "config", "starts"]


def sections_of(page: str) -> list[str | None]:
    return [attributes.get("id") for name, attributes in Reader(page).tags if name == "section"]


def test_a_whole_record_has_every_section_and_says_what_it_holds() -> None:
    page = build_report(make_record())
    assert sections_of(page) == SECTIONS
    text = " ".join(Reader(page).text.split())
    for words in (
        "toy <run> & co",
        "stopped early",
        "0.7600best validation (EMA), step 50",  # mean Dice of the average
        "5 of 8 epochs",
        CONVENTION[1:],
        "1 step was not applied",
        "warned <val> (validation at step 50)",
        "small <split>",
        "the run was resumed after step 20",
        "40 images, pixels counted at training size 256x256",
        "39 images: lowest 0.0500, median 0.5000, highest 0.9500",
        "shards & <more>/",
        "0123456789abcdef",
        "epochs8 (default 3)",
        "unetfast 0.1.0, torch 2",
        *EVIL[:2],
    ):
        assert words in text, words


@pytest.mark.parametrize("num_classes", [1, 2, 17, 150])
def test_any_number_of_classes(num_classes: int) -> None:
    page = build_report(make_record(num_classes))
    assert sections_of(page) == SECTIONS
    names = re.findall(r'class="class-name">(.*?)</span></span>|class="class-name">(.*?)</span><span class="track', page)
    assert len(names) == max(1, num_classes - 1)  # the absent class has no bar


def test_nothing_but_text_enters_from_names() -> None:
    read = Reader(build_report(make_record(150)))
    assert not [name for name, _ in read.tags if name in {"b", "iframe", "link", "object", "embed"}]
    sources = [attributes["src"] or "" for _, attributes in read.tags if "src" in attributes]
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert all((attributes["href"] or "").startswith("#") for _, attributes in read.tags if "href" in attributes)
    assert not [key for _, attributes in read.tags for key in attributes if key.startswith("on")]
    scripts = [attributes for name, attributes in read.tags if name == "script"]
    assert all(attributes == {} or attributes.get("type") == "application/json" for attributes in scripts)


def test_no_address_of_a_network_stands_in_the_page() -> None:
    assert not re.search(r"https?:|//[a-z]|@import|url\(", build_report(make_record()))


def without(**changes: Any) -> str:
    return build_report(make_record(**changes))


@pytest.mark.parametrize(
    ("changes", "missing", "words"),
    [
        (
            {"rows": make_rows(4, has_val=False), "validation": None, "samples": ()},
            {"classes", "confusion", "samples"},
            "Nothing was validated: the shards have no val split.",
        ),
        ({"rows": []}, {"classes"}, "nothing to show"),
        ({"facts": {}}, {"starts"}, "facts.json is not in the run folder"),
        ({"samples": ()}, set(), "no pictures: the run did not come to its end"),
        ({"pictures": ()}, {"predictions"}, ""),
        ({"validation": None, "samples": ()}, {"confusion", "samples"}, "best, by mean Dice"),
        ({"validation": make_validation(4, num_images=1)}, {"samples"}, ""),
    ],
    ids=["no val split", "no rows", "older run", "no samples", "no pictures", "no details", "no labelled image"],
)
def test_a_poor_record_has_a_page_too(changes: dict[str, Any], missing: set[str], words: str) -> None:
    page = without(**changes)
    assert set(SECTIONS) - set(sections_of(page)) == missing
    assert words in " ".join(Reader(page).text.split())


def test_the_end_of_a_run_that_was_killed_is_not_known() -> None:
    facts = make_facts(4)
    for key in ("outcome", "end_step", "ended"):
        del facts["starts"][-1][key]
    text = Reader(without(facts=facts)).text
    assert "running, or killed" in text
    assert "the run's end is not recorded" in text


def test_many_training_losses_are_smoothed() -> None:
    rows = make_rows(2, epochs=9)
    assert "training (running mean)" in build_report(make_record(2, rows=rows))
    assert "training (running mean)" not in build_report(make_record(2))


def test_the_best_row_follows_the_metric_and_counts_the_average() -> None:
    record = make_record()
    best = record.best_row()
    assert best is not None
    assert (best["kind"], best["step"]) == ("val_ema", 50)
    record.config["checkpoint"]["best_metric"] = "val_loss"
    best = record.best_row()
    assert best is not None
    assert (best["kind"], best["step"]) == ("val", 50)  # the average's loss is larger by 0.01


def test_resumes_are_the_later_starts() -> None:
    assert resume_steps(make_record(facts=make_facts(4, starts=3))) == [20, 40]
    assert resume_steps(make_record(facts=make_facts(4, starts=1))) == []


# comparisons


def compare_with(other: RunRecord, **changes: Any) -> Comparison:
    return compare_records([make_record(name="first", **changes), other])


def test_equal_runs_are_comparable_and_differ_in_nothing() -> None:
    comparison = compare_with(make_record(name="second"), facts=make_facts(4))
    assert comparison.reasons == []
    assert comparison.config == {}
    assert [one.spread for one in comparison.classes] == [0.0] * 4
    assert "No key differs" in build_comparison(comparison)


def test_differences_of_config_are_listed_key_by_key_without_logging() -> None:
    other = make_record(name="second")
    other.config["optimizer"]["learning_rate"] = 0.5
    other.config["log"]["every_steps"] = 99
    del other.config["loss"]["focal"]
    comparison = compare_with(other)
    assert comparison.config == {"loss.focal": [0.0, None], "optimizer.learning_rate": [1e-4, 0.5]}
    assert comparison.notes[0] == "[loss] differs: losses are not on one scale, scores are"


def test_classes_with_the_largest_differences_stand_first() -> None:
    other = make_record(name="second")
    row = other.best_row()
    assert row is not None
    row["classes"][2]["iou"] = 0.0
    comparison = compare_with(other)
    first = make_record().best_row()
    assert first is not None
    assert comparison.classes[0].name == first["classes"][2]["name"]
    assert comparison.classes[0].spread == first["classes"][2]["iou"]
    assert comparison.classes[-1].ious == [None, None]


def change_best(record: RunRecord, **values: Any) -> RunRecord:
    for row in record.rows:
        if row["kind"] in ("val", "val_ema"):
            row.update(values)
    return record


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (
            make_record(name="b", facts=make_facts(4, digest="ff")),
            r"the data differs: first: folder, 160 train / 40 val, digest 0123.*; b: .*ff",
        ),
        (make_record(name="b", facts={}), r"of b the data is not known \(no facts\.json"),
        (make_record(3, name="b"), r"the classes differ: first: 4; b: 3"),
        (make_record(name="b", rows=make_rows(4, has_val=False)), r"b has no validation scores"),
        (change_best(make_record(name="b"), num_images=41), r"the validation images differ in number \(first: 40; b: 41\)"),
        (change_best(make_record(name="b"), size="source"), r"other sizes \(first: training size 256x256; b: stored size\)"),
        (
            change_best(make_record(name="b"), convention="mean of images"),
            r"conventions of the scores differ \(first: one.*; b: mean",
        ),
    ],
    ids=["data", "older", "classes", "no val", "images", "size", "convention"],
)
def test_what_makes_runs_not_comparable_is_said(other: RunRecord, reason: str) -> None:
    comparison = compare_with(other)
    assert not comparison.is_comparable
    assert re.search(reason, "\n".join(comparison.reasons)), comparison.reasons
    assert "Not comparable" in build_comparison(comparison)


def test_a_training_size_that_differs_is_another_count_of_pixels() -> None:
    other = make_record(name="b")
    other.config["loader"]["size_hw"] = [64, 96]
    assert "other sizes" in compare_with(other).reasons[0]


def test_the_seed_alone_is_chance() -> None:
    other = make_record(name="b")
    other.config["train"]["seed"] = 5
    assert "nothing but the seed differs: the differences are those of chance" in compare_with(other).notes


def test_runs_of_one_name_are_told_apart_by_their_paths() -> None:
    assert label_runs([make_record(name="a", path="x/a"), make_record(name="a", path="y/a")]) == ["x/a", "y/a"]
    assert label_runs([make_record(name="a"), make_record(name="b")]) == ["a", "b"]


def test_deltas_have_a_sign_and_a_verdict() -> None:
    assert delta(0.6, 0.5) == ("+0.1000", "better")
    assert delta(0.4, 0.5) == ("-0.1000", "worse")
    assert delta(0.4, 0.5, lower_is_better=True) == ("-0.1000", "better")
    assert delta(0.5, 0.5) == ("±0", "")
    assert delta(None, 0.5) == ("", "")


def test_the_page_of_three_runs_overlays_their_curves() -> None:
    page = build_comparison(compare_records([make_record(name=name) for name in ("<a>", "b", "c")]))
    assert sections_of(page) == ["scores", "curves", "classes", "config", "speed"]
    assert re.search(r'aria-label="Mean IoU, validation: &lt;a&gt;, b, c"', page)
    assert "<a>" in Reader(page).text


def test_one_run_alone_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="one run alone"):
        compare_records([make_record()])

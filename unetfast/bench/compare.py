"""A record of `unetfast bench` against an earlier one: what got faster, what slower, and what the rounds cannot tell.

Two medians always differ. A rung counts as faster or slower only where no round of the one record lies among the rounds of the
other and the medians are farther apart than the rounds of either record among themselves (a machine that others disturb moves
that much by itself); as the same only where even the farthest rounds are near. Of anything between it says that it cannot tell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unetfast.bench.table import align, format_plain, format_rate
from unetfast.bench.verdict import say_others
from unetfast.errors import UserError

MIN_ROUNDS = 4  # of each record: with so many a side, ranges lie apart by chance in 2 of 70 cases
SAME = 0.05  # farthest rounds within this part of each other are the same
LEAST_CHANGE = 0.02  # a smaller difference of medians is none, however narrow the ranges
FASTER, SLOWER, SAME_SPEED, UNKNOWN = "faster", "slower", "same", "cannot tell"

_MACHINE = ("processor", "cores", "cpu_features", "gpus")


def read_bench_record(path: Path) -> dict[str, Any]:
    """Read a record that `unetfast bench --json` wrote.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a record of `unetfast bench --json FILE`") from None
    except ValueError as error:
        raise UserError(f"{path}: no JSON ({error}); give a record of `unetfast bench --json FILE`") from None
    if not _is_record(record):
        raise UserError(f"{path}: no record of `unetfast bench`; write one by `unetfast bench --json FILE`")
    checked: dict[str, Any] = record
    return checked


def _is_record(record: Any) -> bool:
    """Say whether a tree has all that is compared."""
    try:
        parts = [record["config"], record["data"], record["rungs"], record["environment"], record["environment"]["packages"]]
        figures = [rung["images_per_s"] for rung in record["rungs"].values()]
        told = record["environment"]["utc"], record["environment"]["git_revision"]
        positive = all(figure[name] > 0 for figure in figures for name in ("median", "min", "max"))
        rounds = all(isinstance(figure["rounds"], list) for figure in figures)
    except (AttributeError, IndexError, KeyError, TypeError):
        return False
    whole = all(isinstance(part, dict) for part in parts) and all(isinstance(word, str) for word in told)
    return bool(record.get("benchmark") == "bench") and whole and positive and rounds


def compare_records(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Hold two records against each other.

    Returns:
        rungs: by name, `ratio` (new median over old), `low` and `high` (of its farthest rounds) and `verdict`; only those that
            both have.
        missing: names of rungs that one of them lacks.
        differences: lines for people: what besides the code differs: machine, data, versions, config.
        busy: lines for people: beside which of them other programs had the cores.
        comparable: False where machine or data differ, so that no ratio tells of the code.
    """
    both = [name for name in new["rungs"] if name in old["rungs"]]
    one_sided = sorted({*new["rungs"]} ^ {*old["rungs"]})
    apart = _machine_and_data(old, new)
    return {
        "rungs": {name: judge_change(old["rungs"][name]["images_per_s"], new["rungs"][name]["images_per_s"]) for name in both},
        "missing": one_sided,
        "differences": [*apart, *_versions_and_config(old, new)],
        "busy": [f"{name} record: {others}" for name, one in (("old", old), ("new", new)) if (others := _say_others(one))],
        "comparable": not apart,
    }


def judge_change(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Judge one figure, of which more is better, by the ranges of its rounds; each as `harness.spread`."""
    ratio, low, high = new["median"] / old["median"], new["min"] / old["max"], new["max"] / old["min"]
    few = min(len(old["rounds"]), len(new["rounds"])) < MIN_ROUNDS
    change = 1 - min(ratio, 1 / ratio)
    noise = max((one["max"] - one["min"]) / one["median"] for one in (old, new))
    if few:
        verdict = UNKNOWN
    elif (low > 1 or high < 1) and change >= max(LEAST_CHANGE, noise):
        verdict = FASTER if low > 1 else SLOWER
    elif low >= 1 - SAME and high <= 1 + SAME:
        verdict = SAME_SPEED
    else:
        verdict = UNKNOWN
    return {"ratio": round(ratio, 4), "low": round(low, 4), "high": round(high, 4), "few_rounds": few, "verdict": verdict}


def format_comparison(comparison: Mapping[str, Any], old: Mapping[str, Any], new: Mapping[str, Any], name: str) -> str:
    """Write a table and a verdict for people.

    Args:
        comparison: of the two records.
        old: the earlier record.
        new: the later one.
        name: of the earlier one, a file.
    """
    rows = [("rung", "old img/s", "new img/s", "ratio (min..max)", "verdict")]
    for rung, change in comparison["rungs"].items():
        figures = (format_plain(change[part], 3) for part in ("ratio", "low", "high"))
        ratio = "{} ({}..{})".format(*figures)
        sides = (format_rate(record["rungs"][rung]["images_per_s"]) for record in (old, new))
        rows.append((rung, *sides, ratio, change["verdict"]))
    lines = [f"against {name} ({old['environment']['utc']}, revision {old['environment']['git_revision']})"]
    lines += [align(rows, left=(0, 4))] if comparison["rungs"] else []
    lines += [f"only one record has {', '.join(comparison['missing'])}"] * bool(comparison["missing"])
    lines += [f"differs  {line}" for line in comparison["differences"]]
    lines += [f"note     {line}" for line in comparison["busy"]]
    return "\n".join([*lines, f"verdict  {_conclude(comparison)}"])


def _conclude(comparison: Mapping[str, Any]) -> str:
    changes = comparison["rungs"]
    if not changes:
        return "the records have no rung in common"
    parts = [
        f"{verdict}: {', '.join(named)}"
        for verdict in (FASTER, SLOWER, SAME_SPEED, UNKNOWN)
        if (named := [name for name, change in changes.items() if change["verdict"] == verdict])
    ]
    text = "; ".join(parts)
    few = any(change["few_rounds"] for change in changes.values())
    wide = not few and any(change["verdict"] == UNKNOWN for change in changes.values())
    reasons = [f"a record has fewer than {MIN_ROUNDS} rounds; take --rounds {MIN_ROUNDS} or more"] * few
    reasons += ["rounds differ too much among themselves"] * wide
    reasons += ["other programs had cores meanwhile"] * bool(comparison["busy"])
    if wide or comparison["busy"]:
        reasons.append("run both on a quiet machine, with longer --seconds")
    text += f" ({'; '.join(reasons)})" if reasons else ""
    return text if comparison["comparable"] else f"not comparable, machine or data differ; as it stands, {text}"


def _machine_and_data(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    lines = [
        f"machine, {key}: {_say(old['environment'].get(key))} -> {_say(new['environment'].get(key))}"
        for key in _MACHINE
        if old["environment"].get(key) != new["environment"].get(key)
    ]
    if old.get("device") != new.get("device"):
        lines.append(f"machine, device: {_say(old.get('device'))} -> {_say(new.get('device'))}")
    return [*lines, *_differing("data", old["data"], new["data"])]


def _versions_and_config(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    before, now = ({"python": one["environment"].get("python"), **one["environment"]["packages"]} for one in (old, new))
    return [
        *_differing("version", before, now),
        *_loader_without(old, new),
        *_differing("config", _flatten(old["config"]), _flatten(new["config"])),
    ]


def _loader_without(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Tell where one of two CPU loaders did without what the other had, such as compiled steps; older records do not say."""
    sides = [record["rungs"].get("loader", {}).get("facts", {}) for record in (old, new)]
    if any("remarks" not in side or side.get("backend") != "cpu" for side in sides):
        return []
    before, now = (side["remarks"] or None for side in sides)
    return [f"loader: {_say(before)} -> {_say(now)}"] if before != now else []


def _say_others(record: Mapping[str, Any]) -> str:
    return say_others(record.get("other_cores"), record["environment"].get("cores"))


def _differing(what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    keys = [*old, *(key for key in new if key not in old)]
    return [f"{what}, {key}: {_say(old.get(key))} -> {_say(new.get(key))}" for key in keys if old.get(key) != new.get(key)]


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _say(value: Any) -> str:
    return "none" if value in (None, [], {}) else value if isinstance(value, str) else json.dumps(value)

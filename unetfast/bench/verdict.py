"""What the rungs of one record say together: which stage is the limit, how much room the others have, what to do.

Rungs that took turns are held against each other round by round, so a machine that was slow for a while was slow for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unetfast.bench.harness import spread
from unetfast.bench.table import format_number

# training this near to the model alone is not held up by data, whatever the noise of the rounds
FULL_SHARE = 0.97
# rounds that differ by more than this part of their median say little
NOISY_SPREAD = 0.25
# other programs that take this part of the cores are measured too
BUSY_SHARE = 0.1
# a loader with less room than this holds training up now and then
SCANT_FEED = 1.15
# a loader whose decoding is less of its work than this gains little by a cache of decoded pixels
CACHE_SHARE = 0.2
# a stored side this many times the target's costs more to decode than to pack smaller once
LARGE_REDUCTION = 1.5

Rungs = Mapping[str, Mapping[str, Any]]


def judge(rungs: Rungs, *, others: str = "") -> dict[str, Any]:
    """Find the limit.

    Args:
        rungs: `RungResult.to_json` by name; any of them may be missing.
        others: of `say_others`.

    Returns:
        limit: "model", "loader", "cores" (both want the same ones), "coupling" (neither alone explains training), or None
            where the rungs do not tell.
        feeds: what the loader gives over what the model takes, as `spread`; None without both.
        train_of_model: images/s of training over those of the model alone, as `spread`; None without both.
        train_of_loader: likewise, over those of the loader alone.
        loader_core_share: part of a training image's processor time that is the loader's, 0 to 1; None off the CPU.
        data_wait_pct: median of training; None without it.
        sentence: for people: the limit and the figures that show it.
        noise: for people: which rungs' rounds differ so much that the figures say little, and what else had the cores; "" where
            there is nothing of it.
        next: what limits after it, or what to try; "" where nothing is known.
    """
    feeds = ratio(rungs, "loader", "model")
    of_model = ratio(rungs, "train", "model")
    wait = (rungs.get("train", {}).get("facts", {}).get("data_wait_pct") or {}).get("median")
    share = _loader_core_share(rungs)
    limit = _find_limit(feeds, of_model, share)
    return {
        "limit": limit,
        "feeds": feeds,
        "train_of_model": of_model,
        "train_of_loader": ratio(rungs, "train", "loader"),
        "loader_core_share": share,
        "data_wait_pct": wait,
        "sentence": _say_alone(rungs) if feeds is None else _say_limit(limit, feeds, of_model, share, wait),
        "noise": _say_noise(rungs, others),
        "next": _say_next(limit, rungs, feeds),
    }


def ratio(rungs: Rungs, name: str, base: str) -> dict[str, Any] | None:
    """Divide images/s of two rungs, round by round; None where one is missing."""
    if name not in rungs or base not in rungs:
        return None
    pairs = zip(rungs[name]["images_per_s"]["rounds"], rungs[base]["images_per_s"]["rounds"], strict=True)
    return spread([own / other for own, other in pairs])


def say_others(taken: float | None, cores: int | None) -> str:
    """Say how much of the cores other programs had during some rounds; "" where that was little or is not known.

    Args:
        taken: of `rung.OtherWork`.
        cores: that there are.
    """
    if not taken or not cores or taken < BUSY_SHARE * cores:
        return ""
    return f"other programs had {taken:.2g} of {cores} cores meanwhile"


def _say_noise(rungs: Rungs, others: str) -> str:
    noisy = []
    for name, rung in rungs.items():
        figure = rung["images_per_s"]
        if figure["max"] - figure["min"] > NOISY_SPREAD * figure["median"]:
            noisy.append(f"{name} by {100 * (figure['max'] - figure['min']) / figure['median']:.0f} %")
    found = [others] * bool(others) + [f"rounds differ, of {', '.join(noisy)}"] * bool(noisy)
    if not found:
        return ""
    return f"{'; '.join(found)}: the figures say little; run it on a quiet machine, or with longer --seconds"


def _loader_core_share(rungs: Rungs) -> float | None:
    """Say what part of the cores' work in training is the loader's, where the model computes on the same cores."""
    if "loader" not in rungs or "model" not in rungs or rungs["model"]["facts"].get("device") != "cpu":
        return None
    loader_s, model_s = (float(rungs[name]["core_s_per_image"]["median"]) for name in ("loader", "model"))
    return round(loader_s / (loader_s + model_s), 4)


def _find_limit(feeds: dict[str, Any] | None, of_model: dict[str, Any] | None, share: float | None) -> str | None:
    if feeds is None:
        return None
    if share is not None:  # on one set of cores who works most is the limit; unless the loader has too few threads
        return "loader" if share > 2 / 3 or feeds["max"] < 1 else "model" if share < 1 / 3 else "cores"
    if of_model is not None and of_model["median"] >= FULL_SHARE:
        return "model"
    if feeds["median"] < SCANT_FEED:
        return "loader"
    return "model" if of_model is None else "coupling"


def _say_alone(rungs: Rungs) -> str:
    """Say how near each rung is to its own limit, where loader and model cannot be held against each other."""
    parts = []
    for name, rung in rungs.items():
        facts, core_s = rung["facts"], max(float(rung["core_s_per_image"]["median"]), 1e-9)
        if name == "read" and facts.get("hash_gb_per_s"):
            hash_s = facts["bytes_per_image"] / (1e9 * facts["hash_gb_per_s"])
            parts.append(f"{100 * hash_s / core_s:.0f} % of reading's core-seconds are the hash")
        decode_share = _decode_share(rung)
        if name == "loader" and decode_share is not None:
            parts.append(f"{100 * decode_share:.0f} % of the loader's core-seconds are decoding")
        if name == "model" and facts.get("share_of_roofline_pct"):
            parts.append(f"the model reaches {facts['share_of_roofline_pct']:.2g} % of its roofline")
        if name == "train":
            parts.append(f"data-wait {facts['data_wait_pct']['median']:.2g} %")
    return "; ".join([*parts, "what limits training is told by loader and model together (unetfast bench all)"])


def _decode_share(rung: Mapping[str, Any]) -> float | None:
    """Say what part of a loader's processor time decoding alone takes; None where that was not measured."""
    per_core_s = rung["facts"].get("decode_images_per_core_s")
    return 1 / per_core_s / max(float(rung["core_s_per_image"]["median"]), 1e-9) if per_core_s else None


def _say_limit(
    limit: str | None,
    feeds: dict[str, Any],
    of_model: dict[str, Any] | None,
    share: float | None,
    wait: float | None,
) -> str:
    parts = []
    if limit == "model":
        parts.append(f"the model is the limit; the loader feeds {format_number(feeds['median'])}x what it eats")
    elif limit == "loader":
        parts.append(f"the loader is the limit; it feeds {format_number(feeds['median'])}x what the model eats")
    elif limit == "cores":
        parts.append(
            f"the cores are the limit; the loader alone feeds {format_number(feeds['median'])}x what the model alone eats"
        )
    else:
        parts.append(
            f"neither alone is the limit: the loader feeds {format_number(feeds['median'])}x what the model eats, "
            "and training still falls behind the model"
        )
    if of_model is not None:
        low, high = (f"{100 * of_model[end]:.3g}" for end in ("min", "max"))
        ends = "" if low == high else f" ({low}..{high})"
        parts.append(f"training reaches {100 * of_model['median']:.3g} %{ends} of the model alone")
    if share is not None:
        parts.append(f"{100 * share:.2g} % of an image's core-seconds are the loader's")
    if wait is not None:
        parts.append(f"data-wait {wait:.2g} %")
    return "; ".join(parts)


def _say_next(limit: str | None, rungs: Rungs, feeds: dict[str, Any] | None) -> str:
    if limit in ("loader", "cores") or (limit is None and "model" not in rungs and "loader" in rungs):
        return _say_next_of_loader(rungs, limit)
    if limit == "coupling":
        return "loader and step get in each other's way on the host: another number of loader.threads, or more cores"
    return _say_next_of_model(rungs["model"]["facts"], feeds) if "model" in rungs else ""


def _say_next_of_model(facts: Mapping[str, Any], feeds: dict[str, Any] | None) -> str:
    steps = []
    if facts.get("device") != "cpu" and facts.get("compiled") is False:
        steps.append("train.compile=on, the model runs uncompiled on a GPU")
    if facts.get("channels_last") is False:
        steps.append("train.channels_last=true, convolutions are faster with it")
    if facts.get("next_limit"):
        by_name = "; --profile names them" if facts.get("limits", {}).get("name") == "kernels" else ""
        steps.append(f"{facts['next_limit']}{by_name}")
    elif feeds is not None and not steps:
        steps.append(f"the loader, once the model is {format_number(feeds['median'])}x as fast")
    return "; ".join(steps)


def _say_next_of_loader(rungs: Rungs, limit: str | None) -> str:
    """Name what makes this loader cheaper, in the order of what it gives."""
    facts = rungs["loader"]["facts"]
    steps = []
    on_gpu = str(facts.get("device")).startswith("cuda")
    if facts.get("backend") == "dali" and not on_gpu:
        steps.append("loader.backend=cpu, DALI's CPU mode is for tests")
    elif facts.get("cache") == "off" and on_gpu:
        steps.append("loader.cache=gpu where the data set fits on the card")
    elif facts.get("cache") == "off":
        share = _decode_share(rungs["loader"])
        if share is None or share >= CACHE_SHARE:
            steps.append("loader.cache=ram where the decoded pixels fit into memory")
        else:
            steps.append(
                "more cores, or fewer augment.* keys: most of it is not decoding (but reading, resize, augmentation, masks)"
            )
    reduction, size = facts.get("stored_over_target"), facts.get("size_hw")
    if facts.get("cache") == "off" and reduction is not None:  # a cache is filled once
        if size is not None and reduction >= LARGE_REDUCTION:
            steps.append(
                f"pack at training size (unetfast shard --size {size[0]}x{size[1]}), images are {reduction:.2g}x as wide"
            )
        if facts.get("decode") in ("exact", "full") and reduction >= 2:
            steps.append("loader.decode=fast")
    read = rungs.get("read")
    if (
        read is not None
        and limit == "loader"
        and read["images_per_s"]["median"] < 2 * rungs["loader"]["images_per_s"]["median"]
    ):
        steps.insert(0, "reading itself is near: faster storage, or smaller images")
    return "; ".join(steps)

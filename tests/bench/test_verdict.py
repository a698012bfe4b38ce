"""What rungs say together, on made records."""

from __future__ import annotations

from typing import Any

import pytest

from unetfast.bench.harness import spread
from unetfast.bench.verdict import judge, ratio, say_others


def rung(images_per_s: list[float], core_s: float = 0.001, **facts: Any) -> dict[str, Any]:
    return {
        "images_per_s": spread(images_per_s),
        "core_s_per_image": spread([core_s]),
        "host_peak_mib": 100.0,
        "device_peak_mib": None,
        "facts": facts,
    }


def gpu_record(loader: float, model: float, train: float, wait_pct: float, **model_facts: Any) -> dict[str, Any]:
    return {
        "loader": rung([loader] * 5, cache="off", decode="exact", stored_over_target=5.3, size_hw=[160, 240], device="cuda:0"),
        "model": rung([model] * 5, device="cuda:0", compiled=True, channels_last=True, **model_facts),
        "train": rung([train] * 5, data_wait_pct=spread([wait_pct])),
    }


def test_ratios_are_of_the_same_round() -> None:
    # a machine that slows down by half hits both sides
    rungs = {"loader": rung([4000, 2000, 1000]), "model": rung([2000, 1000, 500])}
    assert ratio(rungs, "loader", "model") == {"median": 2.0, "min": 2.0, "max": 2.0, "rounds": [2.0, 2.0, 2.0]}
    assert ratio(rungs, "train", "model") is None


def test_a_model_that_training_reaches_is_the_limit() -> None:
    verdict = judge(
        gpu_record(4310, 2540, 2515, 0.6, next_limit="memory traffic at the two 64-channel levels (31 % of a step)")
    )
    assert verdict["limit"] == "model"
    assert verdict["sentence"] == (
        "the model is the limit; the loader feeds 1.70x what it eats; training reaches 99 % of the model alone; data-wait 0.6 %"
    )
    assert verdict["next"] == "memory traffic at the two 64-channel levels (31 % of a step)"
    assert verdict["noise"] == ""
    assert verdict["loader_core_share"] is None


def test_a_slow_loader_is_the_limit_and_what_helps_is_named() -> None:
    verdict = judge(gpu_record(1000, 2500, 960, 60.0))
    assert verdict["limit"] == "loader"
    assert "it feeds 0.400x what the model eats" in verdict["sentence"]
    assert "data-wait 60 %" in verdict["sentence"]
    for remedy in ("loader.cache=gpu", "unetfast shard --size 160x240", "loader.decode=fast"):
        assert remedy in verdict["next"]


def test_slow_reading_is_named_before_all_else() -> None:
    record = gpu_record(1000, 2500, 960, 60.0)
    record["read"] = rung([1500] * 5)
    assert judge(record)["next"].startswith("reading itself is near")


def test_remedies_that_are_in_use_are_not_named() -> None:
    record = gpu_record(1000, 2500, 960, 60.0)
    record["loader"]["facts"] |= {"cache": "off", "decode": "fast", "stored_over_target": 1.0, "device": "cpu"}
    assert judge(record)["next"] == "loader.cache=ram where the decoded pixels fit into memory"
    record["loader"]["facts"] |= {"cache": "ram", "decode": "exact", "stored_over_target": 5.3}  # filled once
    assert judge(record)["next"] == ""


def test_training_behind_both_is_said() -> None:
    verdict = judge(gpu_record(4000, 2500, 1800, 3.0))
    assert verdict["limit"] == "coupling"
    assert "neither alone is the limit" in verdict["sentence"]
    assert "loader.threads" in verdict["next"]


@pytest.mark.parametrize(
    ("loader_core_s", "model_core_s", "loader_per_s", "limit"),
    [(0.002, 0.2, 1000, "model"), (0.1, 0.1, 20, "cores"), (0.3, 0.1, 7, "loader"), (0.01, 0.2, 5, "loader")],
)
def test_on_a_cpu_the_work_of_the_cores_decides(
    loader_core_s: float, model_core_s: float, loader_per_s: float, limit: str
) -> None:
    rungs = {
        "loader": rung([loader_per_s] * 5, loader_core_s, cache="off", device="cpu"),
        "model": rung([10] * 5, model_core_s, device="cpu", compiled=False),
        "train": rung([6] * 5, loader_core_s + model_core_s, data_wait_pct=spread([0.2])),
    }
    verdict = judge(rungs)
    assert verdict["limit"] == limit
    assert verdict["loader_core_share"] == pytest.approx(loader_core_s / (loader_core_s + model_core_s), abs=1e-4)
    assert "core-seconds are the loader's" in verdict["sentence"]
    assert ("loader.cache=ram" in verdict["next"]) == (limit != "model")


def test_a_gpu_model_that_is_not_compiled_is_told_so() -> None:
    record = gpu_record(4000, 1000, 995, 0.1)
    record["model"]["facts"] |= {"compiled": False, "channels_last": False}
    assert "train.compile=on" in judge(record)["next"]
    assert "train.channels_last=true" in judge(record)["next"]


def test_single_rungs_say_how_near_they_are_to_their_own_limit_and_what_tells_that_of_all() -> None:
    alone = {
        "read": (
            rung([1000] * 5, 0.001, hash_gb_per_s=10.0, bytes_per_image=5_000_000),
            "50 % of reading's core-seconds are the",
        ),
        "loader": (rung([100] * 5, 0.01, decode_images_per_core_s=400.0, cache="off"), "25 % of the loader's core-seconds are"),
        "model": (rung([10] * 5, share_of_roofline_pct=31.2, compiled=True), "the model reaches 31 % of its roofline; "),
        "train": (rung([10] * 5, data_wait_pct=spread([0.2])), "data-wait 0.2 %; "),
        "shard": (rung([10] * 5), ""),
    }
    for name, (figures, words) in alone.items():
        verdict = judge({name: figures})
        assert verdict["limit"] is None
        assert verdict["sentence"].startswith(words)
        assert verdict["sentence"].endswith("is told by loader and model together (unetfast bench all)")


def test_single_rungs_name_what_to_do() -> None:
    assert "loader.cache=ram" in judge({"loader": rung([10] * 5, cache="off", device="cpu")})["next"]
    for per_core_s, remedy in ((400.0, "loader.cache=ram"), (1000.0, "fewer augment.* keys")):
        loader = rung([100] * 5, 0.01, decode_images_per_core_s=per_core_s, cache="off", device="cpu")
        assert remedy in judge({"loader": loader})["next"]
    dali = judge({"loader": rung([10] * 5, cache="off", backend="dali", device="cpu")})["next"]
    assert dali.startswith("loader.backend=cpu")
    assert "loader.cache" not in dali  # DALI has none in RAM
    model = rung([1000] * 5, device="cuda:0", compiled=True, next_limit="memory traffic", limits={"name": "memory"})
    assert judge({"model": model})["next"] == "memory traffic"
    model["facts"] |= {"next_limit": "kernels below their limits", "limits": {"name": "kernels"}}
    assert judge({"model": model})["next"] == "kernels below their limits; --profile names them"


def test_a_share_whose_rounds_differ_is_told_with_its_range() -> None:
    record = gpu_record(4310, 2540, 2515, 0.6)
    record["train"]["images_per_s"] = spread([2515, 2286, 2540, 2515, 2515])
    assert "training reaches 99 % (90..100) of the model alone" in judge(record)["sentence"]


def test_other_programs_that_had_the_cores_are_said() -> None:
    told = say_others(1.23, 4)
    assert told == "other programs had 1.2 of 4 cores meanwhile"
    assert judge(gpu_record(4000, 2500, 2480, 0.1), others=told)["noise"].startswith(f"{told}: the figures say little")
    for little in (0.39, 0.0, None):
        assert say_others(little, 4) == ""


def test_rounds_that_differ_much_are_said() -> None:
    record = gpu_record(4000, 2500, 2480, 0.1)
    record["loader"]["images_per_s"] = spread([4000, 2000, 4000, 4100, 4200])
    assert "loader by 55 %" in judge(record)["noise"]
    assert "model" not in judge(record)["noise"]

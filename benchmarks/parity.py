"""The DALI backend against the CPU backend: the same stream of augmented batches, pixel by pixel.

    python benchmarks/parity.py --toy carvana --device cuda --variants default,inflate=gpu,hw_decoder_load=1

Bounds: every image within 45 dB of the CPU backend's, masks unequal on at most a thousandth of a file's pixels. Each
variant runs in a process of its own, all at once. The exit code is 1 when a variant failed or passed a bound.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from apart import Apart

from unetfast.bench.harness import SideError, add_record_argument, describe_environment, finish, format_table, percentile
from unetfast.bench.toyshards import add_data_arguments, make_toy_shards
from unetfast.config import apply_overrides, build_config, preset_names, read_preset_tree
from unetfast.data.manifest import read_manifest
from unetfast.errors import UserError

LEAST_PSNR = 45.0  # decibels, of each image
MOST_MASK_SHARE = 0.001  # of each file's pixels
# on top of the preset's: every kind of change, so that all operators are seen
ALL_CHANGES = [
    *(f"augment.{name}.prob=0.5" for name in ("hflip", "vflip", "rotation", "scale", "resized_crop")),
    *(f"augment.{name}.prob=0.3" for name in ("brightness", "contrast", "saturation", "hue")),
]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What one variant is to do; `settings` are of the DALI side."""

    shards: Path
    device: str
    shared: tuple[str, ...]
    settings: tuple[str, ...]
    num_batches: int


def compare(order: Comparison) -> dict[str, Any]:
    """Run both backends over the same batches.

    Raises:
        SideError: they differ in anything but pixels.
    """
    import torch

    from unetfast.data.reader import open_shards
    from unetfast.device import resolve_device
    from unetfast.loader.build import build_loader

    dataset = read_manifest(order.shards).dataset
    tree = read_preset_tree(dataset if dataset in preset_names() else "folder")
    own = build_config(apply_overrides(tree, [*order.shared, "loader.backend=cpu"]))
    other = build_config(apply_overrides(tree, [*order.shared, "loader.backend=dali", *order.settings]))
    psnrs, shares, most = [], [], 0
    with (
        open_shards(order.shards).split("train") as reader,
        build_loader(reader, own, training=True, device=torch.device("cpu")) as expected,
        build_loader(reader, other, training=True, device=resolve_device(order.device)) as found,
    ):
        for mine, theirs in itertools.islice(zip(expected, found, strict=False), order.num_batches):
            if mine.sample_ids.tolist() != theirs.sample_ids.tolist():
                raise SideError(f"other samples: {theirs.sample_ids.tolist()}, expected {mine.sample_ids.tolist()}")
            image_NCHW, mask_NHW = theirs.image_NCHW.cpu().numpy(), theirs.mask_NHW.cpu().numpy()
            difference_NCHW = np.abs(image_NCHW.astype(np.int16) - mine.image_NCHW.numpy())
            errors = np.square(difference_NCHW.astype(np.float64)).mean(axis=(1, 2, 3))
            psnrs += (10 * np.log10(255**2 / np.maximum(errors, 1e-6))).tolist()
            shares += (mask_NHW != mine.mask_NHW.numpy()).mean(axis=(1, 2)).tolist()
            most = max(most, int(difference_NCHW.max()))
    return {
        "images": len(psnrs),
        "psnr_min": round(min(psnrs), 2),
        "psnr_median": round(percentile(psnrs, 0.5), 2),
        "max_difference": most,
        "mask_share_max": max(shares),
        "holds": min(psnrs) >= LEAST_PSNR and max(shares) <= MOST_MASK_SHARE,
    }


def format_results(results: dict[str, dict[str, Any]]) -> str:
    """Write a table for people."""
    columns = ("images", "psnr_min", "psnr_median", "max_difference", "mask_share_max", "holds")
    rows = [["variant", *columns]]
    rows += [[name, *(str(found[column]) for column in columns)] for name, found in results.items() if "error" not in found]
    return "\n".join(
        [format_table(rows), *(f"{name}: {found['error']}" for name, found in results.items() if "error" in found)]
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_data_arguments(parser)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--variants", default="default", help="of [dali], separated by commas: KEY=VALUE[:KEY=VALUE], or default"
    )
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=60, help="seconds for a variant")
    add_record_argument(parser)
    given = parser.parse_args(arguments)
    results: dict[str, dict[str, Any]] = {}
    try:
        if given.toy:
            given.shards = make_toy_shards(given.toy, given.data, small=given.small, seed=given.seed).shards
        read_manifest(given.shards)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    shared = (f"loader.threads={given.threads}", *ALL_CHANGES)
    jobs = {}
    for variant in dict.fromkeys(given.variants.split(",")):
        settings = () if variant == "default" else tuple(f"dali.{setting}" for setting in variant.split(":"))
        jobs[variant] = Apart(compare, Comparison(given.shards, given.device, shared, settings, given.batches))
    for variant, job in jobs.items():
        try:
            results[variant] = job.result(given.timeout)
        except SideError as error:
            results[variant] = {"error": str(error)}
    print(format_results(results))
    record = {
        "benchmark": "parity",
        "command": sys.argv[1:] if arguments is None else arguments,
        "device": given.device,
        "dataset": read_manifest(given.shards).dataset,
        "shared": list(shared),
        "bounds": {"psnr": LEAST_PSNR, "mask_share": MOST_MASK_SHARE},
        "variants": results,
        "environment": describe_environment(),
    }
    finish(record, given.json)
    return 0 if all(found.get("holds") for found in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

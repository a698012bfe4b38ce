"""R1's program, from its four folders to a trained net: our re-creation of what the project states, in our own code.

    python benchmarks/peers/r1_job.py Data/ out/ --epochs 2 --base-channels 16

Loader: r1_loader.py. Net and step: nets.py, float32, NCHW, BCE with logits, Adam at 1e-4. After each epoch a checkpoint, pixel
accuracy and Dice on the validation images, and its predictions as pictures. The last line is JSON: when each epoch was through,
in seconds since 1970, and its scores.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # the folder of the benchmarks, not that of the peers

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from torchvision.utils import save_image

from peers.loading import Pair
from peers.nets import LEARNING_RATE, ClassicUNet
from peers.r1_loader import R1Dataset


def list_pairs(data: Path, split: str) -> list[Pair]:
    """List `<split>_images/` with the masks of the same name."""
    images = sorted((data / f"{split}_images").iterdir())
    return [Pair(image.stem, image, data / f"{split}_masks" / f"{image.stem}_mask.gif") for image in images]


def train_epoch(net: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[Any]) -> None:
    net.train()
    for image_NCHW, mask_NHW in batches:
        loss = F.binary_cross_entropy_with_logits(net(image_NCHW), mask_NHW.float()[:, None])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def check_accuracy(net: nn.Module, batches: Iterable[Any], pictures: Path) -> dict[str, float]:
    """Score the validation images as R1 does: accuracy over all pixels, the mean of the batches' Dice; and save predictions."""
    net.eval()
    num_right, num_pixels, dices = 0, 0, []
    for number, (image_NCHW, mask_NHW) in enumerate(batches):
        target_N1HW = mask_NHW[:, None]
        pred_N1HW = (torch.sigmoid(net(image_NCHW)) > 0.5).float()
        num_right += int((pred_N1HW == target_N1HW).sum())
        num_pixels += pred_N1HW.numel()
        dices.append(float(2 * (pred_N1HW * target_N1HW).sum() / ((pred_N1HW + target_N1HW).sum() + 1e-8)))
        save_image(pred_N1HW, pictures / f"pred_{number}.png")
        save_image(target_N1HW, pictures / f"{number}.png")
    return {"pixel_accuracy": num_right / num_pixels, "dice": sum(dices) / len(dices)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="train_images/ train_masks/ val_images/ val_masks/")
    parser.add_argument("out", type=Path, help="receives checkpoints and saved_images/")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--base-channels", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=(160, 240), metavar=("HEIGHT", "WIDTH"))
    given = parser.parse_args(arguments)
    pictures = given.out / "saved_images"
    pictures.mkdir(parents=True, exist_ok=True)
    of_loader: dict[str, Any] = {"batch_size": given.batch_size, "num_workers": given.workers}
    train_set, val_set = (
        R1Dataset(list_pairs(given.data, split), tuple(given.size), turned=split == "train") for split in ("train", "val")
    )
    train_batches, val_batches = DataLoader(train_set, shuffle=True, **of_loader), DataLoader(val_set, **of_loader)
    net = ClassicUNet(given.base_channels, 1)
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    ends, scores = [], []
    for epoch in range(1, given.epochs + 1):
        train_epoch(net, optimizer, train_batches)
        checkpoint = {"state_dict": net.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(checkpoint, given.out / f"my_checkpoint_{epoch}.pth.tar")
        scores.append(check_accuracy(net, val_batches, pictures))
        ends.append(time.time())
    print(json.dumps({"epoch_ends": ends, "scores": scores}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

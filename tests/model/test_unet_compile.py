"""The compiled net: whole graphs, no compilation but one for each of training and evaluation, results as without compiling.

Training and evaluation are different computations (statistics of the batch or of the past; with or without a backward pass), so
each has a graph of its own. A validation set's smaller last batch is padded to the one static size and cut off again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from unetfast.model.deep import supervised_loss
from unetfast.model.factory import FactoryNetwork
from unetfast.model.losses import SegmentationLoss
from unetfast.model.metrics import confusion_matrix
from unetfast.model.unet import UNet

BATCH = 4
IGNORE = 255


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def _net(*, depth: int = 2, **options: Any) -> UNet:
    torch.manual_seed(0)
    net = UNet(3, base_channels=4, depth=depth, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), **options)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _batch(seed: int, num: int = BATCH) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (num, 3, 10, 13), dtype=torch.uint8, generator=generator)
    mask = torch.randint(0, 3, (num, 10, 13), generator=generator).to(torch.uint8)
    return image.contiguous(memory_format=torch.channels_last), mask


def _pad(batch: Tensor) -> Tensor:
    padded = batch.new_zeros(BATCH, *batch.shape[1:])
    padded[: len(batch)] = batch
    return padded.contiguous(memory_format=torch.channels_last)


def _train_and_evaluate(net: UNet, forward: Callable[[Tensor], Tensor], autocast: Callable[[], Any]) -> list[Tensor]:
    """Two epochs of two steps, each followed by evaluation with a smaller last batch; return what came out."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    criterion = SegmentationLoss(num_classes=3, ignore_index=IGNORE, dice=1.0)
    results = []
    for epoch in range(2):
        net.train()
        for step in range(2):
            image, mask = _batch(10 * epoch + step)
            with autocast():
                outputs = forward(image)
            loss = supervised_loss(criterion, outputs, mask, 0.5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            results.append(loss.detach())
        net.eval()
        with torch.no_grad(), autocast():
            for seed, num in ((50, BATCH), (51, BATCH - 1)):
                image, _ = _batch(seed, num)
                results.append(forward(_pad(image))[:num].float())
    return results


def _check_counts() -> None:
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 2  # one for training, one for evaluation


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": "group", "up": "bilinear", "down": "strided", "dropout": 0.2},
        {"depth": 2, "block": "residual", "attention": True, "deep_supervision": 0.5},
        {"block": "separable", "attention": True, "up": "bilinear"},
        {"encoder": "resnet18", "depth": 2, "attention": True, "deep_supervision": 0.5},
    ],
    ids=["default", "group", "residual", "separable", "resnet18"],
)
def test_two_graphs_serve_training_evaluation_and_a_smaller_last_batch(options: dict[str, Any]) -> None:
    net = _net(**{"depth": 1, **options})
    compiled = torch.compile(net, fullgraph=True, dynamic=False, backend="aot_eager")
    _train_and_evaluate(net, compiled, nullcontext)
    _check_counts()
    with torch._dynamo.config.patch(error_on_recompile=True):
        _train_and_evaluate(net, compiled, nullcontext)
    _check_counts()


class _Breaking(nn.Module):
    """A user's module that cannot be one graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.conv(hidden)
        torch._dynamo.graph_break()
        return hidden * 2


def test_a_module_that_cannot_be_one_graph_is_compiled_in_parts() -> None:
    net = FactoryNetwork(_Breaking(), title="breaking", num_classes=3, stride=4, mean=[0.5] * 3, std=[0.2] * 3)
    compiled = torch.compile(net, dynamic=False, backend="aot_eager")
    image, _ = _batch(0)
    with torch.no_grad():  # with gradients, Dynamo itself warns at a break
        torch.testing.assert_close(compiled(image), net(image))
    assert counters["graph_break"]


def test_compiled_loss_and_confusion_matrix_are_whole_graphs() -> None:
    image, mask = _batch(0)
    logits = _net()(image).detach()
    mask[0] = IGNORE
    for wide in (mask, mask.to(torch.uint16)):
        criterion = SegmentationLoss(num_classes=3, ignore_index=IGNORE, bce=1.0, dice=1.0, class_weights=[1.0, 2.0, 3.0])
        compiled = torch.compile(criterion, fullgraph=True, dynamic=False, backend="aot_eager")
        torch.testing.assert_close(compiled(logits, wide), criterion(logits, wide))
        options = {"num_classes": 3, "ignore_index": IGNORE}
        count = torch.compile(confusion_matrix, fullgraph=True, dynamic=False, backend="aot_eager")
        assert torch.equal(count(logits.argmax(1), wide, **options), confusion_matrix(logits.argmax(1), wide, **options))


@pytest.mark.slow
@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_compiled_results_are_those_of_eager(amp: str) -> None:
    def autocast() -> Any:
        return torch.autocast("cpu", dtype=torch.bfloat16) if amp == "bf16" else nullcontext()

    eager, net = _net(depth=1, convs_per_block=1), _net(depth=1, convs_per_block=1)
    expected = _train_and_evaluate(eager, eager, autocast)
    compiled = torch.compile(net, fullgraph=True, dynamic=False)
    got = _train_and_evaluate(net, compiled, autocast)
    _check_counts()
    # bf16 keeps 8 bits, a relative step of 2**-8 in each of the layers; errors stay below 4 steps of the largest logit
    step = 2.0**-8 if amp == "bf16" else 1e-5
    for first, second in zip(got, expected, strict=True):
        assert (first - second).abs().max() <= 4 * step * second.abs().max()

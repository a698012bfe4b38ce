"""ResNet encoders: torchvision's own numbers at every stage, and a decoder that fits them."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from unetfast.model.resnet import ResNetEncoder
from unetfast.model.unet import UNet

resnet = pytest.importorskip("torchvision.models.resnet")
feature_extraction = pytest.importorskip("torchvision.models.feature_extraction")


def _image(num: int, height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (num, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_stages_are_torchvision_s_own(name: str) -> None:
    torch.manual_seed(0)
    theirs = getattr(resnet, name)(weights=None).eval()
    ours = ResNetEncoder(name, depth=5).eval()
    ours.load_state_dict({key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")})
    nodes = {"relu": "1", "layer1": "2", "layer2": "3", "layer3": "4", "layer4": "5"}
    hidden = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = feature_extraction.create_feature_extractor(theirs, nodes)(hidden)
        got = ours(hidden)
    for stage, (mine, other) in enumerate(zip(got, expected.values(), strict=True), start=1):
        assert torch.equal(mine, other), stage
        assert mine.shape[1:] == (ours.channels[stage - 1], 64 >> stage, 96 >> stage)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_only_the_stages_that_are_used_are_there(depth: int) -> None:
    names = {name.split(".")[0] for name, _ in ResNetEncoder("resnet18", depth=depth).named_parameters()}
    assert names == {"conv1", "bn1", *(f"layer{stage}" for stage in range(1, depth))}


@pytest.mark.parametrize("up", ["transposed", "bilinear"])
@pytest.mark.parametrize("options", [{}, {"attention": True, "block": "residual", "deep_supervision": 0.5, "dropout": 0.1}])
def test_every_parameter_learns_at_odd_sizes(up: str, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    net = UNet(5, base_channels=4, depth=5, encoder="resnet18", up=up, **options)  # type: ignore[arg-type]
    assert net.stride == 32
    outputs = net(_image(2, 33, 70))
    parts = outputs if isinstance(outputs, tuple) else (outputs,)
    assert parts[0].shape == (2, 5, 33, 70)
    sum(part.square().mean() for part in parts).backward()  # type: ignore[union-attr]
    for name, param in net.named_parameters():
        assert param.grad is not None, name
        assert param.grad.isfinite().all(), name
    assert net.eval()(_image(1, 7, 5)).shape == (1, 5, 7, 5)


def test_decoder_widths_come_from_base_channels_and_never_exceed_the_skip() -> None:
    def widths(base_channels: int, encoder: str) -> list[int]:
        with torch.device("meta"):
            net = UNet(2, base_channels=base_channels, depth=5, encoder=encoder)
        convs = [[module for module in level.block.modules() if isinstance(module, nn.Conv2d)] for level in net.decoder]
        return [level[-1].out_channels for level in convs]

    assert widths(16, "resnet34") == [256, 128, 64, 32, 16]
    assert widths(64, "resnet34") == [256, 128, 64, 64, 64]
    assert widths(64, "resnet50") == [1024, 512, 256, 64, 64]


def test_batch_norm_of_the_encoder_is_seen_whatever_the_decoder_s_norm() -> None:
    net = UNet(2, base_channels=4, depth=5, norm="none", encoder="resnet18")
    assert net.has_batch_norm()
    with pytest.raises(ValueError, match="more than one value per channel"):
        net(_image(1, 32, 32))
    assert not UNet(2, base_channels=4, depth=2, norm="none").has_batch_norm()


def test_the_title_says_which_stages_are_taken() -> None:
    with torch.device("meta"):
        assert UNet(2, depth=5, encoder="resnet34").title == "U-Net on ResNet-34"
        assert UNet(2, depth=4, encoder="resnet34").title == "U-Net on ResNet-34 (stages 1 to 4 of 5: model.depth)"
        assert UNet(2, depth=4).title == "U-Net 64..1024"
        deep = UNet(2, depth=4, block="residual", attention=True, deep_supervision=0.5)
    assert deep.title == "U-Net 64..1024, residual blocks, attention gates, deep supervision 0.5"


def test_a_missing_torchvision_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models.resnet", None)
    with pytest.raises(
        ValueError,
        match=r"encoder = 'resnet18' needs the torchvision of this torch: pip install 'unetfast\[backbones\]' \(.+\)$",
    ):
        UNet(2, encoder="resnet18")

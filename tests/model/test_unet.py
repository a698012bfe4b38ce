"""The U-Net: published sizes, any image size, every option, formats and memory layout."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unetfast.model.network import Normalize
from unetfast.model.unet import UNet


def _image(num: int = 2, height: int = 32, width: int = 48, channels: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (num, channels, height, width), dtype=torch.uint8, generator=generator)
    return image.contiguous(memory_format=torch.channels_last)


def _small(num_classes: int = 3, **options: object) -> UNet:
    torch.manual_seed(0)
    return UNet(num_classes, **{"base_channels": 4, "depth": 2, **options})  # type: ignore[arg-type]


def _num_params(net: nn.Module) -> int:
    return sum(param.numel() for param in net.parameters())


@pytest.mark.parametrize(
    ("num_classes", "up", "published"),
    [(1, "transposed", 31_037_633), (2, "transposed", 31_037_698), (150, "bilinear", 17_272_662), (2, "bilinear", 17_263_042)],
)
def test_parameter_counts_are_the_published_ones(num_classes: int, up: str, published: int) -> None:
    with torch.device("meta"):
        net = UNet(num_classes, up=up)
    assert _num_params(net) == published


def _reference_unet(params: dict[str, Tensor], image_NCHW: Tensor, up: str) -> Tensor:
    """The U-Net as a function of its parameters in order, in evaluation, for sizes that need no padding."""
    values = iter(params.values())

    def double_conv(hidden: Tensor) -> Tensor:
        for _ in range(2):
            hidden = F.conv2d(hidden, next(values), padding=1)
            gamma, beta, mean, var, _count = (next(values) for _ in range(5))
            hidden = ((hidden - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()) * gamma[:, None, None]
            hidden = (hidden + beta[:, None, None]).clamp(min=0)
        return hidden

    skips = [double_conv(image_NCHW)]
    for _ in range(4):
        skips.append(double_conv(F.max_pool2d(skips[-1], 2)))
    hidden = skips.pop()
    while skips:
        if up == "transposed":
            hidden = F.conv_transpose2d(hidden, next(values), next(values), stride=2)
        else:
            hidden = F.interpolate(hidden, scale_factor=2, mode="bilinear", align_corners=True)
        hidden = double_conv(torch.cat([skips.pop(), hidden], 1))
    return F.conv2d(hidden, next(values), next(values))


@pytest.mark.parametrize("up", ["transposed", "bilinear"])
def test_default_net_computes_the_classic_unet_parameter_by_parameter(up: str) -> None:
    torch.manual_seed(1)
    net = UNet(2, base_channels=4, up=up).double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    net.eval()
    image = _image(1, 32, 48)
    state = {name: value for name, value in net.state_dict().items() if not name.startswith("normalize.")}
    torch.testing.assert_close(net(image), _reference_unet(state, image.double() / 255, up))


@pytest.mark.parametrize("size", [(1, 1), (1, 33), (17, 33), (16, 16), (31, 2), (240, 159)])
@pytest.mark.parametrize("up", ["transposed", "bilinear"])
def test_logits_have_the_size_of_the_image(size: tuple[int, int], up: str) -> None:
    net = UNet(5, base_channels=2, up=up).eval()
    with torch.no_grad():
        logits = net(_image(2, *size))
    assert logits.shape == (2, 5, *size)
    assert logits.isfinite().all()


@pytest.mark.parametrize("conv_order", ["conv-norm-act", "conv-act-norm"])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("up", ["transposed", "bilinear"])
def test_every_combination_learns_and_stays_finite(conv_order: str, norm: str, up: str) -> None:
    downs: list[str | list[str]] = ["maxpool", "strided", "none", ["strided", "none"], ["none", "maxpool"]]
    sizes = [(1, 2, 0.0), (3, 1, 0.3), (3, 3, 0.0), (1, 1, 0.3), (3, 2, 0.0)]
    for down, (head_kernel, convs_per_block, dropout) in zip(downs, sizes, strict=True):
        net = _small(
            base_channels=2,
            conv_order=conv_order,
            norm=norm,
            up=up,
            down=down,
            head_kernel=head_kernel,
            convs_per_block=convs_per_block,
            dropout=dropout,
        )
        logits = net(_image(2, 9, 14))
        logits.square().mean().backward()
        assert logits.shape == (2, 3, 9, 14)
        for name, param in net.named_parameters():
            assert param.grad is not None, name
            assert param.grad.isfinite().all(), name


def test_down_per_level_sets_the_multiple_that_images_are_padded_to() -> None:
    assert UNet(2, base_channels=1).stride == 16
    assert _small(down=["none", "strided"]).stride == 2
    assert _small(down="none").stride == 1


def test_a_convolution_has_a_bias_only_where_no_norm_follows_it() -> None:
    for conv_order, norm, biased in (
        ("conv-norm-act", "batch", False),
        ("conv-norm-act", "group", False),
        ("conv-act-norm", "batch", True),
        ("conv-norm-act", "none", True),
    ):
        net = _small(conv_order=conv_order, norm=norm)
        convs = [module for block in net.encoder for module in block.modules() if isinstance(module, nn.Conv2d)]
        assert {conv.bias is not None for conv in convs} == {biased}


def test_conv_order_is_the_order_of_the_layers() -> None:
    first = [type(layer) for layer in _small(conv_order="conv-act-norm").encoder[0]]
    assert first == [nn.Conv2d, nn.ReLU, nn.BatchNorm2d] * 2
    second = [type(layer) for layer in _small(conv_order="conv-norm-act", convs_per_block=3, norm="group").encoder[0]]
    assert second == [nn.Conv2d, nn.GroupNorm, nn.ReLU] * 3


def test_group_norm_has_sixteen_channels_a_group() -> None:
    net = UNet(2, base_channels=24, depth=2, norm="group")
    widths = {(layer.num_channels, layer.num_groups) for layer in net.modules() if isinstance(layer, nn.GroupNorm)}
    assert widths == {(24, 1), (48, 3), (96, 6)}


def test_normalization_is_the_formula_of_the_manifest() -> None:
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    image = _image()
    expected = (image.float() / 255 - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    got = Normalize(mean, std)(image)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected)


def test_uint8_input_gives_what_normalised_input_gives_a_net_without_normalization() -> None:
    net = _small(mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3)).eval()
    image = _image(2, 32, 32)
    expected = net(image)
    normalised = net.normalize(image)
    net.normalize = nn.Identity()  # type: ignore[assignment]
    net._check_image = lambda image_NCHW: None  # type: ignore[method-assign]
    torch.testing.assert_close(net(normalised), expected)


def test_padding_is_the_mean_colour() -> None:
    mean = (51 / 255, 102 / 255, 204 / 255)
    net = _small(mean=mean, std=(0.1, 0.2, 0.3)).eval()
    image = _image(1, 5, 7)
    padded = torch.tensor([51, 102, 204], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 8, 8).clone()
    padded[:, :, :5, :7] = image
    torch.testing.assert_close(net(image), net(padded)[:, :, :5, :7])


def test_normalisation_stays_float32_under_autocast_and_logits_take_its_dtype() -> None:
    net = _small()
    seen = []
    net.normalize.register_forward_hook(lambda module, args, result: seen.append(result.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = net(_image())
    assert seen == [torch.float32]
    assert logits.dtype == torch.bfloat16
    assert net(_image()).dtype == torch.float32


def test_state_dict_round_trip_carries_normalisation() -> None:
    net = _small(norm="batch", mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3))
    net(_image())  # moves the running statistics
    other = _small()
    assert {"normalize.mean", "normalize.std"} <= net.state_dict().keys()
    assert "normalize.mean" not in dict(net.named_parameters())
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.eval()(_image(seed=3)), net.eval()(_image(seed=3)))


@pytest.mark.parametrize("up", ["transposed", "bilinear"])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("down", ["maxpool", "strided"])
@pytest.mark.parametrize("size", [(16, 24), (15, 21)])
def test_channels_last_is_kept_by_every_layer(up: str, norm: str, down: str, size: tuple[int, int]) -> None:
    net = _small(up=up, norm=norm, down=down).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    broken = []

    def check(module: nn.Module, args: object, result: Tensor) -> None:
        if not result.is_contiguous(memory_format=torch.channels_last):
            broken.append(type(module).__name__)

    for module in net.modules():
        if module is not net:
            module.register_forward_hook(check)
    net(_image(2, *size))
    assert broken == []


def test_channels_last_computes_the_same() -> None:
    net = _small().double().eval()
    image = _image(2, 15, 21)
    expected = net(image.contiguous())
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.testing.assert_close(net(image), expected)


def test_dropout_drops_whole_channels_in_training_alone() -> None:
    net = _small(norm="none", dropout=0.5)
    dropouts = [module for module in net.modules() if isinstance(module, nn.Dropout2d)]
    assert len(dropouts) == 3  # bottleneck and two decoder blocks
    image = _image()
    assert not torch.equal(net(image), net(image))
    net.eval()
    assert torch.equal(net(image), net(image))


def test_each_image_of_a_batch_is_scored_alone_in_evaluation() -> None:
    net = _small().double().eval()
    image = _image(3, 17, 11)
    torch.testing.assert_close(net(image)[1:2], net(image[1:2]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes = 0"),
        ({"depth": 0}, "depth = 0"),
        ({"base_channels": -1}, "base_channels = -1"),
        ({"convs_per_block": 0}, "convs_per_block = 0"),
        ({"conv_order": "norm-conv-act"}, "conv-norm-act, conv-act-norm"),
        ({"norm": "layer"}, "batch, group, none"),
        ({"down": "avgpool"}, "maxpool, strided, none"),
        ({"down": ["maxpool"]}, "down names 1 levels, depth is 4"),
        ({"up": "nearest"}, "transposed, bilinear"),
        ({"head_kernel": 2}, "head_kernel = 2"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"in_channels": 1}, "one per channel, 1"),
        ({"mean": (120.0, 110.0, 100.0)}, "divided by 255"),
        ({"std": (0.2, 0.0, 0.2)}, "above 0"),
        ({"std": (0.2, float("nan"), 0.2)}, "above 0"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(**{"num_classes": 2, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 3, 8, 8), "float32: the net takes uint8"),
        (torch.zeros(1, 4, 8, 8, dtype=torch.uint8), r"\(1, 4, 8, 8\)"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"must be \(N, 3, H, W\)"),
        (torch.zeros(1, 3, 0, 8, dtype=torch.uint8), "none of them 0"),
        (torch.zeros(1, 3, 3, 4, dtype=torch.uint8), "more than one value per channel"),
    ],
)
def test_a_bad_image_is_refused(image: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _small()(image)


def test_the_smallest_image_can_be_learned_from_without_batch_norm() -> None:
    # with batch norm, two values per channel in the bottleneck are the least
    for norm, width in (("group", 1), ("batch", 5)):
        net = _small(norm=norm)
        net(_image(1, 1, width)).square().sum().backward()
        gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
        assert all(bool(gradient.isfinite().all()) for gradient in gradients), norm
        assert any(bool(gradient.any()) for gradient in gradients), norm

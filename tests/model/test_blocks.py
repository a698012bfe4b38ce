"""Residual and separable blocks and attention gates, each against its paper's formula written out in torch."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unetfast.model.blocks import AttentionGate, ResidualBlock, SeparableConv, build_conv_block
from unetfast.model.deep import supervised_loss
from unetfast.model.unet import UNet


def _hidden(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _image(num: int = 2, height: int = 21, width: int = 34) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (num, 3, height, width), dtype=torch.uint8, generator=generator)
    return image.contiguous(memory_format=torch.channels_last)


def _build(block: str, in_channels: int, out_channels: int, **options: object) -> nn.Module:
    torch.manual_seed(0)
    settings = {"mid_channels": 6, "num_convs": 2, "conv_order": "conv-norm-act", "norm": "batch", **options}
    built = build_conv_block(in_channels, out_channels, block=block, **settings).double()  # type: ignore[arg-type]
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return built.eval()


def _norm(hidden: Tensor, params: dict[str, Tensor], name: str) -> Tensor:
    mean, var = params[f"{name}.running_mean"], params[f"{name}.running_var"]
    return F.batch_norm(hidden, mean, var, params[f"{name}.weight"], params[f"{name}.bias"])


@pytest.mark.parametrize(("out_channels", "stride"), [(5, 1), (8, 1), (5, 2)])
def test_a_residual_block_adds_its_input_before_the_last_relu(out_channels: int, stride: int) -> None:
    block = _build("residual", 5, out_channels, stride=stride)
    hidden = _hidden(2, 5, 9, 8)
    state = block.state_dict()
    body = F.conv2d(hidden, state["body.0.weight"], padding=1, stride=stride)
    body = F.relu(_norm(body, state, "body.1"))
    body = _norm(F.conv2d(body, state["body.3.weight"], padding=1), state, "body.4")
    shortcut = hidden
    if out_channels != 5 or stride > 1:
        shortcut = _norm(F.conv2d(hidden, state["shortcut.0.weight"], stride=stride), state, "shortcut.1")
    else:
        assert not any(name.startswith("shortcut") for name in state)
    torch.testing.assert_close(block(hidden), F.relu(body + shortcut))


def test_a_residual_block_in_the_order_of_conv_act_norm_adds_before_its_relu_too() -> None:
    block = _build("residual", 5, 8, conv_order="conv-act-norm")
    hidden, state = _hidden(2, 5, 9, 8), block.state_dict()
    body = F.conv2d(hidden, state["body.0.weight"], state["body.0.bias"], padding=1)
    body = _norm(F.relu(body), state, "body.2")
    body = F.conv2d(body, state["body.3.weight"], state["body.3.bias"], padding=1)
    shortcut = F.conv2d(hidden, state["shortcut.0.weight"], state["shortcut.0.bias"])
    torch.testing.assert_close(block(hidden), _norm(F.relu(body + shortcut), state, "after.1"))


def test_a_separable_convolution_is_a_full_one_of_rank_one_filters() -> None:
    torch.manual_seed(0)
    conv = SeparableConv(5, 7, stride=2, bias=True).double()
    full = conv.pointwise.weight * conv.depthwise.weight.squeeze(1)[None]  # (7, 5, 1, 1) x (1, 5, 3, 3)
    hidden = _hidden(2, 5, 9, 8)
    torch.testing.assert_close(conv(hidden), F.conv2d(hidden, full, conv.pointwise.bias, stride=2, padding=1))


def test_every_convolution_of_a_separable_net_is_in_two_steps_but_the_image_s_own() -> None:
    net = UNet(3, base_channels=4, depth=2, block="separable")
    full = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)]
    assert full[0] == "encoder.0.0"
    assert all(name.endswith("depthwise") for name in full[1:])
    assert len(full) == 10
    with torch.device("meta"):
        counts = [sum(p.numel() for p in UNet(2, block=block).parameters()) for block in ("plain", "separable")]
    assert counts[1] < counts[0] / 4


def test_an_attention_gate_is_the_paper_s_formula() -> None:
    torch.manual_seed(0)
    gate = AttentionGate(6, 10, 2).double()
    skip, below = _hidden(2, 6, 8, 12), _hidden(2, 10, 4, 6)
    mixed = F.conv2d(skip, gate.theta.weight, stride=2) + F.conv2d(below, gate.phi.weight, gate.phi.bias)
    weight = torch.sigmoid(F.conv2d(F.relu(mixed), gate.psi.weight, gate.psi.bias))
    weight = F.interpolate(weight, scale_factor=2, mode="bilinear", align_corners=False)
    assert 0 < weight.min() < weight.max() < 1
    torch.testing.assert_close(gate(skip, below), skip * weight)


def test_attention_gates_stand_on_every_skip_and_leave_the_rest_as_it_is() -> None:
    torch.manual_seed(0)
    plain = UNet(3, base_channels=4, depth=2).eval()
    gated = UNet(3, base_channels=4, depth=2, attention=True).eval()
    assert sum(isinstance(module, AttentionGate) for module in gated.modules()) == 2
    misfit = gated.load_state_dict(plain.state_dict(), strict=False)
    assert all(".gate." in name for name in misfit.missing_keys)
    assert not misfit.unexpected_keys
    for level in gated.decoder:
        nn.init.constant_(level.gate.psi.bias, 50.0)  # a weight of 1 everywhere  # type: ignore[union-attr, arg-type]
    torch.testing.assert_close(gated(_image()), plain(_image()))


OPTIONS = [
    {"block": "residual"},
    {"block": "separable"},
    {"attention": True},
    {"block": "residual", "attention": True, "deep_supervision": 0.5},
    {"block": "separable", "attention": True, "deep_supervision": 1.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
@pytest.mark.parametrize("up", ["transposed", "bilinear"])
def test_options_go_with_every_norm_order_down_and_size(options: dict[str, object], up: str) -> None:
    downs: list[str | list[str]] = ["maxpool", "strided", "none", ["strided", "none"], ["none", "maxpool"]]
    choices = itertools.product(["batch", "group", "none"], ["conv-norm-act", "conv-act-norm"])
    for place, (norm, conv_order) in enumerate(choices):
        net = UNet(
            3,
            base_channels=2,
            depth=2,
            norm=norm,
            conv_order=conv_order,
            up=up,
            down=downs[place % len(downs)],
            convs_per_block=1 + place % 3,
            dropout=0.2 * (place % 2),
            **options,  # type: ignore[arg-type]
        )
        outputs = net(_image(2, 9, 14))
        parts = outputs if isinstance(outputs, tuple) else (outputs,)
        sum(part.square().mean() for part in parts).backward()  # type: ignore[union-attr]
        assert parts[0].shape == (2, 3, 9, 14)
        for name, param in net.named_parameters():
            assert param.grad is not None, name
            assert param.grad.isfinite().all(), name
        net.eval()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = net(_image(1, 1, 33))
        assert logits.shape == (1, 3, 1, 33)
        assert logits.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "options", [*OPTIONS, {"encoder": "resnet18"}], ids=lambda options: "-".join(map(str, options.values()))
)
def test_options_keep_channels_last(options: dict[str, object]) -> None:
    net = UNet(3, base_channels=4, depth=2, **options).to(memory_format=torch.channels_last)  # type: ignore[arg-type, call-overload]
    broken = []

    def check(module: nn.Module, args: object, result: object) -> None:
        parts = result if isinstance(result, list | tuple) else [result]
        if not all(part.is_contiguous(memory_format=torch.channels_last) for part in parts):
            broken.append(type(module).__name__)

    for module in net.modules():
        if module is not net:
            module.register_forward_hook(check)
    net(_image(2, 15, 21))
    assert broken == []


@pytest.mark.parametrize(
    "options", [{}, OPTIONS[1], OPTIONS[3]], ids=lambda options: "-".join(map(str, options.values())) or "default"
)
def test_every_option_learns_where_bright_pixels_are(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    net = UNet(2, base_channels=8, depth=2, **options)  # type: ignore[arg-type]
    image = _image(4, 16, 24)
    mask = (F.avg_pool2d(image.float().mean(1), 3, stride=1, padding=1) > 127).long()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        loss = supervised_loss(F.cross_entropy, net(image), mask, 0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3
    assert (net.eval()(image).argmax(1) == mask).float().mean() > 0.9


def test_default_blocks_are_plain_sequences() -> None:
    assert type(_build("plain", 5, 5)) is nn.Sequential
    assert type(_build("separable", 5, 5)) is nn.Sequential
    assert type(_build("residual", 5, 5)) is ResidualBlock


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": "dense"}, "plain, residual, separable"),
        ({"deep_supervision": -0.5}, "deep_supervision = -0.5"),
        ({"deep_supervision": 0.5, "depth": 1}, "depth must be at least 2"),
        ({"encoder": "resnet101"}, "plain, resnet18, resnet34, resnet50"),
        ({"encoder": "resnet18", "depth": 6}, "has 5 down-samplings"),
        ({"encoder": "resnet18", "down": "strided"}, "brings its own down-samplings"),
        ({"encoder": "resnet18", "in_channels": 1, "mean": [0.5], "std": [0.5]}, "takes RGB images, in_channels = 1"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(2, **options)  # type: ignore[arg-type]

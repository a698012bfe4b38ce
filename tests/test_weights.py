"""Initial weights: our own files, milesial/Pytorch-UNet's, torchvision's; and a clear line for each that does not fit."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.test_checkpoint import MEAN, SMALL, STD, make_checkpoint
from unetfast.checkpoint import build_network, load_checkpoint, save_checkpoint
from unetfast.config import Config, ModelConfig, build_config
from unetfast.errors import UserError
from unetfast.model.network import Network
from unetfast.weights import load_encoder_weights, load_initial_weights, take_initial_weights


def _build(num_classes: int = 2, **options: Any) -> tuple[Network, ModelConfig]:
    config = build_config({"model": SMALL | options}).model
    torch.manual_seed(7)
    return build_network(config, num_classes=num_classes, mean=MEAN, std=STD), config


def _image(num: int, height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (num, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# --- our own files ---


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "last.pt"
    save_checkpoint(path, make_checkpoint())
    return path


def test_a_checkpoint_gives_what_fits_and_says_what_does_not(saved: Path) -> None:
    given = load_checkpoint(saved)
    model, config = _build(num_classes=5)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.set_normalization((0.1, 0.1, 0.1), STD)
    report = load_initial_weights(model, saved, config)
    assert report.source == "a checkpoint of carvana, step 7"
    assert report.left_out == [
        "head.weight: (2, 4, 1, 1) in the file, (5, 4, 1, 1) in the model",
        "head.bias: (2,) in the file, (5,) in the model",
    ]
    for name, tensor in model.state_dict().items():
        if name.startswith("head."):
            assert torch.equal(tensor, start[name]), name
        elif not name.startswith("normalize."):
            assert torch.equal(tensor, given.weights[name]), name
    assert report.num_loaded == len(start) - 4
    assert model.normalization[0] == pytest.approx((0.1, 0.1, 0.1))


def test_of_two_kinds_of_weights_the_better_ones_are_taken(tmp_path: Path) -> None:
    average = {name: tensor + 1 for name, tensor in make_checkpoint().weights.items()}
    save_checkpoint(tmp_path / "best.pt", make_checkpoint(ema=average, best={"weights": "ema"}))
    model, config = _build()
    report = load_initial_weights(model, tmp_path / "best.pt", config)
    assert "averaged weights" in report.source
    assert torch.equal(model.state_dict()["head.weight"], average["head.weight"])


def test_a_further_part_of_the_model_keeps_its_random_start(saved: Path) -> None:
    model, config = _build(attention=True, deep_supervision=0.5)
    report = load_initial_weights(model, saved, config)
    assert {line.split(".")[0] for line in report.left_out} == {"decoder", "aux_heads"}
    assert all(".gate." in line or line.startswith("aux_heads.0.") for line in report.left_out)


def test_a_checkpoint_that_does_not_fit_at_all_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", make_checkpoint(weights={"other": torch.zeros(2)}))
    model, config = _build()
    with pytest.raises(UserError, match=r"none of its 1 tensors fits the model \(it has other, the model encoder\.0"):
        load_initial_weights(model, tmp_path / "a.pt", config)


def test_a_safetensors_file_has_the_same_names(tmp_path: Path) -> None:
    torch_files = pytest.importorskip("safetensors.torch")
    weights = make_checkpoint().weights
    torch_files.save_file(weights, tmp_path / "net.safetensors", metadata={"class_names": "[]"})
    model, config = _build()
    report = load_initial_weights(model, tmp_path / "net.safetensors", config)
    assert (report.source, report.left_out) == ("a safetensors file", [])
    assert torch.equal(model.state_dict()["encoder.1.0.weight"], weights["encoder.1.0.weight"])
    assert model.normalization[0] == pytest.approx(MEAN)


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"epoch": 3, "state_dict": state, "optimizer": {}}])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_a_state_dict_may_be_wrapped_as_training_scripts_do(tmp_path: Path, wrap: Any, prefix: str) -> None:
    weights = make_checkpoint().weights
    torch.save(wrap({prefix + name: tensor for name, tensor in weights.items()}), tmp_path / "net.pth")
    model, config = _build()
    assert load_initial_weights(model, tmp_path / "net.pth", config).left_out == []
    assert torch.equal(model.state_dict()["head.weight"], weights["head.weight"])


def test_a_module_of_the_user_takes_its_own_state_dict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights_net.py").write_text(
        "from torch import nn\ndef build(num_classes, in_channels): return nn.Conv2d(in_channels, num_classes, 1)\n"
    )
    monkeypatch.chdir(tmp_path)
    own = nn.Conv2d(3, 2, 1).state_dict()
    torch.save(own, "mine.pth")
    model, config = _build(factory="weights_net:build")
    assert load_initial_weights(model, Path("mine.pth"), config).num_loaded == 2
    assert torch.equal(model.state_dict()["net.weight"], own["weight"])
    sys.modules.pop("weights_net")


# --- files that are none ---


class _Code:
    def __reduce__(self) -> Any:
        return print, ("this must not run",)


def _write_bad(path: Path, kind: str) -> None:
    if kind == "text":
        path.write_text("<html>not found</html>")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "code":
        torch.save({"weights": _Code()}, path)
    elif kind == "numbers":
        torch.save({"a": 1, "b": [2]}, path)
    elif kind == "list":
        torch.save([torch.zeros(2)], path)
    elif kind == "cut":
        torch.save({"a": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "old format, cut":
        torch.save({"a": torch.zeros(1000)}, path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "safetensors, cut":
        pytest.importorskip("safetensors.torch").save_file({"a": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:100])
    elif kind == "folder":
        path.mkdir()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", r"bad\.pth: no such file; give a checkpoint of a run"),
        ("folder", r"bad\.pth: a folder; give a checkpoint of a run"),
        ("text", r"bad\.pth: not a file of weights \(it begins with b'<htm'\); give"),
        ("empty", r"bad\.pth: not a file of weights \(it begins with b''\); give"),
        ("code", r"bad\.pth: not a file of weights \(more than tensors and numbers\); give"),
        ("numbers", r"bad\.pth: there are no weights in it; give"),
        ("list", r"bad\.pth: there are no weights in it; give"),
        ("cut", r"bad\.pth: cut short or damaged; take another copy"),
        ("old format, cut", r"bad\.pth: (not a file of weights|cut short)"),
        ("safetensors, cut", r"bad\.pth: a damaged safetensors file \(.+\); take another copy"),
    ],
)
def test_a_file_without_weights_is_one_clear_line(
    tmp_path: Path, kind: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    _write_bad(tmp_path / "bad.pth", kind)
    model, config = _build()
    with pytest.raises(UserError, match=said) as caught:
        load_initial_weights(model, tmp_path / "bad.pth", config)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().out == ""


def test_a_missing_safetensors_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("safetensors.torch").save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    model, config = _build()
    with pytest.raises(UserError, match=r"needs safetensors: pip install 'unetfast\[backbones\]'$"):
        load_initial_weights(model, tmp_path / "a.safetensors", config)


# --- milesial/Pytorch-UNet: a net of the same structure and names, written from its description ---


class _Named(nn.Module):
    """Holds parts under given names."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def _two_convs(in_channels: int, mid_channels: int, out_channels: int, bias: bool) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((in_channels, mid_channels), (mid_channels, out_channels)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=bias), nn.BatchNorm2d(after), nn.ReLU()]
    return _Named(double_conv=nn.Sequential(*layers))


class TheirUNet(nn.Module):
    """Four levels; float images in [0, 1]; odd sizes are padded in the decoder, around what comes from below."""

    def __init__(self, num_classes: int, *, bilinear: bool, width: int = 64, in_channels: int = 3, bias: bool = False) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(5)]
        half = 2 if bilinear else 1
        self.inc = _two_convs(in_channels, width, width, bias)
        for level in range(1, 5):
            after = widths[level] // (half if level == 4 else 1)
            convs = _two_convs(widths[level - 1], after, after, bias)
            self.add_module(f"down{level}", _Named(maxpool_conv=nn.Sequential(nn.MaxPool2d(2), convs)))
        for number, level in enumerate(reversed(range(4)), start=1):
            after = widths[level] // (half if level > 0 else 1)
            parts = {"conv": _two_convs(widths[level] * 2, widths[level], after, bias)}
            if not bilinear:
                parts["up"] = nn.ConvTranspose2d(widths[level + 1], widths[level], 2, stride=2)
            self.add_module(f"up{number}", _Named(**parts))
        self.outc = _Named(conv=nn.Conv2d(width, num_classes, 1))
        self.bilinear = bilinear

    def forward(self, hidden: Any) -> Any:
        levels = [self.inc.double_conv(hidden)]
        for number in range(1, 5):
            pool, convs = getattr(self, f"down{number}").maxpool_conv
            levels.append(convs.double_conv(pool(levels[-1])))
        hidden = levels.pop()
        for number in range(1, 5):
            part, skip = getattr(self, f"up{number}"), levels.pop()
            if self.bilinear:
                hidden = F.interpolate(hidden, scale_factor=2, mode="bilinear", align_corners=True)
            else:
                hidden = part.up(hidden)
            more_y, more_x = skip.shape[2] - hidden.shape[2], skip.shape[3] - hidden.shape[3]
            hidden = F.pad(hidden, (more_x // 2, more_x - more_x // 2, more_y // 2, more_y - more_y // 2))
            hidden = part.conv.double_conv(torch.cat([skip, hidden], dim=1))
        return self.outc.conv(hidden)


def _theirs(path: Path, num_classes: int = 2, *, bilinear: bool = False, width: int = 4, **options: Any) -> TheirUNet:
    """Write a checkpoint as their train.py does, with batch statistics that matter; return the net."""
    torch.manual_seed(3)
    net = TheirUNet(num_classes, bilinear=bilinear, width=width, **options)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            nn.init.uniform_(module.bias, 0, 0.5)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)  # keeps the numbers' size through 18 convolutions
    state = net.state_dict()
    state["mask_values"] = [0, 1]
    torch.save(state, path)
    return net.eval()


@pytest.mark.parametrize(("bilinear", "num_params"), [(False, 31_037_698), (True, 17_263_042)])
def test_the_net_written_here_has_their_published_size(bilinear: bool, num_params: int) -> None:
    with torch.device("meta"):
        assert sum(param.numel() for param in TheirUNet(2, bilinear=bilinear).parameters()) == num_params


@pytest.mark.parametrize("bias", [False, True], ids=["since 2021-12", "before 2021-12"])
@pytest.mark.parametrize("bilinear", [False, True], ids=["transposed", "bilinear"])
def test_their_checkpoint_predicts_the_same(tmp_path: Path, bilinear: bool, bias: bool) -> None:
    theirs = _theirs(tmp_path / "their.pth", 3, bilinear=bilinear, width=8, bias=bias)
    up = "bilinear" if bilinear else "transposed"
    model, config = _build(3, base_channels=8, depth=4, up=up)
    report = load_initial_weights(model, tmp_path / "their.pth", config)
    assert report.left_out == []
    assert report.source == f"a checkpoint of milesial/Pytorch-UNet, {up}, 3 classes"
    assert "its classes stood for the mask values [0, 1]" in report.notes
    assert model.normalization == ((0, 0, 0), (1, 1, 1))
    image = _image(2, 32, 48)
    with torch.no_grad():
        expected, logits = theirs(image.float() / 255), model.eval()(image)
    assert expected.std() > 0.1
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (logits.softmax(1) - expected.softmax(1)).abs().max() <= 1e-5
    assert torch.equal(logits.argmax(1), expected.argmax(1))


def test_their_padding_differs_for_other_sizes_alone(tmp_path: Path) -> None:
    theirs = _theirs(tmp_path / "their.pth")
    model, config = _build(depth=4)
    load_initial_weights(model.eval(), tmp_path / "their.pth", config)
    with torch.no_grad():
        odd, even = _image(1, 33, 48), _image(1, 48, 64)
        assert (model(even) - theirs(even.float() / 255)).abs().max() <= 1e-5
        assert (model(odd) - theirs(odd.float() / 255)).abs().max() > 1e-3


def test_their_single_logit_becomes_two_with_the_same_probabilities(tmp_path: Path) -> None:
    theirs = _theirs(tmp_path / "their.pth", 1)
    model, config = _build(2, depth=4)
    report = load_initial_weights(model.eval(), tmp_path / "their.pth", config)
    assert report.left_out == []
    image = _image(2, 32, 48)
    with torch.no_grad():
        expected = torch.sigmoid(theirs(image.float() / 255))[:, 0]
        torch.testing.assert_close(model(image).softmax(1)[:, 1], expected, atol=1e-5, rtol=0)


def test_another_number_of_classes_keeps_all_but_the_head(tmp_path: Path) -> None:
    theirs = _theirs(tmp_path / "their.pth", 3)
    model, config = _build(5, depth=4, attention=True)
    head = model.state_dict()["head.weight"].clone()
    report = load_initial_weights(model, tmp_path / "their.pth", config)
    assert report.left_out[0] == "head.weight: 3 classes in the file, 5 in the shards"
    assert report.left_out[1] == "head.bias: 3 classes in the file, 5 in the shards"
    assert all(".gate." in line and line.endswith("not in the file") for line in report.left_out[2:])
    own = model.state_dict()
    assert torch.equal(own["head.weight"], head)
    assert torch.equal(own["decoder.3.up.bias"], theirs.state_dict()["up4.up.bias"])


@pytest.mark.parametrize(
    ("their_options", "own", "settings"),
    [
        ({"bilinear": True}, {"depth": 4}, "--set model.up=bilinear"),
        ({"bilinear": False}, {"depth": 4, "up": "bilinear"}, "--set model.up=transposed"),
        ({"width": 8}, {"depth": 4}, "--set model.base_channels=8"),
        ({}, {}, "--set model.depth=4"),
        (
            {"width": 8, "bilinear": True},
            {"norm": "group", "block": "residual", "down": ["maxpool", "strided"]},
            "--set model.block=plain --set model.base_channels=8 --set model.depth=4 --set model.up=bilinear "
            "--set model.norm=batch --set model.down=maxpool",
        ),
    ],
)
def test_a_structure_that_does_not_fit_is_one_line_with_the_settings_that_do(
    tmp_path: Path, their_options: dict[str, Any], own: dict[str, Any], settings: str
) -> None:
    _theirs(tmp_path / "their.pth", **their_options)
    model, config = _build(**own)
    with pytest.raises(UserError) as caught:
        load_initial_weights(model, tmp_path / "their.pth", config)
    said = str(caught.value)
    assert said.endswith(f"does not fit this model; this fits: {settings}")
    assert "\n" not in said
    fitting = {key.removeprefix("model."): value for key, value in (part.split("=") for part in settings.split("--set ")[1:])}
    tree = own | {key: int(value) if value.strip().isdigit() else value.strip() for key, value in fitting.items()}
    model, config = _build(**tree)
    assert load_initial_weights(model, tmp_path / "their.pth", config).left_out == []


def test_grey_images_and_changed_nets_of_theirs_are_refused(tmp_path: Path) -> None:
    _theirs(tmp_path / "grey.pth", in_channels=1)
    model, config = _build(depth=4)
    with pytest.raises(UserError, match="for images of 1 channels; images are always RGB here"):
        load_initial_weights(model, tmp_path / "grey.pth", config)
    state = _theirs(tmp_path / "own.pth").state_dict()
    torch.save(state | {"attention.weight": torch.zeros(2)}, tmp_path / "own.pth")
    with pytest.raises(UserError, match=r"was changed: there is no place for attention\.weight"):
        load_initial_weights(model, tmp_path / "own.pth", config)


@pytest.mark.slow
def test_the_way_that_the_documentation_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = Path(__file__).parents[1] / "docs" / "models.md"
    (code,) = re.findall(r"```python\n(from pathlib.+?)```", docs.read_text(encoding="utf-8"), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    theirs = _theirs(tmp_path / "checkpoint_epoch5.pth", width=64)
    names: dict[str, Any] = {}
    exec(code, names)
    image = _image(1, 32, 48)
    with torch.no_grad():
        expected, logits = theirs(image.float() / 255), names["net"].eval()(image)
    assert (logits.softmax(1) - expected.softmax(1)).abs().max() <= 1e-5


# --- torchvision's ResNets ---


@pytest.fixture(scope="module")
def resnet18_state() -> dict[str, Tensor]:
    resnet = pytest.importorskip("torchvision.models.resnet")
    torch.manual_seed(1)
    return dict(resnet.resnet18(weights=None).state_dict())


@pytest.mark.parametrize("kind", ["pth", "old pth", "safetensors"])
def test_encoder_weights_are_torchvision_s_and_bring_its_normalisation(
    tmp_path: Path, kind: str, resnet18_state: dict[str, Tensor]
) -> None:
    state = resnet18_state
    path = tmp_path / f"resnet18.{kind.removeprefix('old ')}"
    if kind == "safetensors":
        pytest.importorskip("safetensors.torch").save_file(state, path)
    elif kind == "old pth":  # as the files of 2017: no counts of batches, and torch's format before 1.6
        state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
        torch.save(state, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(state, path)
    model, _ = _build(encoder="resnet18", depth=5)
    report = load_encoder_weights(model, path, "resnet18")
    own = model.state_dict()
    assert all(torch.equal(own[f"encoder.{name}"], tensor) for name, tensor in state.items() if not name.startswith("fc."))
    assert report.left_out == ["fc.*: not in the model"]
    assert model.normalization[0] == pytest.approx((0.485, 0.456, 0.406))
    assert model.normalization[1] == pytest.approx((0.229, 0.224, 0.225))
    assert "ImageNet" in report.notes[0]


def test_stages_that_are_not_used_are_left_out(tmp_path: Path, resnet18_state: dict[str, Tensor]) -> None:
    torch.save(resnet18_state, tmp_path / "r.pth")
    model, _ = _build(encoder="resnet18", depth=3)
    report = load_encoder_weights(model, tmp_path / "r.pth", "resnet18")
    assert report.left_out == ["layer3.*: not in the model", "layer4.*: not in the model", "fc.*: not in the model"]


def test_weights_of_another_network_are_one_line_that_names_keys(tmp_path: Path) -> None:
    resnet = pytest.importorskip("torchvision.models.resnet")
    model, _ = _build(encoder="resnet18", depth=5)
    with torch.device("meta"):
        states = [getattr(resnet, name)().state_dict() for name in ("resnet34", "resnet50")]
    r34, r50 = ({name: torch.zeros(tensor.shape, device="cpu") for name, tensor in state.items()} for state in states)
    torch.save(r34, tmp_path / "r34.pth")
    with pytest.raises(
        UserError, match=r"not the weights of resnet18 \(layer1\.2\.conv1\.weight, .* have no place\); --set model"
    ):
        load_encoder_weights(model, tmp_path / "r34.pth", "resnet18")
    torch.save(r50, tmp_path / "r50.pth")
    with pytest.raises(
        UserError, match=r"layer1\.0\.conv1\.weight is \(64, 64, 1, 1\).*; --set model\.encoder=resnet50 fits it"
    ):
        load_encoder_weights(model, tmp_path / "r50.pth", "resnet18")
    torch.save({"a.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(
        UserError, match=r"conv1\.weight, bn1\.weight, .* are missing; a\.weight has no place\); give torchvision's"
    ):
        load_encoder_weights(model, tmp_path / "other.pth", "resnet18")
    plain, _ = _build()
    with pytest.raises(UserError, match="the model has no ResNet encoder"):
        load_encoder_weights(plain, tmp_path / "r34.pth", "resnet34")


def test_a_run_says_what_it_took_from_which_file(tmp_path: Path, resnet18_state: dict[str, Tensor]) -> None:
    torch.save(resnet18_state, tmp_path / "r.pth")
    tree = {"model": SMALL | {"encoder": "resnet18", "encoder_weights": str(tmp_path / "r.pth")}}
    config = build_config(tree)
    model = build_network(config.model, num_classes=2, mean=MEAN, std=STD)
    notes = take_initial_weights(model, config)
    assert notes[0].startswith(f"weights {tmp_path / 'r.pth'} (torchvision's resnet18, a state_dict): ")
    assert any("left out: layer4.*" in line for line in notes)
    assert "normalisation is ImageNet's" in notes[-1]
    assert take_initial_weights(model, Config()) == []


def test_a_long_list_of_what_was_left_out_is_cut(tmp_path: Path) -> None:
    names = {f"part{number}.weight": torch.zeros(np.int64(number).item() + 1) for number in range(40)}
    torch.save(names | {"head.bias": torch.zeros(2)}, tmp_path / "a.pth")
    config = build_config({"model": SMALL, "train": {"init_checkpoint": str(tmp_path / "a.pth")}})
    model = build_network(config.model, num_classes=2, mean=MEAN, std=STD)
    notes = take_initial_weights(model, config)
    assert len(notes) == 14
    assert notes[-1].strip().startswith("left out: ")
    assert notes[-1].endswith(" more")

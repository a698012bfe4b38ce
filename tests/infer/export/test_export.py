"""Exported files against `predict`: the same masks from onnxruntime, from a program read back, on toy and on real images."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from unetfast.checkpoint import load_checkpoint, save_checkpoint
from unetfast.data.labels import ClassInfo, LabelTable
from unetfast.data.toy import write_toy
from unetfast.errors import UserError
from unetfast.infer.export import command as export_file
from unetfast.infer.export.command import ExportReport, choose_format, compare_masks, export
from unetfast.infer.export.graph import MaskNet, resize_bytes, resize_logits
from unetfast.infer.fullsize import iter_stripes
from unetfast.infer.predict import predict
from unetfast.loader.plainresize import resize_by_libraries
from unetfast.weights import load_initial_weights

SaveModel = Callable[..., Path]
MakeLabels = Callable[[int], LabelTable]
Runner = Callable[[np.ndarray], np.ndarray]

# of the pixels: two logits that are equal to the last bits may be ordered otherwise by another runtime's rounding
MAX_SHARE = 1e-4

pytestmark = pytest.mark.usefixtures("one_thread")


def open_file(path: Path) -> Runner:
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda image_NCHW: np.asarray(session.run(None, {"image": image_NCHW})[0])
    module = torch.export.load(path).module()
    return lambda image_NCHW: np.asarray(module(torch.from_numpy(image_NCHW)))


def read_rgb(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture.convert("RGB"))


def balance_classes(checkpoint: Path, images: list[Path]) -> None:
    """Shift the random head so that every class has the same mean logit: else one class wins everywhere."""
    loaded = load_checkpoint(checkpoint)
    model = loaded.build_model()
    small = [Image.open(image).convert("RGB").resize((48, 32)) for image in images]
    image_NCHW = torch.from_numpy(np.stack([np.array(picture) for picture in small])).permute(0, 3, 1, 2)
    with torch.no_grad():
        mean_K = model(image_NCHW).mean(dim=(0, 2, 3))
    loaded.weights["head.bias"] -= mean_K
    save_checkpoint(checkpoint, loaded)


def compare_with_predict(checkpoint: Path, run: Runner, images: list[Path], out: Path) -> float:
    """Return the share of pixels in which a file's masks and those that `predict` writes differ."""
    predict(checkpoint, images, out, device="cpu")
    labels = load_checkpoint(checkpoint).labels
    class_of_value = {info.value: class_id for class_id, info in enumerate(labels.classes)}
    num_differing = num_pixels = 0
    for image in images:
        with Image.open(out / f"{image.stem}.png") as picture:
            predicted_HW = np.vectorize(class_of_value.__getitem__)(np.array(picture))
        pred_HW = run(read_rgb(image).transpose(2, 0, 1)[None])[0]
        assert pred_HW.shape == predicted_HW.shape
        assert len(np.unique(pred_HW)) > 1
        num_differing += int((pred_HW != predicted_HW).sum())
        num_pixels += pred_HW.size
    return num_differing / num_pixels


@dataclass(frozen=True)
class Exported:
    """A checkpoint, the toy images that it was balanced on, its files, and what was said of them."""

    checkpoint: Path
    images: list[Path]
    files: dict[str, Path]
    reports: dict[str, ExportReport]
    said: str


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, save_model_at: SaveModel, make_labels: MakeLabels) -> Exported:
    folder = tmp_path_factory.mktemp("exported")
    write_toy(folder / "Data", "carvana", num_groups=2, images_per_group=2, seed=0, size_hw=(61, 90))
    images = sorted((folder / "Data").rglob("*.jpg"))
    assert len(images) == 4
    checkpoint = save_model_at(folder / "best.pt", make_labels(5), size_hw=(64, 96))
    balance_classes(checkpoint, images)
    console = Console(file=io.StringIO(), width=200)
    files = {suffix: folder / f"net.{suffix}" for suffix in ("onnx", "pt2", "safetensors")}
    reports = {suffix: export(checkpoint, path, console=console) for suffix, path in files.items()}
    return Exported(checkpoint, images, files, reports, console.file.getvalue())  # type: ignore[attr-defined]


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_toy_images_get_the_masks_of_predict(tmp_path: Path, exported: Exported, suffix: str) -> None:
    run = open_file(exported.files[suffix])
    assert compare_with_predict(exported.checkpoint, run, exported.images, tmp_path) <= MAX_SHARE
    # a batch, of which each mask is that of its image alone
    batch_NCHW = np.stack([read_rgb(image) for image in exported.images]).transpose(0, 3, 1, 2)
    together_NHW = run(batch_NCHW)
    assert together_NHW.dtype == np.uint8
    alone_NHW = np.concatenate([run(batch_NCHW[place : place + 1]) for place in range(4)])
    assert (together_NHW != alone_NHW).mean() <= MAX_SHARE
    assert len(np.unique(together_NHW)) == 5


OPTIONED = {
    "block": "separable",
    "attention": True,
    "deep_supervision": 0.4,
    "norm": "group",
    "up": "bilinear",
    "base_channels": 4,
    "depth": 2,
}
RESNET = {"encoder": "resnet18", "depth": 5, "base_channels": 4}


@pytest.mark.slow
@pytest.mark.parametrize("model", [OPTIONED, RESNET], ids=["optioned", "resnet18"])
def test_other_networks_get_the_masks_of_predict(
    tmp_path: Path, exported: Exported, save_model_at: SaveModel, make_labels: MakeLabels, model: dict[str, object]
) -> None:
    checkpoint = save_model_at(tmp_path / "best.pt", make_labels(5), size_hw=(64, 96), model=model)
    balance_classes(checkpoint, exported.images)
    report = export(checkpoint, tmp_path / "net.onnx")
    assert report.differing_share is not None
    run = open_file(tmp_path / "net.onnx")
    assert compare_with_predict(checkpoint, run, exported.images, tmp_path / "out") <= MAX_SHARE


@pytest.mark.real
@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_real_images_get_the_masks_of_predict(tmp_path: Path, exported: Exported, real_data: Path, suffix: str) -> None:
    images = sorted((real_data / "ade20k/ADEChallengeData2016/images/validation").glob("*.jpg"))[:3]
    images += [
        *sorted((real_data / "carvana/train").glob("*.jpg"))[:1],
        *sorted((real_data / "clevr").rglob("image_0.png"))[:1],
    ]
    assert len(images) == 5
    run = open_file(exported.files[suffix])
    assert compare_with_predict(exported.checkpoint, run, images, tmp_path) <= MAX_SHARE


def test_what_was_written_and_checked_is_said(exported: Exported) -> None:
    for suffix in ("onnx", "pt2"):
        share = exported.reports[suffix].differing_share
        assert share is not None
        assert share <= MAX_SHARE
        assert f"net.{suffix}" in exported.said
    assert "the net works at 64x96, in float32" in exported.said
    assert "onnx (opset 18)" in exported.said
    assert "image: uint8 (batch, 3, height, width)" in exported.said
    assert "checked: onnxruntime and the checkpoint differ at 0.00" in exported.said
    assert "read back, all tensors equal" in exported.said


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 300), (32, 48), (33, 48), (500, 37), (640, 427), (1001, 1340)])
def test_resized_bytes_are_those_of_predict(size_hw: tuple[int, int]) -> None:
    rgb_HWC = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    for target_hw in ((32, 48), (160, 240)):
        expected_HWC = np.empty((*target_hw, 3), dtype=np.uint8)
        resize_by_libraries(rgb_HWC, np.array([0.0, 0.0, *size_hw]), expected_HWC)
        found_NCHW = resize_bytes(torch.from_numpy(rgb_HWC.transpose(2, 0, 1)[None]), target_hw)
        np.testing.assert_array_equal(found_NCHW[0].permute(1, 2, 0).numpy(), expected_HWC)


@pytest.mark.parametrize("size_hw", [(1, 1), (32, 48), (16, 100), (77, 31)])
def test_resized_logits_are_those_of_predict_to_the_bit(size_hw: tuple[int, int]) -> None:
    logits_NKHW = torch.randn(1, 4, 32, 48, generator=torch.Generator().manual_seed(0))
    stripes = [stripe_KHW for _, stripe_KHW in iter_stripes(logits_NKHW[0], size_hw)]
    assert torch.equal(resize_logits(logits_NKHW, *size_hw)[0], torch.cat(stripes, dim=1))


def test_more_than_256_classes_give_16_bits(tmp_path: Path, save_tiny_model: SaveModel, make_labels: MakeLabels) -> None:
    checkpoint = save_tiny_model(make_labels(300))
    export(checkpoint, tmp_path / "net.onnx", opset=21)
    image_NCHW = np.random.default_rng(1).integers(0, 256, (1, 3, 40, 50), dtype=np.uint8)
    pred_NHW = open_file(tmp_path / "net.onnx")(image_NCHW)
    assert pred_NHW.dtype == np.uint16
    with torch.no_grad():
        expected_NHW = MaskNet(load_checkpoint(checkpoint).build_model(), size_hw=(32, 48), num_classes=300)(
            torch.from_numpy(image_NCHW)
        )
    assert (pred_NHW != expected_NHW.numpy()).mean() <= 1e-3


def test_the_metadata_says_classes_palette_values_and_sizes(exported: Exported) -> None:
    found: dict[str, dict[str, str]] = {}
    model = onnx.load(exported.files["onnx"])
    found["onnx"] = {entry.key: entry.value for entry in model.metadata_props}
    extra = dict.fromkeys(found["onnx"], "")
    torch.export.load(exported.files["pt2"], extra_files=extra)
    found["pt2"] = {name: text.decode() if isinstance(text, bytes) else text for name, text in extra.items()}
    with safe_open(exported.files["safetensors"], "pt") as file:
        found["safetensors"] = file.metadata()
    assert found["safetensors"].pop("format") == "pt"
    assert found["onnx"] == found["pt2"] == found["safetensors"]
    tree = {name: json.loads(text) for name, text in found["onnx"].items()}
    assert tree["class_names"] == [f"class {k}" for k in range(5)]
    assert tree["palette"] == [[k, 50, 255 - k] for k in range(5)]
    assert tree["source_values"] == [1, 2, 3, 4, 5]
    assert (tree["source_ignore_value"], tree["ignore_index"], tree["num_classes"]) == (0, 255, 5)
    assert (tree["size_hw"], tree["trained_size_hw"]) == ([64, 96], [64, 96])
    assert (tree["mean"], tree["std"]) == ([0.5] * 3, [0.25] * 3)
    assert (tree["weights"], tree["step"], tree["epoch"]) == ("raw", 10, 2)
    assert tree["model"]["base_channels"] == 4
    # nothing in the file tells of the machine that wrote it
    assert str(Path(__file__).parents[2]).encode() not in exported.files["onnx"].read_bytes()
    assert [[axis.dim_param or axis.dim_value for axis in end.type.tensor_type.shape.dim] for end in model.graph.input] == [
        ["batch", 3, "height", "width"]
    ]


def test_safetensors_round_trip_and_serve_as_initial_weights(exported: Exported) -> None:
    checkpoint = load_checkpoint(exported.checkpoint)
    read = load_file(exported.files["safetensors"])
    assert read.keys() == checkpoint.weights.keys()
    for name, tensor in checkpoint.weights.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    model = checkpoint.build_model()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    report = load_initial_weights(model, exported.files["safetensors"], checkpoint.config.model)
    assert report.left_out == []
    assert all(torch.equal(parameter, checkpoint.weights[name]) for name, parameter in model.named_parameters())


def test_the_size_at_which_the_net_works_may_be_another(tmp_path: Path, save_tiny_model: SaveModel) -> None:
    checkpoint = save_tiny_model()
    export(checkpoint, tmp_path / "net.pt2", size_hw=(48, 80))
    image = torch.randint(0, 256, (1, 3, 50, 70), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = MaskNet(load_checkpoint(checkpoint).build_model(), size_hw=(48, 80), num_classes=2)(image)
    np.testing.assert_array_equal(open_file(tmp_path / "net.pt2")(image.numpy()), expected.numpy())


def test_the_moving_average_is_exported_on_request(tmp_path: Path, save_tiny_model: SaveModel) -> None:
    path = save_tiny_model()
    checkpoint = load_checkpoint(path)
    checkpoint.ema = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in checkpoint.weights.items()}
    save_checkpoint(path, checkpoint)
    export(path, tmp_path / "ema.safetensors", weights="ema")
    export(path, tmp_path / "raw.safetensors", weights="raw")
    assert torch.equal(load_file(tmp_path / "ema.safetensors")["head.bias"], checkpoint.ema["head.bias"])
    assert torch.equal(load_file(tmp_path / "raw.safetensors")["head.bias"], checkpoint.weights["head.bias"])


def test_messages(tmp_path: Path, save_tiny_model: SaveModel) -> None:
    checkpoint = save_tiny_model()
    with pytest.raises(UserError, match="--opset 17: too old; 18 is the least that works"):
        export(checkpoint, tmp_path / "net.onnx", opset=17)
    with pytest.raises(UserError, match="--opset 99: the installed onnx knows 18 to"):
        export(checkpoint, tmp_path / "net.onnx", opset=99)
    with pytest.raises(UserError, match=r"net\.pt: a file of --format onnx ends in \.onnx, such as .*net\.onnx"):
        export(checkpoint, tmp_path / "net.pt", format="onnx")
    with pytest.raises(UserError, match=r"net: the suffix names no format; give --format onnx\|pt2\|safetensors"):
        export(checkpoint, tmp_path / "net")
    with pytest.raises(UserError, match="--format tflite: give one of onnx, pt2, safetensors"):
        choose_format("tflite", tmp_path / "net.tflite")
    with pytest.raises(UserError, match="--size has no meaning for safetensors"):
        export(checkpoint, tmp_path / "net.safetensors", size_hw=(64, 64))
    for suffix in ("safetensors", "pt2"):  # the default of ONNX too, where it is asked for
        with pytest.raises(UserError, match=f"^--opset 18 has no meaning for {suffix}: it is ONNX's; leave it out") as caught:
            export(checkpoint, tmp_path / f"net.{suffix}", opset=18)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such checkpoint"):
        export(tmp_path / "gone.pt", tmp_path / "net.onnx")
    with pytest.raises(UserError, match="holds no moving average"):
        export(checkpoint, tmp_path / "net.safetensors", weights="ema")
    with pytest.raises(UserError, match="cannot be written"):
        export(checkpoint, tmp_path / "nowhere" / "net.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt"]


@pytest.mark.parametrize(("suffix", "package"), [("onnx", "onnx"), ("onnx", "onnxscript"), ("safetensors", "safetensors")])
def test_a_missing_package_is_one_line(
    tmp_path: Path, save_tiny_model: SaveModel, monkeypatch: pytest.MonkeyPatch, suffix: str, package: str
) -> None:
    hide(monkeypatch, package)
    with pytest.raises(UserError, match=rf"--format {suffix} needs {package}: pip install 'unetfast\[export\]'"):
        export(save_tiny_model(), tmp_path / f"net.{suffix}")


def test_without_onnxruntime_the_file_is_written_and_that_is_said(
    tmp_path: Path, save_tiny_model: SaveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "onnxruntime")
    # what is written is tested above; here no graph is made
    monkeypatch.setattr(export_file, "build_mask_program", lambda net, what: None)
    monkeypatch.setattr(export_file, "build_onnx", lambda program, metadata, opset: b"a graph")
    console = Console(file=io.StringIO(), width=200)
    report = export(save_tiny_model(), tmp_path / "net.onnx", console=console)
    assert report.differing_share is None
    assert "not run: onnxruntime is not installed (pip install 'unetfast[export]')" in console.file.getvalue()  # type: ignore[attr-defined]
    assert (tmp_path / "net.onnx").read_bytes() == b"a graph"


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Let a package be not installed, as far as `find_spec` tells."""
    from importlib.util import find_spec

    def find(name: str) -> object:
        return None if name == package else find_spec(name)

    monkeypatch.setattr("unetfast.infer.export.command.find_spec", find)
    monkeypatch.setattr("unetfast.infer.export.onnx_file.find_spec", find)


class Branching(nn.Module):
    """A net whose path depends on its pixels: no graph holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1)

    def forward(self, image_NCHW: Tensor) -> Tensor:
        hidden_NCHW = image_NCHW.float()
        if hidden_NCHW.mean() > 100:
            hidden_NCHW = hidden_NCHW.flip(1)
        logits_NKHW: Tensor = self.layer(hidden_NCHW)
        return logits_NKHW


def test_a_network_that_cannot_be_traced_is_one_line(tmp_path: Path) -> None:
    net = MaskNet(Branching(), size_hw=(16, 16), num_classes=2).eval()
    with pytest.raises(UserError, match=r"its odd net cannot be exported: torch\.export stops at") as caught:
        export_file.build_mask_program(net, what="best.pt: its odd net")
    assert "\n" not in str(caught.value)
    assert "--format safetensors" in str(caught.value)


def test_a_checkpoint_of_such_a_factory_is_one_line_and_its_weights_can_be_had(
    tmp_path: Path, save_model_at: SaveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "branching_nets.py").write_text(
        "from torch import nn\n\n\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes, in_channels):\n"
        "        super().__init__()\n"
        "        self.layer = nn.Conv2d(in_channels, num_classes, 1)\n\n"
        "    def forward(self, image):\n"
        "        return self.layer(image.flip(1) if image.mean() > 0 else image)\n"
    )
    monkeypatch.chdir(tmp_path)
    checkpoint = save_model_at(tmp_path / "best.pt", model={"factory": "branching_nets:Net"})
    for suffix in ("onnx", "pt2"):
        with pytest.raises(UserError, match=r"best\.pt: its branching_nets:Net.* cannot be exported") as caught:
            export(checkpoint, tmp_path / f"net.{suffix}")
        assert "\n" not in str(caught.value)
    export(checkpoint, tmp_path / "net.safetensors")
    assert set(load_file(tmp_path / "net.safetensors")) >= {"net.layer.weight", "net.layer.bias"}


def test_a_file_that_means_something_else_is_not_written(
    tmp_path: Path, save_tiny_model: SaveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = export_file.open_pt2

    def open_wrong(data: bytes) -> Runner:
        run = real_open(data)
        return lambda image_NCHW: 1 - run(image_NCHW)

    monkeypatch.setattr(export_file, "open_pt2", open_wrong)
    with pytest.raises(UserError, match=r"the pt2 form gives another class at 100\.00 % of the pixels"):
        export(save_tiny_model(), tmp_path / "net.pt2")
    assert not (tmp_path / "net.pt2").exists()
    net = MaskNet(load_checkpoint(tmp_path / "best.pt").build_model(), size_hw=(32, 48), num_classes=2)
    with pytest.raises(UserError, match="gives int64"):
        compare_masks(net, lambda image_NCHW: np.zeros((1, 32, 48), dtype=np.int64))


def test_report_of_a_table_of_many_classes(tmp_path: Path, save_tiny_model: SaveModel) -> None:
    """Values that are colours, and names that are not ASCII, come back as they were."""
    infos = (ClassInfo(name="Straße", color=(1, 2, 3), value=(1, 2, 3)), ClassInfo(name="车", color=(4, 5, 6), value=(4, 5, 6)))
    report = export(save_tiny_model(LabelTable(classes=infos)), tmp_path / "net.safetensors")
    assert report == ExportReport(
        "safetensors", (tmp_path / "net.safetensors").stat().st_size, None, "weights alone; read back, all tensors equal"
    )
    with safe_open(tmp_path / "net.safetensors", "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["class_names"]) == ["Straße", "车"]
    assert json.loads(metadata["source_values"]) == [[1, 2, 3], [4, 5, 6]]

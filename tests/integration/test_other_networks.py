"""Whole runs of what is not the plain U-Net: its options, ResNet encoders, and segmentation_models_pytorch by model.factory."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_run
from PIL import Image
from rich.console import Console
from toy_run import assert_same_state, make_tree, run_here

from unetfast.checkpoint import load_checkpoint
from unetfast.errors import UserError
from unetfast.infer.evaluate_checkpoint import evaluate_checkpoint
from unetfast.infer.predict import predict

DOCS = Path(__file__).parents[2] / "docs" / "models.md"
SMP_TREE = {
    "factory": "smp_nets:unet",
    "factory_args": {"encoder_name": "resnet18", "decoder_channels": [16, 8, 8, 4, 4]},
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_run.make_shards(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def smp_nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    pytest.importorskip("segmentation_models_pytorch")
    code = re.findall(
        r"```python\n(import segmentation_models_pytorch.+?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    assert len(code) == 1
    (tmp_path / "smp_nets.py").write_text(code[0])
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("smp_nets", None)


def _run(shards: Path, out: Path, model: dict[str, Any], max_steps: int, *, resume: bool = False) -> str:
    heard = io.StringIO()
    tree = make_tree(model=model, train={"max_steps": max_steps, "accumulation": 1}, log={"gif": False, "report": False})
    run_here(shards, out, tree, resume=resume, console=Console(file=heard, width=300))
    return heard.getvalue()


def _assert_resume_is_exact(shards: Path, folder: Path, model: dict[str, Any]) -> str:
    """2 steps = 1 + resume + 1, bit for bit; returns what the straight run said."""
    said = _run(shards, folder / "straight", model, 2)
    _run(shards, folder / "cut", model, 1)
    _run(shards, folder / "cut", model, 2, resume=True)
    assert_same_state(folder / "cut", folder / "straight")
    return said


def _predict_own(checkpoint: Path, rgb_HWC: np.ndarray) -> np.ndarray:
    """Masks of an image that has the training size, straight from the network."""
    with torch.no_grad():
        logits = load_checkpoint(checkpoint).build_model()(torch.from_numpy(rgb_HWC).permute(2, 0, 1)[None])
    return logits[0].argmax(0).numpy().astype(np.uint8)


def _write_image(path: Path) -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((48, 32), Image.Resampling.BICUBIC)
    image.save(path)
    return np.array(image)


@pytest.mark.parametrize(
    "model",
    [{"block": "residual", "attention": True, "deep_supervision": 0.5}, {"block": "separable", "up": "bilinear"}],
    ids=["residual-attention-deep", "separable"],
)
def test_options_train_resume_and_are_evaluated(shards: Path, tmp_path: Path, model: dict[str, Any]) -> None:
    said = _assert_resume_is_exact(shards, tmp_path, model)
    assert f"{model['block']} blocks" in said
    best = tmp_path / "straight" / "best.pt"
    evaluation = evaluate_checkpoint(shards, best, device="cpu")
    assert evaluation.num_images == 5
    assert evaluation.loss is not None
    assert evaluation.metrics.mean_iou is not None


def test_a_resnet_encoder_goes_on_without_its_file_of_weights(shards: Path, tmp_path: Path) -> None:
    resnet = pytest.importorskip("torchvision.models.resnet")
    torch.manual_seed(5)
    weights = tmp_path / "resnet18.pth"
    torch.save(resnet.resnet18(weights=None).state_dict(), weights)
    model = {"encoder": "resnet18", "encoder_weights": str(weights), "depth": 3}
    said = _run(shards, tmp_path / "straight", model, 2)
    assert "U-Net on ResNet-18 (stages 1 to 3 of 5: model.depth)" in said
    assert f"weights {weights} (torchvision's resnet18, a state_dict)" in said
    assert "normalisation is ImageNet's" in said
    _run(shards, tmp_path / "cut", model, 1)
    weights.unlink()
    _run(shards, tmp_path / "cut", model, 2, resume=True)
    assert_same_state(tmp_path / "cut", tmp_path / "straight")
    last = load_checkpoint(tmp_path / "cut" / "last.pt")
    assert last.mean == pytest.approx((0.485, 0.456, 0.406))
    assert last.build_model().normalization[1] == pytest.approx((0.229, 0.224, 0.225))


def test_segmentation_models_pytorch_trains_resumes_evaluates_and_predicts(
    shards: Path, tmp_path: Path, smp_nets: None
) -> None:
    said = _assert_resume_is_exact(shards, tmp_path, SMP_TREE)
    assert "model   smp_nets:unet (Unet, padded to 32), " in said
    best = tmp_path / "straight" / "best.pt"
    checkpoint = load_checkpoint(best)
    assert checkpoint.config.model.factory_args == SMP_TREE["factory_args"]

    heard = io.StringIO()
    evaluation = evaluate_checkpoint(shards, best, device="cpu", console=Console(file=heard, width=300))
    assert evaluation.num_images == 5
    assert f"code    {best}: imports and runs smp_nets:unet (model.factory)" in heard.getvalue()

    rgb_HWC = _write_image(tmp_path / "image.png")
    predict(best, [tmp_path / "image.png"], tmp_path / "pred", device="cpu")
    expected = _predict_own(best, rgb_HWC)
    ids = np.asarray(Image.open(tmp_path / "pred" / "image.png"))
    assert ids.shape == expected.shape
    values = np.array([info.value for info in checkpoint.labels.classes])
    np.testing.assert_array_equal(ids, values[expected])


@pytest.mark.slow
def test_the_command_finds_the_module_in_the_working_directory_alone(shards: Path, tmp_path: Path, smp_nets: None) -> None:
    _run(shards, tmp_path / "run", SMP_TREE, 1)
    _write_image(tmp_path / "image.png")
    (tmp_path / "elsewhere").mkdir()
    command = shutil.which("unetfast", path=Path(sys.executable).parent)
    assert command is not None

    def predict_in(folder: Path) -> tuple[int, str]:
        files = [str(tmp_path / "run" / "last.pt"), str(tmp_path / "image.png"), "--out", str(tmp_path / "pred")]
        words = [command, "predict", "--checkpoint", *files, "--device", "cpu"]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        return done.returncode, done.stderr

    code, said = predict_in(tmp_path)
    assert code == 0, said
    assert "imports and runs smp_nets:unet" in said
    code, said = predict_in(tmp_path / "elsewhere")
    assert code == 2
    assert "there is no module smp_nets in" in said
    assert "Traceback" not in said


def test_a_module_that_changed_since_is_one_clear_line(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
from torch import nn


def build(num_classes, in_channels):
    return nn.Conv2d(in_channels, num_classes, SIDE, padding=SIDE // 2)
"""
    monkeypatch.chdir(tmp_path)
    Path("changed_net.py").write_text(text.replace("SIDE", "3"))
    try:
        _run(shards, tmp_path / "run", {"factory": "changed_net:build"}, 1)
        sys.modules.pop("changed_net")
        Path("changed_net.py").write_text(text.replace("SIDE", "11"))
        with pytest.raises(UserError, match="weights do not fit what changed_net:build builds now") as caught:
            load_checkpoint(tmp_path / "run" / "last.pt").build_model()
        assert "\n" not in str(caught.value)
    finally:
        sys.modules.pop("changed_net", None)


def test_weights_of_milesial_start_a_run_and_bring_their_normalisation(shards: Path, tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    try:
        from test_weights import TheirUNet
    finally:
        sys.path.pop(0)
    torch.manual_seed(0)
    torch.save(TheirUNet(2, bilinear=True, width=4).state_dict() | {"mask_values": [0, 255]}, tmp_path / "their.pth")
    heard = io.StringIO()
    train = {"max_steps": 1, "accumulation": 1, "init_checkpoint": str(tmp_path / "their.pth")}
    tree = make_tree(model={"depth": 4, "up": "bilinear", "dropout": 0.0}, train=train, log={"gif": False, "report": False})
    run_here(shards, tmp_path / "run", tree, console=Console(file=heard, width=300))
    assert "(a checkpoint of milesial/Pytorch-UNet, bilinear, 2 classes): " in heard.getvalue()
    assert "its classes stood for the mask values [0, 255]" in heard.getvalue()
    assert load_checkpoint(tmp_path / "run" / "last.pt").mean == (0, 0, 0)
    tree = make_tree(model={"depth": 4}, train=train)
    with pytest.raises(UserError, match=r"this fits: --set model\.up=bilinear$"):
        run_here(shards, tmp_path / "other", tree)

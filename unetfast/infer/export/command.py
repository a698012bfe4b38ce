"""A checkpoint as a file for other programs: `unetfast export`.

onnx and pt2 hold the whole way from pixels to class ids (graph.py), safetensors the weights alone. The file is made in
memory, checked, run against the model that it was made from, and only then written.

Axis legend: N batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from unetfast.errors import UserError, say_briefly
from unetfast.infer.export.graph import MaskNet
from unetfast.infer.export.metadata import build_metadata
from unetfast.infer.export.onnx_file import DEFAULT_OPSET, build_onnx, check_onnx_request, open_onnx
from unetfast.infer.export.program import build_mask_program, build_pt2, open_pt2
from unetfast.infer.load import TrainedModel, load_model
from unetfast.wholefile import write_whole

FORMATS = ("onnx", "pt2", "safetensors")
# pixels whose class may differ between two runtimes: their rounding decides where two logits are nearly equal
MAX_DIFFERING_SHARE = 1e-3


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export wrote.

    Args:
        format: "onnx", "pt2" or "safetensors".
        num_bytes: size of the file.
        differing_share: share of the pixels of the trial images for which the file gave another class than the model; None
            where there was no trial.
        note: why there was none; "" where there was.
    """

    format: str
    num_bytes: int
    differing_share: float | None
    note: str = ""


def export(
    checkpoint: Path,
    out: Path,
    *,
    format: str | None = None,  # noqa: A002  # as the option is called
    opset: int | None = None,
    weights: str = "auto",
    size_hw: tuple[int, int] | None = None,
    console: Console | None = None,
) -> ExportReport:
    """Write a checkpoint's model in another program's format; see docs/export.md for what stands in the file.

    Args:
        checkpoint: best.pt or last.pt of a run.
        out: the file, with the format's own suffix.
        format: "onnx", "pt2" or "safetensors"; None takes it from the suffix of `out`.
        opset: of ONNX, which alone has one; None takes 18.
        weights: "auto", "raw" or "ema".
        size_hw: height and width at which the net shall work, pixels; None takes the training size, and so `predict`'s masks.
        console: for notes; None is silent.

    Raises:
        UserError: a suffix that is not the format's, a package is missing, an opset that cannot be written or is not asked of
            ONNX, a network that cannot be traced, a file that cannot be written, or one that gives other masks than the model.
    """
    format = choose_format(format, out)  # noqa: A001
    if opset is not None and format != "onnx":
        raise UserError(f"--opset {opset} has no meaning for {format}: it is ONNX's; leave it out, or take --format onnx")
    opset = DEFAULT_OPSET if opset is None else opset
    if format == "onnx":
        check_onnx_request(opset)
    if format == "safetensors":
        if size_hw is not None:
            raise UserError("--size has no meaning for safetensors, which holds the weights alone; leave it out")
        if find_spec("safetensors") is None:
            raise UserError("--format safetensors needs safetensors: pip install 'unetfast[export]'")
    trained = load_model(checkpoint, device="cpu", weights=weights, console=console)
    size_hw = size_hw or trained.checkpoint.config.loader.size_hw
    metadata = build_metadata(trained, size_hw=size_hw)
    if format == "safetensors":
        data, report = _make_safetensors(trained, metadata)
    else:
        data, report = _make_graph(trained, metadata, kind=format, opset=opset, size_hw=size_hw, checkpoint=checkpoint)
    write_whole(out, lambda file: file.write(data))
    if console is not None:
        for line in _summary(report, out, trained, size_hw, opset):
            console.print(line, markup=False, soft_wrap=True)
    return report


def choose_format(format: str | None, out: Path) -> str:  # noqa: A002
    """Return the format, and prove that the file's suffix is its own.

    Raises:
        UserError: an unknown format, or a suffix that names none or another one.
    """
    if format is None:
        if out.suffix.removeprefix(".") not in FORMATS:
            raise UserError(
                f"{out}: the suffix names no format; give --format {'|'.join(FORMATS)}, or end --out in one of them"
            )
        return out.suffix.removeprefix(".")
    if format not in FORMATS:
        raise UserError(f"--format {format}: give one of {', '.join(FORMATS)}")
    if out.suffix != f".{format}":
        raise UserError(f"--out {out}: a file of --format {format} ends in .{format}, such as {out.with_suffix('.' + format)}")
    return format


def _make_graph(
    trained: TrainedModel, metadata: dict[str, str], *, kind: str, opset: int, size_hw: tuple[int, int], checkpoint: Path
) -> tuple[bytes, ExportReport]:
    # for the file float32 and rows of pixels, whatever the run took: other programs know neither autocast nor channels_last
    model = trained.model.to(torch.float32).to(memory_format=torch.contiguous_format)
    net = MaskNet(model, size_hw=size_hw, num_classes=trained.checkpoint.labels.num_classes).eval()
    program = build_mask_program(net, what=f"{checkpoint}: its {trained.model.title}")
    run: Callable[[np.ndarray], np.ndarray] | None
    if kind == "onnx":
        data = build_onnx(program, metadata, opset)
        run = open_onnx(data, opset)
    else:
        data = build_pt2(program, metadata)
        run = open_pt2(data)
    if run is None:
        note = "not run: onnxruntime is not installed (pip install 'unetfast[export]'); onnx's checker finds no fault"
        return data, ExportReport(kind, len(data), None, note)
    share = compare_masks(net, run)
    if share > MAX_DIFFERING_SHARE:
        raise UserError(
            f"{checkpoint}: the {kind} form gives another class at {100 * share:.2f} % of the pixels of a trial image; "
            "nothing was written (an operator of the network means something else there)"
        )
    return data, ExportReport(kind, len(data), share)


def compare_masks(net: MaskNet, run: Callable[[np.ndarray], np.ndarray]) -> float:
    """Return the share of pixels for which a runtime gives another class than torch, over made-up images of several sizes.

    Args:
        net: on the CPU.
        run: uint8 (N, 3, H, W) to class ids (N, H, W).

    Raises:
        UserError: the runtime fails, or gives masks of another shape or type.
    """
    height, width = net.size_hw
    rng = np.random.default_rng(0)
    num_differing = num_pixels = 0
    for num, size_hw in ((1, (height, width)), (2, (height * 3 // 2 + 1, width * 5 // 4 + 3)), (1, (height // 2 + 1, width))):
        image_NCHW = _draw_images(rng, num, size_hw)
        with torch.no_grad():
            expected_NHW = net(torch.from_numpy(image_NCHW)).numpy()
        try:
            found_NHW = run(image_NCHW)
        except Exception as error:  # whatever a runtime raises
            raise UserError(f"the exported model does not run ({say_briefly(error)})") from None
        if found_NHW.shape != expected_NHW.shape or found_NHW.dtype != expected_NHW.dtype:
            raise UserError(
                f"the exported model gives {found_NHW.dtype} {found_NHW.shape} for images of {size_hw[0]}x{size_hw[1]}, "
                f"not {expected_NHW.dtype} {expected_NHW.shape}"
            )
        num_differing += int((found_NHW != expected_NHW).sum())
        num_pixels += expected_NHW.size
    return num_differing / num_pixels


def _draw_images(rng: np.random.Generator, num: int, size_hw: tuple[int, int]) -> np.ndarray:
    """Draw coarse coloured blocks under fine noise: edges and textures of every strength."""
    height, width = size_hw
    blocks_NChw = rng.integers(0, 256, (num, 3, height // 16 + 1, width // 16 + 1))
    coarse_NCHW = blocks_NChw.repeat(16, axis=2).repeat(16, axis=3)[:, :, :height, :width]
    return (coarse_NCHW + rng.integers(-20, 21, coarse_NCHW.shape)).clip(0, 255).astype(np.uint8)


def _make_safetensors(trained: TrainedModel, metadata: dict[str, str]) -> tuple[bytes, ExportReport]:
    import safetensors.torch

    tensors = {name: tensor.contiguous().clone() for name, tensor in trained.model.state_dict().items()}
    data = safetensors.torch.save(tensors, metadata | {"format": "pt"})
    read = safetensors.torch.load(data)
    if read.keys() != tensors.keys() or not all(torch.equal(read[name], tensor) for name, tensor in tensors.items()):
        raise AssertionError("safetensors gave back other tensors than it was given")
    return data, ExportReport("safetensors", len(data), None, "weights alone; read back, all tensors equal")


def _summary(report: ExportReport, out: Path, trained: TrainedModel, size_hw: tuple[int, int], opset: int) -> list[str]:
    lines = [f"{out}  {report.num_bytes / 2**20:.1f} MiB, {report.format}" + (f" (opset {opset})" * (report.format == "onnx"))]
    if report.format != "safetensors":
        dtype = "uint8" if trained.checkpoint.labels.num_classes <= 256 else "uint16"
        lines.append("  in   image: uint8 (batch, 3, height, width), RGB, any sizes")
        lines.append(
            f"  out  mask: {dtype} (batch, height, width), class ids; the net works at {size_hw[0]}x{size_hw[1]}, in float32"
        )
    if report.differing_share is not None:
        runtime = "onnxruntime" if report.format == "onnx" else "the program read back"
        lines.append(f"  checked: {runtime} and the checkpoint differ at {100 * report.differing_share:.4f} % of pixels")
    else:
        lines.append(f"  {report.note}")
    return lines

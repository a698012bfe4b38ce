"""The ONNX form of a model: made by torch's exporter, checked by onnx, tried in onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import torch

from unetfast.errors import UserError
from unetfast.infer.export.program import DYNAMIC_AXES, first_line, quiet_exporter

if TYPE_CHECKING:
    import onnx

LEAST_OPSET = 18  # torch's exporter writes it; converting down to 17 leaves operators that 17 does not have
DEFAULT_OPSET = 18
MAX_FILE_BYTES = 2**31 - 1  # of a protobuf message
INPUT_NAME, OUTPUT_NAME = "image", "mask"


def check_onnx_request(opset: int) -> None:
    """Prove, before any work, that the packages are there and that the opset can be written.

    Raises:
        UserError: a package is missing, or the opset is too old or unknown to the installed onnx.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise UserError(f"--format onnx needs {' and '.join(missing)}: pip install 'unetfast[export]'")
    if opset < LEAST_OPSET:
        raise UserError(
            f"--opset {opset}: too old; {LEAST_OPSET} is the least that works (torch writes no older one that is valid)"
        )
    from onnx.defs import onnx_opset_version

    if opset > onnx_opset_version():
        raise UserError(f"--opset {opset}: the installed onnx knows {LEAST_OPSET} to {onnx_opset_version()}")


def build_onnx(program: torch.export.ExportedProgram, metadata: dict[str, str], opset: int) -> bytes:
    """Turn an exported program into the bytes of an ONNX file that onnx's checker accepts.

    Args:
        program: of a `MaskNet`, with its dynamic axes.
        metadata: texts for `metadata_props`.
        opset: version of ONNX's operators.

    Raises:
        UserError: the installed packages cannot write this opset, or the weights exceed what a file can hold.
    """
    import onnx

    num_bytes = sum(tensor.nbytes for tensor in program.state_dict.values())
    if num_bytes > MAX_FILE_BYTES:
        raise UserError(f"the weights take {num_bytes / 2**30:.1f} GiB, an ONNX file holds 2: take --format pt2")
    with quiet_exporter():
        written = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_shapes={INPUT_NAME: DYNAMIC_AXES},  # the program has them already; here their names are meant
            verbose=False,
        )
        if written is None:
            raise AssertionError("torch.onnx.export gave no program although dynamo is on")
        model = written.model_proto
    found = next(entry.version for entry in model.opset_import if not entry.domain)
    if found != opset:
        raise UserError(f"--opset {opset}: the installed onnx and onnxscript cannot write it; take {DEFAULT_OPSET}")
    _clean(model)
    model.producer_name = "unetfast"
    for name, text in metadata.items():
        model.metadata_props.add(key=name, value=text)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UserError(
            f"--opset {opset}: onnx's checker refuses the model ({first_line(error)}); take {DEFAULT_OPSET}"
        ) from None
    return bytes(model.SerializeToString())


def _clean(model: onnx.ModelProto) -> None:
    """Take out what torch notes at each node: traces with paths of this machine, as long as the graph itself."""
    for part in (model.graph, *model.functions):
        del part.metadata_props[:]
        part.ClearField("doc_string")
        for node in part.node:
            del node.metadata_props[:]
            node.ClearField("doc_string")
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]


def open_onnx(data: bytes, opset: int) -> Callable[[np.ndarray], np.ndarray] | None:
    """Return a function that runs the model with onnxruntime on the CPU; None where onnxruntime is missing.

    Raises:
        UserError: onnxruntime cannot run this opset.
    """
    if find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no other base
        raise UserError(
            f"--opset {opset}: onnxruntime {onnxruntime.__version__} does not run it ({first_line(error)[-200:]}); "
            f"take {DEFAULT_OPSET}"
        ) from None

    def run(image_NCHW: np.ndarray) -> np.ndarray:
        return np.asarray(session.run([OUTPUT_NAME], {INPUT_NAME: image_NCHW})[0])

    return run

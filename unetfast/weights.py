"""Initial weights: from a checkpoint, an exported file, a plain state_dict, milesial/Pytorch-UNet, or a torchvision ResNet.

Files are read as tensors and numbers alone; no code in them is run, and nothing is downloaded. What a file holds beside the
weights is not taken over, with one exception: weights that were trained with a normalisation of their own bring it along, since
they mean nothing under another.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unetfast.checkpoint import FORMAT, load_checkpoint
from unetfast.config import Config, ModelConfig
from unetfast.errors import UserError
from unetfast.model.factory import FactoryNetwork
from unetfast.model.network import Network
from unetfast.model.resnet import IMAGENET_MEAN, IMAGENET_STD, ResNetEncoder

ACCEPTED = (
    "a checkpoint of a run (best.pt, last.pt), a file of `unetfast export --format safetensors`, "
    "a state_dict (.pth) or a checkpoint of milesial/Pytorch-UNet"
)
WRAPPERS = ("state_dict", "model_state_dict", "model")  # under which training scripts put a state_dict into a dict
MAX_NAMED = 4  # keys in an error message
MAX_LINES = 12  # on what was left out


@dataclass(frozen=True, slots=True)
class InitReport:
    """What was taken over as initial weights.

    Args:
        source: what the file is, for people.
        num_loaded: tensors of the model that were filled.
        left_out: a line for each tensor that was not, with the reason.
        notes: lines on what else was decided, such as another normalisation.
    """

    source: str
    num_loaded: int
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def load_initial_weights(model: Network, path: Path, model_config: ModelConfig) -> InitReport:
    """Fill a model from a file as far as names and shapes fit; the rest keeps its random start.

    The normalisation stays that of the new data. Checkpoints of milesial/Pytorch-UNet are mapped one by one: they must fit
    whole, but for the number of classes, and bring their normalisation (pixel / 255) along, so that the model computes what
    theirs did for sizes divisible by its stride (others are padded in the decoder there, at the image here).

    Args:
        model: changed in place.
        path: a checkpoint of this program, of any data set; a .safetensors file or a state_dict with the same names, or the
            names of a factory's module; or a checkpoint of milesial/Pytorch-UNet.
        model_config: what `model` was built from, to say which settings would fit.

    Raises:
        UserError: the file holds no weights, or nothing in it fits, or a milesial checkpoint has another structure.
    """
    given = _read_weights(path, what=ACCEPTED)
    if _is_milesial(given.tensors):
        return _load_milesial(model, given, path, model_config)
    own = model.state_dict()
    prefix = "net." if isinstance(model, FactoryNetwork) else ""
    if prefix and not given.tensors.keys() & own.keys():
        given = _Given(given.source, {prefix + name: tensor for name, tensor in given.tensors.items()})
    # non-trainable constants of the input (mean, std) are the new data's
    taken = [name for name in own if not name.startswith("normalize.")]
    fitting, left_out = {}, []
    for name in taken:
        if name not in given.tensors:
            left_out.append(f"{name}: not in the file")
        elif given.tensors[name].shape != own[name].shape:
            left_out.append(f"{name}: {tuple(given.tensors[name].shape)} in the file, {tuple(own[name].shape)} in the model")
        else:
            fitting[name] = given.tensors[name]
    left_out += [f"{name}: not in the model" for name in given.tensors if name not in own]
    if not fitting:
        raise UserError(
            f"{path}: none of its {len(given.tensors)} tensors fits the model (it has {_name_some(given.tensors)}, the model "
            f"{_name_some(taken)}); leave it out: --set train.init_checkpoint="
        )
    model.load_state_dict(fitting, strict=False)
    return InitReport(given.source, len(fitting), left_out)


def take_initial_weights(model: Network, config: Config) -> list[str]:
    """Fill a model from the files that a config names: `model.encoder_weights`, then `train.init_checkpoint`.

    Args:
        model: built from `config.model`; changed in place.
        config: of the run.

    Returns:
        Lines for people; none where no file is named.

    Raises:
        UserError: a file cannot be read or does not fit.
    """
    reports = []
    encoder_weights, init_checkpoint = config.model.encoder_weights, config.train.init_checkpoint
    if encoder_weights:
        reports.append((encoder_weights, load_encoder_weights(model, Path(encoder_weights), config.model.encoder)))
    if init_checkpoint:
        reports.append((init_checkpoint, load_initial_weights(model, Path(init_checkpoint), config.model)))
    notes = []
    for name, report in reports:
        notes.append(f"weights {name} ({report.source}): {report.num_loaded} tensors taken over")
        notes += [f"        left out: {line}" for line in report.left_out[:MAX_LINES]]
        if len(report.left_out) > MAX_LINES:
            notes.append(f"        left out: {len(report.left_out) - MAX_LINES} more")
        notes += [f"        {line}" for line in report.notes]
    return notes


@dataclass(frozen=True, slots=True)
class _Given:
    """What a file holds.

    Args:
        source: what it is, for people.
        tensors: by name.
        others: what stood beside them.
    """

    source: str
    tensors: dict[str, Tensor]
    others: dict[str, Any] = field(default_factory=dict)


def _read_weights(path: Path, *, what: str) -> _Given:
    """Read the tensors of a file of any kind that is known here.

    Args:
        path: the file.
        what: what it should be, for the error message.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}; give {what}")
    try:
        with path.open("rb") as file:
            start = file.read(9)
        is_safetensors = start[8:] == b"{"  # the length of a JSON text, then the text
        tree: Any = None if is_safetensors else torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError) as error:
        # torch's reader of older files fails in many ways on bytes that are none of its
        if start[:4] == b"PK\x03\x04" and not isinstance(error, pickle.UnpicklingError):
            raise UserError(f"{path}: cut short or damaged; take another copy") from None
        held = "more than tensors and numbers" if start[:1] in (b"P", b"\x80") else f"it begins with {start[:4]!r}"
        raise UserError(f"{path}: not a file of weights ({held}); give {what}") from None
    if is_safetensors:
        return _Given("a safetensors file", _read_safetensors(path))
    if isinstance(tree, dict) and tree.get("format") == FORMAT:
        checkpoint = load_checkpoint(path)
        name, weights = checkpoint.choose_weights("auto")
        averaged = ", averaged weights (EMA)" if name == "ema" else ""
        return _Given(f"a checkpoint of {checkpoint.dataset}, step {checkpoint.step:,}{averaged}", weights)
    wrapper = next((name for name in WRAPPERS if isinstance(tree, dict) and isinstance(tree.get(name), Mapping)), "")
    entries = tree[wrapper] if wrapper else tree
    if not isinstance(entries, Mapping) or not any(isinstance(value, Tensor) for value in entries.values()):
        raise UserError(f"{path}: there are no weights in it; give {what}")
    # DataParallel puts "module." before every name, torch.compile "_orig_mod."
    tensors = {
        re.sub(r"^(module\.|_orig_mod\.)+", "", str(name)): value for name, value in entries.items() if _is_tensor(value)
    }
    others = {str(name): value for name, value in entries.items() if not _is_tensor(value)}
    return _Given(f"a state_dict (its {wrapper})" if wrapper else "a state_dict", tensors, others)


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f"{path}: reading it needs safetensors: pip install 'unetfast[backbones]'") from None
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: a damaged safetensors file ({error}); take another copy") from None


def _name_some(names: object) -> str:
    listed = [*names]  # type: ignore[misc]
    return ", ".join(listed[:MAX_NAMED]) + (", ..." if len(listed) > MAX_NAMED else "")


# --- milesial/Pytorch-UNet ---


def _is_milesial(tensors: Mapping[str, Tensor]) -> bool:
    return {"inc.double_conv.0.weight", "outc.conv.weight"} <= tensors.keys()


def _load_milesial(model: Network, given: _Given, path: Path, model_config: ModelConfig) -> InitReport:
    tensors = given.tensors
    num_classes, _, kernel, _ = tensors["outc.conv.weight"].shape
    base_channels, in_channels, *_ = tensors["inc.double_conv.0.weight"].shape
    up = "transposed" if "up1.up.weight" in tensors else "bilinear"
    what = (
        f"{path}: a checkpoint of milesial/Pytorch-UNet ({up}, {base_channels} channels, "
        f"{num_classes} class{'es' * (num_classes > 1)})"
    )
    if in_channels != model.in_channels:
        raise UserError(f"{what} for images of {in_channels} channels; images are always RGB here, of {model.in_channels}")
    depth = sum(re.fullmatch(r"down\d+\.maxpool_conv\.1\.double_conv\.0\.weight", name) is not None for name in tensors)
    needed = {"factory": "", "encoder": "plain", "block": "plain", "base_channels": base_channels, "depth": depth, "up": up}
    needed |= {"convs_per_block": 2, "conv_order": "conv-norm-act", "norm": "batch", "down": "maxpool", "head_kernel": kernel}
    has = model_config.model_dump()
    if isinstance(has["down"], list) and set(has["down"]) == {"maxpool"}:
        has["down"] = "maxpool"
    settings = [f"--set model.{key}={value}" for key, value in needed.items() if has[key] != value]
    if settings:
        raise UserError(f"{what} does not fit this model; this fits: {' '.join(settings)}")

    translated = _translate_milesial(tensors)
    own = model.state_dict()
    left_out, notes = [], []
    if num_classes == 1 and model.num_classes == 2:
        # sigmoid(z) is the second number of softmax([0, z])
        for name in ("head.weight", "head.bias"):
            translated[name] = torch.cat([torch.zeros_like(translated[name]), translated[name]])
        notes.append("its one logit became that of class 1, beside a 0 for class 0: the same probabilities")
    elif num_classes != model.num_classes:
        for name in ("head.weight", "head.bias"):
            left_out.append(
                f"{name}: {num_classes} class{'es' * (num_classes > 1)} in the file, {model.num_classes} in the shards"
            )
            del translated[name]
    wrong = [name for name, tensor in translated.items() if name not in own or own[name].shape != tensor.shape]
    if wrong:
        raise UserError(
            f"{what} was changed: there is no place for {_name_some(wrong)}; leave it out: --set train.init_checkpoint="
        )
    left = {name.split(":")[0] for name in left_out}
    left_out += [
        f"{name}: not in the file"
        for name in own
        if name not in translated and name not in left and not name.startswith("normalize.")
    ]
    model.load_state_dict(translated, strict=False)
    model.set_normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    notes.append("normalisation is pixel / 255, as they were trained with, in place of the mean and deviation of these shards")
    if "mask_values" in given.others:
        notes.append(f"its classes stood for the mask values {given.others['mask_values']}")
    return InitReport(
        f"a checkpoint of milesial/Pytorch-UNet, {up}, {num_classes} class{'es' * (num_classes > 1)}",
        len(translated),
        left_out,
        notes,
    )


def _translate_milesial(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give every tensor the name that it has here.

    Until December 2021 their convolutions had biases in front of the batch norms, which take them away again: such a bias is
    taken off the running mean, so that evaluation computes the same.
    """
    translated: dict[str, Tensor] = {}
    biases: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        ours = re.sub(r"^inc\.double_conv\.", "encoder.0.", name)
        ours = re.sub(r"^down(\d+)\.maxpool_conv\.1\.double_conv\.", r"encoder.\1.", ours)
        ours = re.sub(r"^up(\d+)\.up\.", lambda match: f"decoder.{int(match[1]) - 1}.up.", ours)
        ours = re.sub(r"^up(\d+)\.conv\.double_conv\.", lambda match: f"decoder.{int(match[1]) - 1}.block.", ours)
        ours = re.sub(r"^outc\.conv\.", "head.", ours)
        match = re.fullmatch(r"((?:encoder\.\d+|decoder\.\d+\.block)\.)([03])\.bias", ours)
        if match:
            biases[f"{match[1]}{int(match[2]) + 1}.running_mean"] = tensor
        else:
            translated[ours] = tensor
    for name, bias in biases.items():
        if name in translated:
            translated[name] = translated[name] - bias
    return translated


# --- torchvision's ResNets ---


def load_encoder_weights(model: Network, path: Path, encoder: str) -> InitReport:
    """Fill the ResNet encoder of a U-Net from a torchvision state_dict, and take ImageNet's normalisation with it.

    Args:
        model: a U-Net with that encoder; changed in place.
        path: a .pth or .safetensors file with torchvision's names, such as resnet34-b627a593.pth.
        encoder: name of the encoder, for the messages.

    Raises:
        UserError: the file holds no weights, or those of another network; names keys that differ and, where they are another
            ResNet's, the setting that fits.
    """
    what = f"torchvision's weights of {encoder}, a .pth or .safetensors file"
    given = _read_weights(path, what=what)
    target = getattr(model, "encoder", None)
    if not isinstance(target, ResNetEncoder):
        raise UserError(f"model.encoder_weights = {path}: the model has no ResNet encoder; set model.encoder")
    own = target.state_dict()
    # the oldest files have no counts of batches
    missing = [name for name in own if name not in given.tensors and not name.endswith("num_batches_tracked")]
    unfit = [name for name in own if name in given.tensors and given.tensors[name].shape != own[name].shape]
    deeper = tuple(f"layer{stage}." for stage in range(target.depth, 5))
    surplus = [name for name in given.tensors if name not in own and not name.startswith((*deeper, "fc."))]
    if missing or unfit or surplus:
        faults = [f"{_name_some(missing)} {'is' if len(missing) == 1 else 'are'} missing"] * bool(missing)
        faults += [f"{name} is {tuple(given.tensors[name].shape)}, not {tuple(own[name].shape)}" for name in unfit[:1]]
        faults += [f"{_name_some(surplus)} {'has' if len(surplus) == 1 else 'have'} no place"] * bool(surplus)
        found = _name_resnet(given.tensors)
        remedy = f"--set model.encoder={found} fits it" if found not in ("", encoder) else f"give {what}"
        raise UserError(f"{path}: not the weights of {encoder} ({'; '.join(faults)}); {remedy}")
    fitting = {name: given.tensors[name] for name in own if name in given.tensors}
    target.load_state_dict(fitting, strict=False)
    model.set_normalization(IMAGENET_MEAN, IMAGENET_STD)
    parts = dict.fromkeys(name.split(".")[0] for name in given.tensors if name not in own)
    left_out = [f"{part}.*: not in the model" for part in parts]
    notes = ["normalisation is ImageNet's, as they were trained with, in place of the mean and deviation of these shards"]
    return InitReport(f"torchvision's {encoder}, {given.source}", len(fitting), left_out, notes)


def _name_resnet(tensors: Mapping[str, Tensor]) -> str:
    """Tell which of the encoders a state_dict belongs to, by its blocks; "" for any other."""
    blocks = [sum(f"layer{stage}.{number}.conv1.weight" in tensors for number in range(99)) for stage in range(1, 5)]
    bottleneck = "layer1.0.conv3.weight" in tensors
    known = {(2, 2, 2, 2, False): "resnet18", (3, 4, 6, 3, False): "resnet34", (3, 4, 6, 3, True): "resnet50"}
    return known.get((blocks[0], blocks[1], blocks[2], blocks[3], bottleneck), "")

"""Any `nn.Module` as the network: a function of the user's builds it, what stands around it is the same as for the U-Net.

Axis legend: N batch, C channels, H height, W width, K classes.

The function is named "package.module:function" and is called with `num_classes=K, in_channels=3` and the user's own arguments.
Three attributes of the module that it returns tell how the module wants its images; each may be left out:

    input_stride    height and width must be multiples of this many pixels; 32 without it
    input_mean      per channel, of pixels in [0, 1], what its weights were trained with; the training split's without it
    input_std       likewise
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from unetfast.model.network import Logits, Network

DEFAULT_STRIDE = 32  # of nearly every published segmentation network
MAX_LINE = 240  # characters of another program's message
REMEDY = 'a factory is "module:function", such as my_nets:build in my_nets.py of the working directory'


class FactoryNetwork(Network):
    """A module of the user's, with normalisation and padding before it and the image's own size behind it.

    Args:
        net: float images (N, 3, H, W), normalised, H and W multiples of `stride`, to logits (N, K, H, W).
        title: what to call it.
        num_classes: K.
        stride: as `Network`.
        mean: as `Network`.
        std: as `Network`.
    """

    def __init__(
        self, net: nn.Module, *, title: str, num_classes: int, stride: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__(num_classes, in_channels=3, stride=stride, mean=mean, std=std)
        self.net = net
        self.title = title

    def score(self, hidden_NCHW: Tensor) -> Logits:
        """Score normalised pixels; see `Network.forward`."""
        return cast(Tensor, self.net(hidden_NCHW))


def build_factory_network(
    factory: str, args: Mapping[str, Any], *, num_classes: int, mean: Sequence[float], std: Sequence[float]
) -> FactoryNetwork:
    """Import a function, let it build a network, and try that on a small image.

    Modules are looked for in the working directory first, then among the installed ones, as `python -m` does.

    Args:
        factory: "package.module:function".
        args: keyword arguments of the function, beside `num_classes` and `in_channels`.
        num_classes: K.
        mean: per channel, in [0, 1]; where the module names none of its own.
        std: per channel, above 0; likewise.

    Raises:
        ValueError: there is no such module or function, it fails, returns no `nn.Module`, or one that does not give K logits
            for each pixel; each in one line.
    """
    with _working_directory_first():
        build = _import_function(factory)
        call = (
            f"{factory}({', '.join([f'num_classes={num_classes}', 'in_channels=3', *(f'{k}={v!r}' for k, v in args.items())])})"
        )
        try:
            net = build(num_classes=num_classes, in_channels=3, **args)
        except Exception as error:
            raise ValueError(f"{call} fails: {_first_line(error)}") from error
    if not isinstance(net, nn.Module):
        raise ValueError(f"{call} returns {_name_type(net)}, not a torch.nn.Module")
    stride = getattr(net, "input_stride", DEFAULT_STRIDE)
    if not isinstance(stride, int) or stride < 1:
        raise ValueError(f"{factory}: input_stride of its module is {stride!r}: must be a whole number of pixels")
    try:
        network = FactoryNetwork(
            net,
            title=f"{factory} ({type(net).__name__}, padded to {stride})",
            num_classes=num_classes,
            stride=stride,
            mean=getattr(net, "input_mean", mean),
            std=getattr(net, "input_std", std),
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{factory}: input_mean and input_std of its module do not fit: {_first_line(error)}") from error
    _probe(network, factory)
    return network


@contextlib.contextmanager
def _working_directory_first() -> Iterator[None]:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def _import_function(factory: str) -> Callable[..., Any]:
    module_name, colon, name = factory.partition(":")
    if not colon or not name.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise ValueError(f"factory = {factory!r}: {REMEDY}")
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ValueError(
                f"factory = {factory!r}: there is no module {error.name} in {Path.cwd()} or installed; {REMEDY}"
            ) from None
        raise ValueError(f"factory = {factory!r}: {module_name} needs {error.name}, which is not installed") from error
    except Exception as error:
        raise ValueError(f"factory = {factory!r}: importing {module_name} fails: {_first_line(error)}") from error
    where = getattr(module, "__file__", None) or module_name
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, [word for word in vars(module) if callable(vars(module)[word])], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"factory = {factory!r}: {where} has no function {name}{hint}")
    function = getattr(module, name)
    if not callable(function):
        raise ValueError(f"factory = {factory!r}: {name} of {where} is {_name_type(function)}, not a function")
    return cast(Callable[..., Any], function)


def _probe(network: FactoryNetwork, factory: str) -> None:
    """Score two small images in both modes; weights, statistics, random state and modes are afterwards what they were."""
    side = network.stride
    image_NCHW = torch.zeros(2, 3, 2 * side, 3 * side, dtype=torch.uint8)
    expected = (2, network.num_classes, 2 * side, 3 * side)
    modes = [(module, module.training) for module in network.modules()]
    kept = {name: tensor.clone() for name, tensor in network.named_buffers()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for training in (False, True):
                network.train(training)
                mode = "training" if training else "evaluation"
                try:
                    logits = network(image_NCHW)
                except Exception as error:
                    raise ValueError(
                        f"{factory}: its network fails in {mode} on images of {expected[2]}x{expected[3]} pixels "
                        f"(multiples of {side}; input_stride): {_first_line(error)}"
                    ) from error
                if not isinstance(logits, Tensor):
                    raise ValueError(f"{factory}: its network gives {_name_type(logits)} in {mode}, not one tensor of logits")
                if tuple(logits.shape) != expected or not logits.is_floating_point():
                    raise ValueError(
                        f"{factory}: its network gives {logits.dtype} {tuple(logits.shape)} in {mode} for images "
                        f"{tuple(image_NCHW.shape)}; must be floats {expected}, a logit for each class and pixel"
                    )
    finally:
        for name, tensor in network.named_buffers():
            if name in kept:
                tensor.copy_(kept[name])
        for module, training in modes:
            module.training = training


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    line = f"{type(error).__name__}: {lines[0]}"
    return line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]} ..."


def _name_type(value: object) -> str:
    return f"an object of type {type(value).__name__}" if value is not None else "None"

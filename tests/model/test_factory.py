"""A user's own module as the network: what stands around it, and a clear line for each thing that can be wrong with it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unetfast.model.factory import FactoryNetwork, build_factory_network

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)

NETS = """
import torch
from torch import nn

class Sharp(nn.Sequential):
    '''Fails for sizes that its stride does not divide.'''

    def forward(self, hidden):
        assert hidden.shape[-2] % 8 == 0 and hidden.shape[-1] % 8 == 0, hidden.shape
        return super().forward(hidden)

def build(num_classes, in_channels, width=4, stride=8, **own):
    net = Sharp(
        nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout2d(0.5),
        nn.Conv2d(width, num_classes, 1),
    )
    net.input_stride = stride
    for name, value in own.items():
        setattr(net, name, value)
    return net

class Changing(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.change = change
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, hidden):
        return self.change(self.conv(hidden), self.training)

def half(num_classes, in_channels): return Changing(lambda y, training: y[..., ::2, ::2])
def many(num_classes, in_channels): return Changing(lambda y, training: y[:, :1])
def ids(num_classes, in_channels): return Changing(lambda y, training: y.long())
def table(num_classes, in_channels): return Changing(lambda y, training: {"out": y})
def pair(num_classes, in_channels): return Changing(lambda y, training: (y, y) if training else y)
def breaks(num_classes, in_channels): return Changing(lambda y, training: y.view(-1, 7, 7))
def nothing(num_classes, in_channels): return None
def narrow(num_classes): return nn.Conv2d(3, num_classes, 1)
def raises(num_classes, in_channels): raise RuntimeError("no such backbone\\nand more")

number = 3
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Write modules into a working directory of their own; they are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    written = []

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        written.append(name)

    write("my_nets", NETS)
    before = list(sys.path)
    yield write
    assert sys.path == before
    for name in written:
        sys.modules.pop(name, None)


def _build(factory: str, num_classes: int = 2, **args: object) -> FactoryNetwork:
    return build_factory_network(factory, args, num_classes=num_classes, mean=MEAN, std=STD)


def _image(num: int, height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (num, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_module_gets_normalised_pixels_padded_with_the_mean_colour(nets: object) -> None:
    network = _build("my_nets:build", num_classes=5, width=3).eval()
    image = _image(2, 9, 14)
    hidden = (image.float() / 255 - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    with torch.no_grad():
        expected = network.net(F.pad(hidden, (0, 2, 0, 7)))[:, :, :9, :14]
        logits = network(image)
    torch.testing.assert_close(logits, expected)
    assert (network.num_classes, network.stride, logits.shape) == (5, 8, (2, 5, 9, 14))
    assert network.title == "my_nets:build (Sharp, padded to 8)"
    assert {name.split(".")[0] for name in network.state_dict()} == {"normalize", "net"}


def test_attributes_of_the_module_say_how_it_wants_its_images(nets: object) -> None:
    network = _build("my_nets:build", stride=16, input_mean=(0.0, 0.0, 0.0), input_std=(1.0, 1.0, 1.0))
    assert (network.stride, network.normalization) == (16, ((0, 0, 0), (1, 1, 1)))
    plain = _build("my_nets:build")
    assert plain.normalization[0] == pytest.approx(MEAN)


def test_trying_the_module_leaves_no_trace(nets: object) -> None:
    torch.manual_seed(0)
    network = _build("my_nets:build")
    after = torch.get_rng_state()
    norm = network.net[1]  # type: ignore[index]
    assert network.training
    assert norm.num_batches_tracked == 0
    assert torch.equal(norm.running_mean, torch.zeros(4))
    torch.manual_seed(0)
    sys.modules["my_nets"].build(2, 3)
    assert torch.equal(after, torch.get_rng_state())


def test_the_working_directory_comes_before_installed_modules(nets: Callable[[str, str], None]) -> None:
    nets("colorsys", "def build(num_classes, in_channels):\n    raise ValueError('mine')\n")
    sys.modules.pop("colorsys", None)
    with pytest.raises(ValueError, match="mine"):
        _build("colorsys:build")


@pytest.mark.parametrize(
    ("factory", "args", "said"),
    [
        ("my_nets", {}, r'factory = \'my_nets\': a factory is "module:function"'),
        ("my_nets:a.b", {}, 'a factory is "module:function"'),
        ("my nets:build", {}, 'a factory is "module:function"'),
        ("no_nets:build", {}, "there is no module no_nets in .* or installed"),
        ("my_nets.part:build", {}, "there is no module my_nets.part in .* or installed"),
        ("needs:build", {}, "needs needs not_installed_anywhere, which is not installed"),
        ("broken:build", {}, r"importing broken fails: SyntaxError"),
        ("my_nets:biuld", {}, r"my_nets\.py has no function biuld; did you mean build\?"),
        ("my_nets:number", {}, r"number of .*my_nets\.py is an object of type int, not a function"),
        ("my_nets:narrow", {}, r"my_nets:narrow\(num_classes=2, in_channels=3\) fails: TypeError: .*in_channels"),
        ("my_nets:build", {"width": "x"}, r"my_nets:build\(num_classes=2, in_channels=3, width='x'\) fails: TypeError"),
        ("my_nets:raises", {}, r"fails: RuntimeError: no such backbone$"),
        ("my_nets:nothing", {}, r"returns None, not a torch\.nn\.Module"),
        ("my_nets:build", {"stride": "x"}, "input_stride of its module is 'x'"),
        ("my_nets:build", {"stride": 4}, r"fails in evaluation on images of 8x12 pixels \(multiples of 4; input_stride\)"),
        (
            "my_nets:build",
            {"input_mean": (120.0, 1.0, 1.0)},
            "input_mean and input_std of its module do not fit: .* divided by 255",
        ),
        ("my_nets:build", {"input_std": 3}, "input_mean and input_std of its module do not fit"),
        ("my_nets:half", {}, r"gives torch\.float32 \(2, 2, 32, 48\) in evaluation .*must be floats \(2, 2, 64, 96\)"),
        ("my_nets:many", {}, r"gives torch\.float32 \(2, 1, 64, 96\) in evaluation"),
        ("my_nets:ids", {}, r"gives torch\.int64 \(2, 2, 64, 96\) in evaluation .*must be floats"),
        ("my_nets:table", {}, "gives an object of type dict in evaluation, not one tensor of logits"),
        ("my_nets:pair", {}, "gives an object of type tuple in training, not one tensor of logits"),
        ("my_nets:breaks", {}, "its network fails in evaluation on images of 64x96 pixels .*: RuntimeError"),
    ],
)
def test_each_fault_is_one_clear_line(
    nets: Callable[[str, str], None], factory: str, args: dict[str, object], said: str
) -> None:
    nets("needs", "import not_installed_anywhere\n")
    nets("broken", "def build(:\n")
    with pytest.raises(ValueError, match=said) as caught:
        _build(factory, **args)
    assert "\n" not in str(caught.value)

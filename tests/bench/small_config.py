"""A config that trains a very small U-Net on small pictures."""

from __future__ import annotations

import copy
from typing import Any

from unetfast.config import Config, build_config

SMALL: dict[str, dict[str, Any]] = {
    "model": {"base_channels": 4, "depth": 2},
    "loader": {"size_hw": [32, 48], "batch_size": 4, "threads": 1},
    "train": {"amp": "off", "device": "cpu"},
}


def make_config(**sections: dict[str, Any]) -> Config:
    """Resolve `SMALL` with other sections on top."""
    tree = copy.deepcopy(SMALL)
    for name, values in sections.items():
        tree[name] = tree.get(name, {}) | values
    return build_config(tree)

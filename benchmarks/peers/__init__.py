"""The other sides of the comparisons: real packages where they install, else marked re-creations of what their projects state.

Some packages want other versions of what unetfast is tested with, so they stand in a folder of their own, installed without
their dependencies (`make peers`, versions in benchmarks/peers.txt).
"""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".peers"


class PeersMissingError(Exception):
    """The folder of foreign packages is not there."""


def use_peers() -> None:
    """Let the packages of .peers/ be imported, behind all others of the same name.

    Raises:
        PeersMissingError: it was not made; says how to make it.
    """
    if not FOLDER.is_dir():
        raise PeersMissingError(f"no {FOLDER.name}/ beside the README: `make peers` installs the packages that we compare with")
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))

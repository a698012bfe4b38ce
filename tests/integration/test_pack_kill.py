"""`unetfast shard` killed with SIGKILL at instants drawn by a seed, then repeated: the same bytes, and no orphans."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unetfast.data.toy.layouts import write_toy

WORKERS = 2


@pytest.fixture(scope="module")
def src(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kill") / "src"
    write_toy(root, "carvana", num_groups=10, seed=0, images_per_group=2)
    return root


def command(src: Path, out: Path) -> list[str]:
    return [
        sys.executable,
        *("-m", "unetfast", "shard", "--src", str(src), "--out", str(out)),
        *("--workers", str(WORKERS), "--shard-mib", "0.02"),
    ]


def read_folder(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "pack.log"
    }


def children_of(process: int) -> list[int]:
    """Processes whose parent is `process`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            if parent == process:
                found.append(int(entry.name))
    return found


def is_alive(process: int) -> bool:
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to see the workers")
def test_kill_at_random_instants(src: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    subprocess.run(command(src, tmp_path / "whole"), check=True, capture_output=True)
    seconds = time.monotonic() - began
    expected = read_folder(tmp_path / "whole")
    draw = random.Random(0)
    for trial in range(3):
        out = tmp_path / f"trial{trial}"
        with subprocess.Popen(command(src, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                process.wait(draw.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                workers = children_of(process.pid)
                os.kill(process.pid, signal.SIGKILL)  # the parent alone: workers must notice by themselves
                process.wait()
                while any(is_alive(worker) for worker in workers):  # ends, or the suite's own time limit says that it does not
                    time.sleep(0.05)
        subprocess.run(command(src, out), check=True, capture_output=True)
        assert read_folder(out) == expected, f"trial {trial}"


def test_a_killed_worker_is_a_clear_error(src: Path, tmp_path: Path) -> None:
    """As the kernel does when memory runs out; what was packed is kept."""
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from unetfast.data import workers\n"
        "from unetfast.data.pack import PackOptions, pack\n"
        "from unetfast.errors import UserError\n"
        "give = workers._Worker.give\n"
        "def give_and_kill(self, task):\n"
        "    give(self, task)\n"
        "    os.kill(self.process.pid, signal.SIGKILL)\n"
        "if __name__ == '__main__':\n"
        "    workers._Worker.give = give_and_kill\n"
        "    try:\n"
        "        pack(Path(sys.argv[1]), Path(sys.argv[2]), options=PackOptions(shard_mib=0.02), workers=2)\n"
        "    except UserError as error:\n"
        "        print(error)\n"
    )
    path = tmp_path / "script.py"
    path.write_text(script)
    done = subprocess.run(
        [sys.executable, str(path), str(src), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
    )
    assert "a worker process ended (exit code -9)" in done.stdout
    assert "fewer --workers" in done.stdout


def test_a_script_that_packs_needs_no_guard(src: Path, tmp_path: Path) -> None:
    """Workers do not import the script that started them, as multiprocessing's would."""
    path = tmp_path / "script.py"
    path.write_text(
        "import sys\n"
        "print('imported')\n"
        "from pathlib import Path\n"
        "from unetfast.data.pack import PackOptions, pack\n"
        "pack(Path(sys.argv[1]), Path(sys.argv[2]), options=PackOptions(shard_mib=0.02), workers=2)\n"
    )
    done = subprocess.run(
        [sys.executable, str(path), str(src), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
    )
    assert done.stdout == "imported\n"
    assert (tmp_path / "out" / "manifest.json").is_file()


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}

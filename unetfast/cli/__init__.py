"""The command line: one thin function a command, a file each.

Heavy imports stand inside the functions, so that `--help` is quick. Results go to stdout, progress and notes to stderr. Exit
codes: 0 done, 1 done but for what was reported, 2 a mistake that the user can mend, 130 and 143 stopped by SIGINT and SIGTERM
after saving.
"""

from importlib import import_module

from unetfast.cli.program import app, main

# each file registers its command; the order is that of --help
COMMAND_FILES = (
    "shard",
    "inspect",
    "train",
    "lr_find",
    "evaluate",
    "predict",
    "export",
    "report",
    "compare",
    "bench",
    "demo",
    "doctor",
)
for _name in COMMAND_FILES:
    import_module(f"unetfast.cli.{_name}")

__all__ = ["app", "main"]

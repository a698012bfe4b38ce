"""The errors that a user can cause and mend. Everything else that is raised is a bug of ours."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake the user can mend: says what is wrong, which file or key, and what to do.

    The command line prints the message as one clear line, without a traceback, and exits with code 2.
    """


class BadSampleError(UserError):
    """One source sample cannot be packed.

    Args:
        file: the file at fault, as the user knows it.
        reason: what is wrong with it and the values found.
        remedy: what to do about it.
    """

    def __init__(self, file: str, reason: str, remedy: str) -> None:
        super().__init__(f"{file}: {reason}\n  {remedy}")
        self.file = file
        self.reason = reason
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[BadSampleError], tuple[str, str, str]]:
        return type(self), (self.file, self.reason, self.remedy)


class CorruptShardError(UserError):
    """Bytes of a shard folder are not what its manifest or index says.

    Args:
        where: key, shard and offset of the member, as far as they are known.
        reason: what differs.
    """

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}\n  run `unetfast inspect SHARDS --verify`, then pack the folder again")
        self.where = where
        self.reason = reason

    def __reduce__(self) -> tuple[type[CorruptShardError], tuple[str, str]]:
        return type(self), (self.where, self.reason)


class RankError(UserError):
    """A failure of a run in several processes, for the one process that says it; names the rank where it is not all of them."""


class ToldError(UserError):
    """The end of a process because of a failure that another process of the run has said: nothing is added."""


def say_briefly(error: BaseException) -> str:
    """Write the first line of an error's message, at most 200 characters; its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].strip()[:200] if lines else type(error).__name__

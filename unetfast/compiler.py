"""What is ours to know of torch's compiler: how it fails, and how many graphs it lets a process have.

torch counts graphs for each function of the code, over all networks of the process, and gives up at the ninth. One network is
one graph a size here, so a process that trains or predicts several times would come there.
"""

from __future__ import annotations

from unetfast.errors import say_briefly

# graphs of one function; those of networks that are gone are let go of, but count towards the second number
_LIMITS = {"recompile_limit": 256, "accumulated_recompile_limit": 4096}
_OTHER_NAMES = {"recompile_limit": "cache_size_limit", "accumulated_recompile_limit": "accumulated_cache_size_limit"}


def allow_many_graphs() -> None:
    """Raise torch's limits of graphs, for the whole process; larger ones of the user's own stay."""
    from torch._dynamo import config

    for name, num_graphs in _LIMITS.items():
        known = name if hasattr(config, name) else _OTHER_NAMES[name]
        if hasattr(config, known):
            setattr(config, known, max(getattr(config, known), num_graphs))


def compiler_errors() -> tuple[type[BaseException], ...]:
    """Return the errors by which torch says that it cannot compile; they share no base class."""
    from torch._dynamo import exc

    names = ("TorchDynamoException", "BackendCompilerFailed", "FailOnRecompileLimitHit")
    return tuple(getattr(exc, name) for name in names if hasattr(exc, name))


def say_why(error: BaseException) -> str:
    """Write in a few words why torch could not compile."""
    if type(error).__name__ == "FailOnRecompileLimitHit":  # its own words name no limit
        return "this process has reached torch's limit of graphs for one network, a new process begins anew"
    # what the compiler behind torch's said; the first line names that one alone
    inner = getattr(error, "inner_exception", None)
    if not isinstance(inner, BaseException):
        return say_briefly(error)
    name, words = type(inner).__name__, say_briefly(inner)
    return words if words == name else f"{name}: {words}"

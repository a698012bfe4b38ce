"""Several processes that train one model: world.py, who is who and sums over all; failures.py, how they end together."""

from unetfast.distributed.world import (
    RunningMax,
    World,
    current_world,
    even_out_buffers,
    failing_together,
    join_world,
    read_environment,
)

__all__ = ["RunningMax", "World", "current_world", "even_out_buffers", "failing_together", "join_world", "read_environment"]

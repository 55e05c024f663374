"""The queue of every real run: Redis Streams, one Lua script for each write.

The two faces stand in `redis_worker` and `redis_trainer`, the scripts in `lua/`, the rules in
docs/queue-protocol.md.
"""

from fairlead.transports.rollouts.redis_trainer import RedisTrainerQueue
from fairlead.transports.rollouts.redis_worker import RedisWorkerQueue

__all__ = ["RedisTrainerQueue", "RedisWorkerQueue"]

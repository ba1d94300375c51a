"""Which replica is asked about a task: the same one whenever it can be, so that each keeps its share of the tasks.

Ray Serve's own multiplexing is not used for this. It reports and measures every name that a replica has answered ten
times a second, which costs a core at thousands of tasks, and it learns them anew after every change. Here each task
has an order of the replicas that follows from the names alone (rendezvous hashing): all callers agree without a word,
and a replica that comes or goes moves only its own share.
"""

from __future__ import annotations

import hashlib

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

SLACK = 16
"""Requests that the first choice may have under way beyond the second: half a batch, so that a busy task spreads."""


def key(task: str, avoid: tuple[str, ...] = ()) -> str:
    """What a request carries as its model id.

    Args:
        avoid: replicas that could not answer this request.
    """
    return "|".join((task, *avoid))


def order(model_id: str, replicas: list[str]) -> list[str]:
    """Replicas in the order of a task; those to be avoided last."""
    task, *avoid = model_id.split("|")

    def rank(replica: str) -> tuple[bool, bytes]:
        return replica in avoid, hashlib.blake2b(f"{task}|{replica}".encode(), digest_size=8).digest()

    return sorted(replicas, key=rank)


class TaskRouter(RequestRouter):
    """By task, to the first in its order, or to the second where the first has `SLACK` requests more under way."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Groups to be tried one after the other."""
        if pending_request is None or not (model_id := pending_request.metadata.multiplexed_model_id):
            return [list(candidate_replicas)]
        pending_request.routing_context.should_backoff = True  # else Ray asks again without a pause while all are full
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        ranked = [by_name[name] for name in order(model_id, list(by_name))]
        if len(ranked) > 1 and "|" not in model_id and self._busy(ranked[0]) > self._busy(ranked[1]) + SLACK:
            ranked[:2] = ranked[1], ranked[0]
        return [[replica] for replica in ranked]

    def _busy(self, replica: RunningReplica) -> int:
        return self.replica_queue_len_cache.get(replica.replica_id) or 0

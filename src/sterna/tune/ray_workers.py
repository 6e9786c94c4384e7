"""Candidates measured by several machines alike, through a Ray cluster.

In: a Group and plans, as `Workers` takes them. Out: a Time for each. Every machine has Workers of
its own and races a share of the plans beside the shipped one, whose time there makes the times of
different machines comparable. Machines that are not like this one take no part: a time is a time
of its device. Needs the extra `sterna[ray]`.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from sterna.base.errors import Unavailable, UsageError
from sterna.base.target import Target
from sterna.ir.compute import Group
from sterna.schedule.choose import Plan
from sterna.tune.database import here, rules_state
from sterna.tune.race import Time
from sterna.tune.workers import Workers

_REACH_SECONDS = 5.0


class Node:
    """Workers on one machine of the cluster; an actor of Ray."""

    def __init__(self) -> None:
        self.workers = Workers()

    def identity(self, target: Target) -> tuple[str, str]:
        """The device and the rules of this machine."""
        return here(target).device, rules_state()

    def measure(
        self, group: Group, plans: Sequence[Plan], target: Target, sizes: Mapping[str, int]
    ) -> list[Time] | UsageError:
        """See Workers.measure; the error that it raises is returned."""
        try:
            return self.workers.measure(group, plans, target, sizes)
        except UsageError as error:
            return error


class RayWorkers:
    """Workers on every machine of the cluster at `address` that is like this one.

    Raises Unavailable where Ray is not installed or the cluster does not answer, UsageError where
    none of its machines is like this one.
    """

    def __init__(self, address: str, target: Target) -> None:
        _check_reachable(address)
        self._ray = ray = _imported()
        try:
            ray.init(address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise Unavailable(f"no Ray cluster answers at {address!r}: {error}") from None
        every = [_node(ray, found["NodeID"]) for found in ray.nodes() if found["Alive"]]
        told = ray.get([node.identity.remote(target) for node in every])
        wanted = here(target).device, rules_state()
        self._nodes = [n for n, identity in zip(every, told, strict=True) if identity == wanted]
        self.left_out = sorted({device for device, _ in told if (device, wanted[1]) != wanted})
        if not self._nodes:
            self.close()
            raise UsageError(
                f"no machine of the cluster is like this one ({wanted[0]}, and the same Sterna); "
                f"found are {', '.join(self.left_out) or 'others of another Sterna'}"
            )

    @property
    def machines(self) -> int:
        return len(self._nodes)

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cluster; its processes of ours end."""
        self._ray.shutdown()

    def measure(
        self, group: Group, plans: Sequence[Plan], target: Target, sizes: Mapping[str, int]
    ) -> list[Time]:
        """See Workers.measure: the first plan on every machine, the others on one each."""
        first, others = plans[0], plans[1:]
        count = max(1, min(len(self._nodes), len(others)))
        asked = [
            node.measure.remote(group, [first, *others[i::count]], target, dict(sizes))
            for i, node in enumerate(self._nodes[:count])
        ]
        found = self._ray.get(asked)
        for answer in found:
            if isinstance(answer, UsageError):
                raise answer
        return together(found)


def together(found: Sequence[Sequence[Time]]) -> list[Time]:
    """Times that machines measured by turns, in one row, in seconds of the first machine."""
    (first, *_), *_ = found
    scaled = [
        [replace(t, seconds=t.seconds * first.seconds / shipped.seconds) for t in times]
        for shipped, *times in found
    ]
    longest = max(map(len, scaled))
    return [first, *(times[i] for i in range(longest) for times in scaled if i < len(times))]


def _check_reachable(address: str) -> None:
    """Raise Unavailable where nobody listens: Ray itself would try for many minutes."""
    host, colon, port = address.rpartition(":")
    if not (colon and port.isdecimal()):
        return  # `auto` and the like, which Ray answers at once
    try:
        socket.create_connection((host, int(port)), timeout=_REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise Unavailable(f"no Ray cluster answers at {address!r}: {error}") from None


def _node(ray: Any, identity: str) -> Any:
    """A Node pinned to a machine; it asks Ray for no processor, for it takes turns by itself."""
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(identity, soft=False)
    return ray.remote(Node).options(num_cpus=0, scheduling_strategy=strategy).remote()


def _imported() -> Any:
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError:
        raise Unavailable(
            "measuring on several machines needs Ray; install it with pip install 'sterna[ray]'"
        ) from None
    return ray

"""A function over many items on a Ray cluster, in order; what a lost worker was at is done again by Ray."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from arimage.scale.cluster import Pool

AHEAD = 2
Item = TypeVar("Item")
Result = TypeVar("Result")


class Doer:
    """A worker that holds what its function needs; sums of floats depend on the number of its CPU threads."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.do = make()

    def call(self, item: Any) -> Any:
        return self.do(item)


def spread(
    ray: Any, pool: Pool, make: Callable[[], Callable[[Item], Result]], items: Iterable[Item]
) -> Iterator[Result]:
    """What a function gives for each item, in order.

    Args:
        ray: the library, connected.
        pool: how many workers there are, at most, and what each needs.
        make: gives the function, once in each worker.

    Raises:
        Exception: what the function raised.
    """
    import torch

    options = pool.options() | {"max_restarts": -1, "max_task_retries": 3}
    workers = [ray.remote(Doer).options(**options).remote(make, torch.get_num_threads()) for _ in range(pool.most)]
    turns: deque[Any] = deque(workers * AHEAD)
    under_way: deque[tuple[Any, Any]] = deque()

    def first() -> Result:
        ref, worker = under_way.popleft()
        turns.append(worker)
        try:
            return ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None

    try:
        for item in items:
            if not turns:
                yield first()
            worker = turns.popleft()
            under_way.append((worker.call.remote(item), worker))
        while under_way:
            yield first()
    finally:
        for worker in workers:
            with suppress(Exception):
                ray.kill(worker)

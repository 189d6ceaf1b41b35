"""As much of Ray as pools use, in this process: calls are done when they are made, and workers can be lost.

A clock of its own says when a call would end that takes so long, and waiting is putting it forward. What goes into a
call and what comes out of it are copies, as between processes.
"""

import itertools
import pickle
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any


class RayError(Exception):
    """A call has no answer."""


class RayActorError(RayError):
    """Its actor is gone."""


class RayTaskError(RayError):
    """It raised something."""


class Ref:
    """What a call gave, or why it gave nothing."""

    def __init__(self, value: Any = None, error: Exception | None = None, end: float = 0.0) -> None:
        self.value, self.error, self.end = value, error, end


class RayHere:
    """The library.

    Args:
        lose: whether the actor is lost in a call, by the call's name and number.
        seconds: of calls, by their names.
        apart: actors have copies of what they are made with, too.
    """

    exceptions = SimpleNamespace(RayError=RayError, RayActorError=RayActorError, RayTaskError=RayTaskError)

    def __init__(
        self,
        lose: Callable[[str, int], bool] = lambda name, number: False,
        seconds: Mapping[str, float] | None = None,
        apart: bool = False,
    ) -> None:
        self.seconds, self.apart, self.now = seconds or {}, apart, 0.0
        self.lose, self.calls, self.actors = lose, itertools.count(), list[Actor]()

    def put(self, value: Any) -> Ref:
        return Ref(value)

    def get(self, ref: Ref) -> Any:
        if ref.error is not None:
            raise ref.error
        return ref.value

    def wait(self, refs: list[Ref], num_returns: int, timeout: float) -> tuple[list[Ref], list[Ref]]:
        if timeout:
            self.now = max(self.now, min(ref.end for ref in refs))
        ready = [ref for ref in refs if ref.end <= self.now][:num_returns]
        return ready, [ref for ref in refs if ref not in ready]

    def kill(self, actor: "Actor") -> None:
        actor.gone = True

    def remote(self, kind: type) -> "Kind":
        return Kind(self, kind)


class Kind:
    """A class of actors."""

    def __init__(self, ray: RayHere, kind: type) -> None:
        self.ray, self.kind = ray, kind

    def options(self, **options: Any) -> "Kind":
        return self

    def remote(self, *arguments: Any) -> "Actor":
        given = [one.value if isinstance(one, Ref) else one for one in arguments]
        actor = Actor(self.ray, self.kind(*(copied(given) if self.ray.apart else given)))
        self.ray.actors.append(actor)
        return actor


class Actor:
    """An actor."""

    def __init__(self, ray: RayHere, inside: Any) -> None:
        self.ray, self.inside, self.gone, self.free = ray, inside, False, 0.0

    def __getattr__(self, name: str) -> "Method":
        return Method(self, name)


class Method:
    """A method of an actor."""

    def __init__(self, actor: Actor, name: str, count: int = 1) -> None:
        self.actor, self.name, self.count = actor, name, count

    def options(self, num_returns: int) -> "Method":
        return Method(self.actor, self.name, num_returns)

    def remote(self, *arguments: Any) -> Any:
        actor = self.actor
        if actor.gone or actor.ray.lose(self.name, next(actor.ray.calls)):
            actor.gone = True
            made = [Ref(error=RayActorError("the actor is gone")) for _ in range(self.count)]
        else:
            given = copied([one.value if isinstance(one, Ref) else one for one in arguments])
            answer = copied(getattr(actor.inside, self.name)(*given))
            began = max([actor.ray.now, actor.free, *(one.end for one in arguments if isinstance(one, Ref))])
            actor.free = began + actor.ray.seconds.get(self.name, 0.0)
            made = [Ref(one, end=actor.free) for one in ([answer] if self.count == 1 else answer)]
            assert len(made) == self.count
        return made[0] if self.count == 1 else made


def copied(value: Any) -> Any:
    """As it arrives in another process."""
    return pickle.loads(pickle.dumps(value))

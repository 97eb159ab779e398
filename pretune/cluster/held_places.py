"""Give back the places that the workers of a lost stage still hold.

Ray Train (2.52 to 2.60) makes a placement group for its workers, which lives as long as the job, also where the actor
that made it was killed: the next workers would wait for its place for ever. Newer versions have a cleaner of their own,
which is told of a group only once all workers are up, and needs the dashboard. Ray does not say which groups are whose,
so each stage run's have a mark: an amount of memory beside their CPUs that no other's have.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

LOOK_SECONDS = 2.0  # between two looks
LOOKS = 45  # after a loss: Ray takes up to a minute to know that the actor is dead which makes groups
GIVEN_BACK = "the place that a lost stage's workers held was given back"


def give_back(mark: int) -> bool:
    """Remove the placement groups whose bundles have this amount of memory, in bytes; whether there was any."""
    import ray
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    held = [
        name
        for name, group in placement_group_table().items()
        if group["state"] != "REMOVED" and any(one.get("memory") == mark for one in group["bundles"].values())
    ]
    for name in held:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(name)))  # type: ignore[attr-defined,unused-ignore]
    return bool(held)


@dataclass
class HeldPlaces:
    """Gives back the places of lost stages, in a thread of its own: the first look may come before the last group.

    Args:
        say: told of each place that is given back, and once of what keeps us from it.
    """

    say: Callable[[str], None]
    left: dict[int, int] = field(default_factory=dict)  # looks to come, by mark
    _failed: bool = False
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def lost(self, mark: int) -> None:
        """The stage run with this mark was lost, with all of its processes."""
        self.left[mark] = LOOKS
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="pretune-places", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Look no more: Ray is about to end."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(LOOK_SECONDS)

    def look(self) -> None:
        for mark in list(self.left):
            if give_back(mark):
                self.say(GIVEN_BACK)
            self.left[mark] -= 1
            if not self.left[mark]:
                del self.left[mark]

    def _watch(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            try:
                self.look()
            except Exception as error:  # Ray raises bare errors while its head does not answer
                if not self._failed and not self._over.is_set():
                    self._failed = True
                    self.say(f"places that lost workers may hold are not given back ({error}); if no stage starts, "
                             "stop, and run the same command again")  # fmt: skip

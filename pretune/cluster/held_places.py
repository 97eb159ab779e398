"""Give back the places that the workers of a lost stage still hold.

Ray Train (2.60) makes a placement group for its workers, which lives as long as the job, also where the actor that made
it was killed. Its own cleaner is told of a group only once all workers are up: a group that was being filled is held
until the study ends, and the next workers wait for it for ever. Ray does not say which groups are whose. Ray Train's
have no name, those that Tune makes for a study with such stages have one (tune.place_of); and a group without an actor
is nobody's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

LOOK_SECONDS = 2.0  # between two looks
LOOKS = 3  # in a row that find no actor in a group: Ray Train fills a group as soon as it has it
MORE_LOOKS = 30  # after a stage was lost, or a group was found empty: dead actors are known as such after 30 s
MOST = 10_000  # the most that Ray's State API answers
GIVEN_BACK = "the place that a lost stage's workers held was given back"
UNKNOWN = (
    "Ray's dashboard does not answer, so places that lost workers still hold cannot be given back; "
    "if no stage starts any more, stop, and run the same command again"
)


def groups_without_actors() -> dict[str, bool]:
    """The nameless groups of this job in which no actor lives or is about to; True for those that have their place.

    Raises:
        RayStateApiException, ConnectionError: Ray's dashboard, which is asked, does not answer.
    """
    import ray
    from ray.util.state import list_actors, list_placement_groups

    context = ray.get_runtime_context()
    job, head = context.get_job_id(), context.gcs_address  # without an address it refuses where several Rays run
    made_here: list[tuple[str, str, Any]] = [("creator_job_id", "=", job)]
    living: list[tuple[str, str, Any]] = [("job_id", "=", job), ("state", "!=", "DEAD")]
    groups = list_placement_groups(head, filters=made_here, limit=MOST)
    actors = list_actors(head, filters=living, limit=MOST, detail=True)
    filled = {actor.placement_group_id for actor in actors}
    return {
        group.placement_group_id: group.state == "CREATED"
        for group in groups
        if group.state != "REMOVED" and not group.name and group.placement_group_id not in filled
    }


def give_back(group: str) -> None:
    """Remove a placement group, by the name that Ray's State API has for it."""
    from ray import PlacementGroupID  # type: ignore[attr-defined,unused-ignore]
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(group)))


@dataclass
class HeldPlaces:
    """Looks for places that nobody uses, in a thread of its own, for a while after a stage was lost.

    Args:
        say: told of each place that is given back, and once that Ray does not answer.
    """

    say: Callable[[str], None]
    empty: dict[str, int] = field(default_factory=dict)  # groups that have a place: looks in a row without an actor
    _left: int = 0  # looks to come
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def lost(self) -> None:
        """A stage was lost: look from now on."""
        self._left = MORE_LOOKS
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._watch, name="pretune-places", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Look no more: Ray is about to end."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def look(self) -> bool:
        """Give back what several looks in a row found empty; whether any group is, also one that waits for its place.

        Raises:
            RayStateApiException, ConnectionError: Ray's dashboard does not answer.
        """
        groups = groups_without_actors()
        self.empty = {group: self.empty.get(group, 0) + 1 for group, placed in groups.items() if placed}
        for group in [group for group, looks in self.empty.items() if looks >= LOOKS]:
            give_back(group)
            del self.empty[group]
            self.say(GIVEN_BACK)
        return bool(groups)

    def _watch(self) -> None:
        from ray.util.state.exception import RayStateApiException

        answered = False
        self.empty = {}
        while self._left and not self._over.wait(LOOK_SECONDS):
            self._left -= 1
            try:
                if self.look():
                    self._left = MORE_LOOKS
                answered = True
            except (RayStateApiException, ConnectionError):
                self.empty = {}
        if not answered and not self._over.is_set():
            self.say(UNKNOWN)

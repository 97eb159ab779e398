"""Resources of nodes and of running stages: stages are admitted by these, not by Tune. No Ray in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from pretune.search_spaces.errors import UsageError
from pretune.search_spaces.stages import Stage

Amounts = Mapping[str, float]  # of CPU and GPU


class ResourceError(UsageError):
    """The study needs what this machine or cluster does not have."""


@dataclass(frozen=True)
class ClusterNode:
    """A node, or one that the autoscaler may yet start: that has neither id nor host."""

    resources: Amounts
    id: str = ""  # Ray's
    host: str = ""


@dataclass(frozen=True)
class Taken:
    """Resources of a running stage: equal for each of its workers, on these nodes."""

    each: Amounts
    places: tuple[int, ...]  # indices of nodes, one for each worker


@dataclass
class ClusterResources:
    """The room on every node. Nodes that may yet come count as room, else nothing would ever make them come.

    Ray decides where a stage really runs. This guesses as Ray's placement groups do, the node with the largest
    share left (`LeastResourceScorer`), and is put right by `settle` as soon as a stage says where it is; what it cannot
    see is who else uses the cluster. A wrong guess costs waiting: a stage that is dispatched too early waits in Ray's
    queue, and one held back goes out when the next stage ends.
    """

    nodes: Sequence[ClusterNode]
    parallel: int | None = None  # most stages at once
    running: dict[str, Taken] = field(default_factory=dict)  # by fingerprint
    on_gpus: bool = False  # stages that leave `gpus` open take one: once there is or may be one, for good
    _free: list[dict[str, float]] = field(default_factory=list)  # per node

    def __post_init__(self) -> None:
        self.look(self.nodes)

    def look(self, nodes: Sequence[ClusterNode]) -> None:
        """Nodes have come or gone."""
        if self._free and nodes == self.nodes:
            return
        known = {node.id: place for place, node in enumerate(nodes) if node.id}
        before, self.nodes = self.nodes, nodes
        self.on_gpus = self.on_gpus or any(node.resources.get("GPU", 0.0) > 0 for node in nodes)
        self._free = [dict(node.resources) for node in nodes]
        moved, lost = dict[str, Taken](), dict[str, Taken]()
        for key, taken in self.running.items():
            places = [known.get(before[place].id) for place in taken.places if place < len(before)]
            if taken.places and None not in places and len(places) == len(taken.places):
                moved[key] = self._take(taken.each, [place for place in places if place is not None])
            else:
                lost[key] = taken
        # Those on nodes that were yet to come are on ones that came, or still wait for them; a group that lost some
        # of its workers keeps what room there is for it, or it would never get it back.
        for key, taken in lost.items():
            moved[key] = self._take(taken.each, self._most_places(taken.each, len(taken.places)))
        self.running = {key: moved[key] for key in self.running}

    # ---------------------------------------------------------------------------------------- what a stage needs

    def each(self, stage: Stage) -> dict[str, float]:
        """CPUs and GPUs of one worker of a stage; one GPU where the study leaves it open and there are any.

        A share of a GPU counts as what it leaves no use for: of 0.6 only one fits on each, so it is 1.
        """
        asked = stage.resources.gpus_each
        wanted = float(self.on_gpus) if asked is None else asked
        return {"CPU": float(stage.resources.cpus), "GPU": 1 / int(1 / wanted + 1e-9) if 0 < wanted < 1 else wanted}

    def workers(self, stage: Stage) -> int:
        """For how many workers a stage needs room: of an elastic one, for as many as the nodes could ever hold.

        Not for as many as there is room now: Ray Train sizes an elastic group by what the nodes have, not by what
        is free on them, and then waits for that.
        """
        counts = stage.resources.worker_counts
        return counts[-1] if len(counts) == 1 else max(counts[0], min(counts[-1], self._room(self.each(stage))))

    def could_hold(self, stage: Stage, excluded: AbstractSet[str] = frozenset()) -> bool:
        """Whether the nodes that are there would have room if nothing ran.

        Not those that may come: Ray's first autoscaler does not see that a stage is to be kept off some.
        """
        each = self.each(stage)
        there = [node for node in self.nodes if node.id and node.id not in excluded]
        return sum(_room(node.resources, each) for node in there) >= self.workers(stage)

    def _room(self, each: Amounts) -> int:
        return sum(_room(node.resources, each) for node in self.nodes)

    def check(self, stages: Mapping[str, Stage]) -> None:
        """Raises `ResourceError` for a stage that could never be placed; Ray itself would wait silently."""
        for stage in stages.values():
            each, fewest = self.each(stage), stage.resources.worker_counts[0]
            for name, amount in each.items():
                largest = max((node.resources.get(name, 0.0) for node in self.nodes), default=0.0)
                if amount > largest:
                    key = (
                        "cpus"
                        if name == "CPU"
                        else "gpus"
                        if stage.resources.gpus_per_worker is None
                        else "gpus_per_worker"
                    )
                    there = "there are" if len(self.nodes) < 2 else "no node has more than"
                    raise ResourceError(
                        f"resources.{stage.kind}.{key}: a stage needs {amount:g} {name}, {there} {largest:g}; "
                        "lower it or add nodes to the cluster"
                    )
            if (room := self._room(each)) == 0 and stage.resources.workers == 1:
                raise ResourceError(
                    f"resources.{stage.kind}: a stage needs {shape(each)} on one node, and no node has both; "
                    "lower one or add nodes to the cluster"
                )
            if room < fewest:
                at_least = "at least " if fewest < stage.resources.workers else ""
                key = "min_workers" if at_least else "workers"
                raise ResourceError(
                    f"resources.{stage.kind}.{key}: {at_least}{fewest} workers with {shape(each)} each, "
                    f"there is room for {room}; lower it or add nodes to the cluster"
                )

    # --------------------------------------------------------------------------------------------- dispatching

    def fits(self, stage: Stage, excluded: AbstractSet[str] = frozenset()) -> bool:
        """Whether there is room now on nodes other than those to keep off."""
        if self.parallel is not None and len(self.running) >= self.parallel:
            return False
        return self._places(self.each(stage), self.workers(stage), excluded) is not None

    def admit(self, stage: Stage, excluded: AbstractSet[str] = frozenset()) -> None:
        """Note that a stage that fits was dispatched."""
        each = self.each(stage)
        self.running[stage.fingerprint] = self._take(each, self._places(each, self.workers(stage), excluded) or [])

    def settle(self, fingerprint: str, node: str) -> None:
        """A stage of one worker says on which node it is."""
        taken = self.running.get(fingerprint)
        place = next((place for place, one in enumerate(self.nodes) if one.id == node), None)
        if node and taken is not None and place is not None and taken.places != (place,):
            self.release(fingerprint)
            self.running[fingerprint] = self._take(taken.each, [place])

    def release(self, fingerprint: str) -> None:
        """A stage has ended."""
        if taken := self.running.pop(fingerprint, None):
            self._add(taken, +1)

    def _places(self, each: Amounts, workers: int, excluded: AbstractSet[str] = frozenset()) -> list[int] | None:
        """Nodes with room for the workers, as many as fit on the first before the next; None where there is none."""
        places = self._most_places(each, workers, excluded)
        return places if len(places) == workers else None

    def _most_places(self, each: Amounts, workers: int, excluded: AbstractSet[str] = frozenset()) -> list[int]:
        """The same for as many of the workers as there is room for."""
        places: list[int] = []
        usable = [place for place, node in enumerate(self.nodes) if node.id not in excluded]
        there_first = sorted(usable, key=lambda one: (not self.nodes[one].id, -_share_left(self._free[one], each)))
        for place in there_first:
            places += [place] * min(_room(self._free[place], each), workers - len(places))
            if len(places) == workers:
                break
        return places

    def _take(self, each: Amounts, places: Sequence[int]) -> Taken:
        taken = Taken(each, tuple(places))
        self._add(taken, -1)
        return taken

    def _add(self, taken: Taken, sign: int) -> None:
        for place in taken.places:
            for name, amount in taken.each.items():
                self._free[place][name] = self._free[place].get(name, 0.0) + sign * amount


def shape(each: Amounts) -> str:
    """`2 CPU and 1 GPU`."""
    return " and ".join(f"{amount:g} {name}" for name, amount in each.items() if amount)


def _room(left: Amounts, each: Amounts) -> int:
    """For how many workers there is room."""
    return max(0, min(int(left.get(name, 0.0) / amount + 1e-9) for name, amount in each.items() if amount))


def _share_left(left: Amounts, each: Amounts) -> float:
    """Return the room that is left beside a worker, as a sum of shares; below 0 where it does not fit."""
    return sum(
        (left[name] - amount) / left[name] if left.get(name, 0.0) > 0 else -1.0
        for name, amount in each.items()
        if amount
    )

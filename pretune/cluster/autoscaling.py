"""Autoscaling: how far a cluster may grow.

Open-source Ray tells no driver: what it has for it (`get_cluster_config`, ray-project/ray#49568) its own autoscaler
never fills in. So the file with which the autoscaler on the head was started is read, or the user says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretune.dispatch.resources import ClusterNode

MOST = 10_000  # nodes of one kind, however many a file allows
NAMES = ("CPU", "GPU")  # what stages ask for
FORM = "give a number of nodes and what each has, such as --may-grow 8xCPU=8,GPU=1"


@dataclass(frozen=True)
class Group:
    """Nodes that the autoscaler may start."""

    count: int  # at most, those that are there included
    resources: Mapping[str, float]  # CPU and GPU of each


@dataclass(frozen=True)
class Autoscaling:
    """Limits of a cluster's growth; with no groups it does not grow, as far as is known."""

    groups: tuple[Group, ...] = ()
    most: int = MOST  # of all groups together

    def coming(self, there: Sequence[ClusterNode]) -> list[ClusterNode]:
        """Nodes that may come beside those that are there. One that is there counts as of the group it is like."""
        found = [node for group in self.groups for node in self._missing(group, there)]
        like = sum(any(_is_like(node, group) for group in self.groups) for node in there)
        return found[: max(0, self.most - like)]

    def _missing(self, group: Group, there: Sequence[ClusterNode]) -> list[ClusterNode]:
        like = sum(_is_like(node, group) for node in there)
        return [ClusterNode(dict(group.resources))] * (min(group.count, MOST) - like)


def _is_like(node: ClusterNode, group: Group) -> bool:
    return all(node.resources.get(name, 0.0) == group.resources.get(name, 0.0) for name in NAMES)


def parse(text: str) -> Group:
    """`8xCPU=8,GPU=1`: at most eight nodes with 8 CPUs and a GPU each. Raises ValueError with a sentence."""
    whole = re.fullmatch(r"(\d+)x((?:CPU|GPU)=\d+)(?:,((?:CPU|GPU)=\d+))?", text.strip())
    if whole is None:
        raise ValueError(f"--may-grow {text}: {FORM}")
    amounts = dict(part.split("=") for part in whole.groups()[1:] if part)
    return Group(int(whole[1]), {name: float(amount) for name, amount in amounts.items()})


def of_config(config: Mapping[str, Any]) -> Autoscaling:
    """Read what an autoscaler's file allows, in the form in which `ray up` leaves it on the head: resources filled in.

    The head's own kind is left out: it is there. So are kinds of unknown resources (own nodes over ssh): they are
    known once they are there.
    """
    kinds = dict(config.get("available_node_types") or {})
    kinds.pop(config.get("head_node_type"), None)
    most = int(config.get("max_workers", 2))  # 2: Ray's default
    groups = (
        Group(int(kind.get("max_workers", most)), {name: float(kind["resources"].get(name, 0)) for name in NAMES})
        for kind in kinds.values()
        if any((kind.get("resources") or {}).get(name) for name in NAMES)
    )
    return Autoscaling(tuple(group for group in groups if group.count > 0), most)


def config_here(gcs_address: str, processes: Path = Path("/proc")) -> dict[str, Any] | None:
    """On the head: the file that the autoscaler of this cluster was started with, by its command line.

    None where there is no such file or it cannot be read: then the user has to say.
    """
    import yaml

    for arguments in _command_lines(processes):
        options = dict(word.split("=", 1) for word in arguments if word.startswith("--") and "=" in word)
        file = options.get("--autoscaling-config")
        if file and options.get("--gcs-address") == gcs_address:
            with suppress(OSError, ValueError, yaml.YAMLError):
                found = yaml.safe_load(Path(file).expanduser().read_text(encoding="utf-8"))
                return found if isinstance(found, dict) else None
    return None


def _command_lines(processes: Path) -> Iterator[list[str]]:
    """Yield the command line of every process of this computer that may be read."""
    for file in processes.glob("[0-9]*/cmdline"):
        try:
            yield file.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended, or is another's
            continue

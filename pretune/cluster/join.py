"""Joining a Ray cluster that is already there: what can be wrong with it is said before a study starts."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pretune.cluster.autoscaling import Autoscaling, Group, config_here, of_config
from pretune.cluster.import_path import code_folder
from pretune.dispatch.resources import ClusterNode, ClusterResources
from pretune.errors import ClusterError
from pretune.worker import ray_private

CONNECT_SECONDS = 5.0
LOOK_SECONDS = 180.0  # for a first process on every node
IS_HEAD = "node:__internal_head__"  # a resource that Ray gives to the head alone
OTHER_ADDRESSES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
HEAD = "give HOST:6379 of a running Ray head"
JOB = "PRETUNE_JOB"  # environment variable: the Ray job that runs this study, where `pretune submit` started it


def code_for_workers() -> dict[str, Any]:
    """The part of a runtime environment that brings our code along; within a job it is there already."""
    return {} if JOB in os.environ else {"py_modules": [str(code_folder())]}


# ------------------------------------------------------------------------------------------------- before joining


def check_address(address: str) -> None:
    """Raises `ClusterError` where `pretune run --address` cannot use the address, or nothing answers there."""
    if address.startswith("ray://"):
        raise ClusterError(
            f"--address {address}: Ray Client cannot run a study; give HOST:6379 on a node of the cluster, "
            "or send the study there with pretune submit --address http://HOST:8265"
        )
    if address.startswith(("http://", "https://")):
        raise ClusterError(f"--address {address} is a dashboard's: use pretune submit STUDY --address {address}")
    if address not in ("auto", "local"):
        check_port(address, HEAD)
        with explained(address), _stderr_closed():
            _check_speaks_http2(address)
            ray_private.check_head(address)


def _check_speaks_http2(address: str) -> None:
    """Raises `ClusterError` where what answers is no gRPC server. Ray would ask it again and again, for 47 s."""
    if not speaks_http2(address):
        raise ClusterError(f"--address {address}: something other than a Ray head answers there; {HEAD}")


def speaks_http2(address: str) -> bool:
    """Whether a gRPC server answers at HOST:PORT; with TLS, whether anything does. Raises OSError where nobody listens.

    Such a server's first words, whoever calls, are a SETTINGS frame (RFC 9113, 3.4), whose fourth byte is its type, 4.
    """
    host, _, port = address.rpartition(":")
    said = b""
    with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS) as connection:
        if os.environ.get("RAY_USE_TLS", "0") == "1":
            return True
        connection.settimeout(CONNECT_SECONDS)
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        with suppress(TimeoutError, ConnectionError):
            while len(said) < 4 and (more := connection.recv(9)):
                said += more
    return len(said) >= 4 and said[3] == 4


@contextmanager
def _stderr_closed() -> Iterator[None]:
    """Ray's C++ parts write warnings there, in words of their own."""
    sys.stderr.flush()
    before = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(nowhere)
        os.close(before)


@contextmanager
def no_other_address() -> Iterator[None]:
    """Have Ray ask the address that it is given: variables of the environment come first otherwise."""
    before = {name: os.environ.pop(name) for name in OTHER_ADDRESSES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def check_port(address: str, advice: str) -> None:
    """Raises `ClusterError` unless something listens at HOST:PORT or the URL `address`."""
    try:
        parts = urlsplit(address if "//" in address else f"//{address}")
        host, port = parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        host = port = None
    if not host or not port:
        raise ClusterError(f"--address {address} is not an address; {advice}")
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except OSError as error:
        why = error.strerror or str(error)
        raise ClusterError(f"--address {address}: nothing answers there ({why}); {advice}") from None


@contextmanager
def explained(address: str) -> Iterator[None]:
    """Turn what goes wrong inside, while joining a cluster or asking it, into one `ClusterError`."""
    from ray.exceptions import AuthenticationError, RayError

    try:
        yield
    except ClusterError:
        raise
    except AuthenticationError:
        raise ClusterError(
            f"--address {address}: the cluster refuses the token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            "~/.ray/auth_token to the cluster's own (`ray get-auth-token` on its head prints it)"
        ) from None
    except (ImportError, AttributeError) as error:
        raise ClusterError(f"--address {address}: {ray_private.another_ray(error)}") from None
    except (RayError, RuntimeError, ConnectionError, ValueError, OSError) as error:
        text = " ".join(str(error).split())
        if "waiting for GCS" in text or "Method not found" in text:
            raise ClusterError(f"--address {address}: something other than a Ray head answers there; {HEAD}") from None
        if "Version mismatch" in text:
            raise ClusterError(f"--address {address}: {text}; install the cluster's versions here") from None
        raise ClusterError(f"--address {address}: the cluster cannot be used: {text[:400]}") from None


# ----------------------------------------------------------------------------------------------- after joining it


def cluster_nodes(autoscaling: Autoscaling) -> list[ClusterNode]:
    """The nodes that are there, and then those that may yet come."""
    import ray

    there = [
        ClusterNode(node["Resources"], node["NodeID"], node["NodeManagerAddress"])
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]
    return [*there, *autoscaling.coming(there)]


def find_autoscaling(may_grow: Sequence[Group]) -> Autoscaling:
    """Return how far the cluster may grow: as the user says, else as its autoscaler's file on the head does.

    An autoscaling cluster starts small; asked for by what it holds now it would never grow.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if may_grow:
        return Autoscaling(tuple(may_grow))
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    head = next((node for node in alive if IS_HEAD in node["Resources"]), None)
    if head is None:
        return Autoscaling()
    there = NodeAffinitySchedulingStrategy(head["NodeID"], soft=False)
    ask = ray.remote(num_cpus=0, max_retries=0)(_autoscaler_file).options(scheduling_strategy=there)
    config = _answer(head["NodeManagerAddress"], ask.remote())
    return of_config(config) if config else Autoscaling()


def _autoscaler_file() -> dict[str, Any] | None:
    """On the head, which names the cluster as its autoscaler does; a driver may know it by another name."""
    import ray

    return config_here(ray.get_runtime_context().gcs_address)


def describe(resources: ClusterResources) -> str:
    """Say how many nodes there are and may come, and on what stages run that leave it open."""
    there = sum(bool(node.id) for node in resources.nodes)
    coming = len(resources.nodes) - there
    may = f", {coming} more may come" if coming else ""
    device = "a GPU each" if resources.on_gpus else "the CPU (no node has a GPU)"
    return f"{there} node{'s' * (there != 1)}{may}; stages without an explicit `gpus` run on {device}"


@contextmanager
def marked(folder: Path) -> Iterator[Path]:
    """A file in a folder that all nodes share, by which each can tell that it sees this folder and not its own."""
    mark = folder.resolve() / f".seen-{uuid.uuid4().hex}"
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)


def look_around(shared: Mapping[str, Path], readable: Mapping[str, Path]) -> list[str]:
    """Ask every node whether it can do its part; answers notes on what differs between them harmlessly.

    Args:
        shared: folders that must be one and the same everywhere, by the option that names them.
        readable: folders that must be there.

    Raises:
        ClusterError: a node cannot start our code, or does not see a folder.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(look_here)
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    with ExitStack() as stack:
        marks = {option: stack.enter_context(marked(folder)) for option, folder in shared.items()}
        inside = {option: witness(folder) for option, folder in readable.items()}
        asked = {option: str(path) for option, path in {**marks, **inside}.items()}
        answers = [
            (
                node["NodeManagerAddress"],  # several nodes may have one, as those of Ray's own tests do
                look.options(
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
                ).remote(asked),
            )
            for node in nodes
        ]
        found_on = [(host, _answer(host, answer, may_leave=True)) for host, answer in answers]
    seen = [(host, found) for host, found in found_on if found is not None]
    for host, found in seen:
        for option in found["missing"]:
            folder = {**shared, **readable}[option]
            raise ClusterError(f"{host} does not see {folder} ({option}): use a path that is mounted on every node")
    differing = [
        f"{host} has {name} {found[name]}, this machine {mine}: results may differ in their last digits"
        for name, mine in versions().items()
        for host, found in seen
        if found[name] != mine
    ]
    left = [f"{host} is draining and was not checked" for host, found in found_on if found is None]
    return list(dict.fromkeys([*left, *differing]))


def witness(folder: Path) -> Path:
    """Something in the folder, by which a node shows that it sees more than an empty place to mount it at."""
    with suppress(OSError):
        return min(folder.iterdir(), default=folder)
    return folder


def _answer(host: str, answer: Any, may_leave: bool = False) -> dict[str, Any] | None:
    """Return what a node says; None, where that may be, of one that left the cluster or is about to.

    Raises ClusterError."""
    import ray
    from ray.exceptions import NodeDiedError, TaskUnschedulableError

    try:
        found: dict[str, Any] = ray.get(answer, timeout=LOOK_SECONDS)
    except Exception as error:
        if may_leave and isinstance(error, TaskUnschedulableError | NodeDiedError):
            return None
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ClusterError(f"{host} cannot run Pretune: {(lines or [type(error).__name__])[-1][:400]}") from None
    return found


def look_here(paths: Mapping[str, str]) -> dict[str, Any]:
    """On a node of the cluster: its versions, and which of the paths are missing."""
    return versions() | {"missing": [option for option, path in paths.items() if not Path(path).exists()]}


def versions() -> dict[str, Any]:
    """Return the versions that change digits, without what names a build (2.15.0+cu130)."""
    return {"torch": importlib.metadata.version("torch").split("+")[0], "python": platform.python_version()}

"""Everything that Pretune uses of Ray and that Ray does not publish. No other module of Pretune may.

A new Ray may move any of it. Where it has, two functions refuse to go on, since they keep a cluster closed and keys
secret; all others say in one sentence what is lost, and go on. `tests/pretune/worker/test_ray_private.py` names each.
The module stands in this room because it is the lowest that uses Ray.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from typing import Any

from pretune.errors import ClusterError

TRIED_RAY = ("2.52", "2.60")  # the lowest and the newest version that Pretune was tried with: docs/cluster.md


class MissingInRayError(ClusterError):
    """Ray lacks a private name: which, what happens without it, and the version that has it."""


def another_ray(error: Exception, without: str = "") -> str:
    """Return the sentence for a private name of Ray's that is missing."""
    import ray

    return (
        f"Ray {ray.__version__} lacks what Pretune uses of it ({error}){without and ': ' + without}; "
        f"it was tried with {TRIED_RAY[0]} to {TRIED_RAY[1]}: "
        f"pip install 'ray[default,data,train,tune]~={TRIED_RAY[1]}.0'"
    )


@contextmanager
def _looked_up(without: str) -> Iterator[None]:
    """Raise MissingInRayError where a name that is looked up inside is missing."""
    try:
        yield
    except (ImportError, AttributeError) as error:
        raise MissingInRayError(another_ray(error, without)) from error


def _warn(error: MissingInRayError) -> None:
    logging.getLogger("pretune").warning("%s", error)


# ------------------------------------------------------------------------------------------- a cluster of our own


@contextmanager
def loopback_only() -> Iterator[None]:
    """Let a cluster that is started inside listen on 127.0.0.1 alone, where Ray binds every address of the machine.

    Ray takes 127.0.0.1 as an argument for a mistake. Its switch for laptops with firewalls does what is wanted, and is
    read at import (RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0). Without it no cluster is started.
    """
    with _looked_up("a cluster on this machine would listen on all addresses, so none is started"):
        from ray._private import ray_constants

        before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False  # type: ignore[assignment,unused-ignore]
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def read_authentication_again() -> None:
    """Have Ray use RAY_AUTH_MODE as it is now, since it read that when it was imported. Without it none is started."""
    with _looked_up("a cluster on this machine would answer anybody, so none is started"):
        from ray._raylet import Config  # type: ignore[attr-defined]

        initialize = Config.initialize
    initialize("")


# --------------------------------------------------------------------------------------------- others' clusters


def check_head(address: str) -> None:
    """Raise what Ray raises for a wrong token or another version, for which `ray.init` first tries again for minutes.

    Without it, it is `ray.init` that says what is wrong, minutes later.
    """
    try:
        with _looked_up("the cluster is not checked first; joining it may take minutes to fail"):
            from ray._common.usage.usage_lib import get_cluster_metadata
            from ray._private.utils import check_version_info
            from ray._raylet import GcsClient  # type: ignore[attr-defined]
    except MissingInRayError as error:
        _warn(error)
        return
    if metadata := get_cluster_metadata(GcsClient(address=address)):
        check_version_info(metadata, "here")


def job_client(address: str, timeout: tuple[float, float]) -> Any:
    """Return a JobSubmissionClient whose requests end: Ray's own wait for ever on a connection that died.

    Args:
        timeout: seconds to connect, and between two bytes.

    Without it requests have no limit.
    """
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **given: Any) -> Any:
            return super()._do_request(method, endpoint, timeout=timeout, **given)

    try:
        with _looked_up("requests to the dashboard have no time limit"):
            _ = JobSubmissionClient._do_request
    except MissingInRayError as error:
        _warn(error)
        return JobSubmissionClient(address)
    return Client(address)


# ---------------------------------------------------------------------------------------------------------- Tune


def keep_from_actors(names: AbstractSet[str]) -> None:
    """Keep environment variables out of actors' runtime environments, which Ray logs and shows on its dashboard.

    Without it a study is refused while any of them is set.
    """
    with _looked_up(f"{', '.join(sorted(names))} would be shown on Ray's dashboard, so no stage is started"):
        from ray.tune.execution import class_cache

        sent = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = sent - names


@contextmanager
def idle_actors_released(needed: Callable[[], bool]) -> Iterator[None]:
    """Have Tune end its cached idle actor, and free its CPUs, while `needed`; Tune has no setting for it.

    Without it workers of a group that come back after a loss may wait until another stage ends.
    """
    try:
        with _looked_up("restarted workers of a stage may wait until another stage ends"):
            from ray.tune.execution.tune_controller import TuneController

            usual = TuneController._cleanup_cached_actors
    except MissingInRayError as error:
        _warn(error)
        yield
        return

    def clean(controller: Any, force_all: bool = False) -> None:
        usual(controller, force_all or needed())

    TuneController._cleanup_cached_actors = clean  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        TuneController._cleanup_cached_actors = usual  # type: ignore[method-assign]


# ---------------------------------------------------------------------------------------------------- preemption


def is_draining() -> bool:
    """Whether Ray was told that this node goes away. Without it a drained node's stages lose what they did unsaved."""
    import ray

    with _looked_up("drain notices are not seen; stages of a drained node go on from their last saved state"):
        draining = ray._private.state.state.get_draining_nodes
    return ray.get_runtime_context().get_node_id() in draining()


def is_stopping() -> bool:
    """Whether the driver asked the stages of its job to save and end. Without it they cannot be asked."""
    with _looked_up("Ctrl-C and `pretune stop` end stages at once; they go on from their last saved state"):
        from ray.experimental.internal_kv import _internal_kv_get
    return _internal_kv_get(_stop_key()) is not None


def ask_to_stop() -> None:
    """Ask all stages of the driver's job, on all nodes, to save and end. Without it they are ended at once."""
    with _looked_up("stages cannot be asked to save"):
        from ray.experimental.internal_kv import _internal_kv_put
    _internal_kv_put(_stop_key(), b"1")


def _stop_key() -> bytes:
    import ray

    return f"pretune-stopping-{ray.get_runtime_context().get_job_id()}".encode()


def worker_exception(error: Exception) -> Exception:
    """The exception of the first worker that failed, where a group of Ray Train did; else the error itself.

    Ray wraps it and keeps it privately. Without this the kind of a failure (data, memory) is lost, and it is retried.
    """
    for failure in getattr(error, "worker_failures", {}).values():
        inner = getattr(failure, "_base_exc", failure)
        return inner if isinstance(inner, Exception) else error
    return error

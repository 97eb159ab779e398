"""Everything that Pretune uses of Ray and that Ray does not publish. No other module of Pretune may.

A new Ray may move any of it. Where it has, two functions refuse to go on, since they keep a cluster closed and keys
secret; all others say in one sentence what is lost, and go on. `tests/pretune/worker/test_ray_private.py` names each.
The module stands in this room because it is the lowest that uses Ray.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager

from pretune.errors import ClusterError

TRIED_RAY = ("2.52", "2.60")  # the lowest and the newest version that Pretune was tried with: docs/cluster.md


class MissingInRayError(ClusterError):
    """Ray lacks a private name: which, what happens without it, and the version that has it."""


def another_ray(error: Exception, without: str = "") -> str:
    """Return the sentence for a private name of Ray's that is missing."""
    import ray

    return f"Ray {ray.__version__} lacks what Pretune uses of it ({error}){without and ': ' + without}; {tried()}"


def tried() -> str:
    """Return which versions of Ray are known to work, and how to get one."""
    return (
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
def settings_read_again() -> Iterator[None]:
    """Have a Ray that was imported before ours take the settings with which we would have imported it.

    Let a cluster that is started inside listen on 127.0.0.1 alone (RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0), and use
    RAY_AUTH_MODE as it is now. `pretune run` sets both before it imports Ray. Without them no cluster is started.
    """
    with _looked_up("a cluster on this machine would be open to others, so none is started; `pretune run` starts one"):
        from ray._private import ray_constants
        from ray._raylet import Config  # type: ignore[attr-defined]

        before, initialize = ray_constants.ENABLE_RAY_CLUSTER, Config.initialize
    initialize("")
    ray_constants.ENABLE_RAY_CLUSTER = False  # type: ignore[assignment,unused-ignore]
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


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


# ---------------------------------------------------------------------------------------------------------- Tune


def keep_from_actors(names: AbstractSet[str]) -> None:
    """Keep environment variables out of actors' runtime environments, which Ray logs and shows on its dashboard.

    Without it a study is refused while any of them is set.
    """
    with _looked_up(f"{', '.join(sorted(names))} would be shown on Ray's dashboard, so no stage is started"):
        from ray.tune.execution import class_cache

        sent = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = sent - names


# ---------------------------------------------------------------------------------------------------- preemption


def is_draining() -> bool:
    """Whether Ray was told that this node goes away. Without it a drained node's stages lose what they did unsaved."""
    import ray

    with _looked_up("drain notices are not seen; stages of a drained node go on from their last saved state"):
        draining = ray._private.state.state.get_draining_nodes
    return ray.get_runtime_context().get_node_id() in draining()


def cause_of_death(error: Exception) -> Exception:
    """Return what a worker died of, where its error is that Ray Train holds it for dead; else the error itself.

    Without this a sentence on a lost worker says that it failed a health check, and not what it died of.
    """
    cause: Exception = getattr(error, "health_check_failure", error)
    return cause


def worker_exception(error: Exception) -> Exception:
    """The exception of the first worker that failed, where a group of Ray Train did; else the error itself.

    Ray wraps it and keeps it privately. Without this the kind of a failure (data, memory) is lost, and it is retried.
    """
    for failure in getattr(error, "worker_failures", {}).values():
        if type(failure).__name__ != "UserExceptionWithTraceback":  # the worker died
            return failure if isinstance(failure, Exception) else error
        try:
            with _looked_up("the kind of a worker's failure is not known, so the stage is tried again"):
                inner = failure._base_exc
        except MissingInRayError as missing:
            _warn(missing)
            return error
        return inner if isinstance(inner, Exception) else error
    return error

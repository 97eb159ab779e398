"""Ray Tune for one study: it places stage runs on resources and shows them. All state is the scheduler's.

The Searcher dispatches ready stages as trials; the trial function runs one stage and returns how it ended instead of
raising. Tune's own retries, checkpoints, loggers, limiter and restore stay unused (docs/decisions/ray-tune.md).
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from pretune.cluster import import_path, join, reaper
from pretune.cluster.capacity import usable_cpus
from pretune.cluster.heartbeat import ended_with_ray
from pretune.cluster.held_places import HeldPlaces
from pretune.cluster.log_to import LogTo
from pretune.dispatch.dispatcher import TRANSPORT, Dispatcher, RunningTrial
from pretune.dispatch.resources import ClusterNode, ClusterResources
from pretune.dispatch.scheduler import Scheduler
from pretune.errors import ClusterError
from pretune.search_spaces.stages import Stage
from pretune.worker import ray_private
from pretune.worker.task import StageTask

# TUNE_MAX_PENDING_TRIALS_PG: by default one trial of a search algorithm at a time waits for its place, so actors start
# one by one and an autoscaler, seeing one demand, adds one node per boot. Our own count of resources is the limit.
QUIET = {
    "TUNE_MAX_PENDING_TRIALS_PG": "100000",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "1000000",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours lets stages write their state (preemption.py)
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# Ray binds every address of the machine, and takes 127.0.0.1 as an argument for a mistake. Its switch for laptops with
# firewalls does what is wanted.
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
NODE_ID = "ray.io/node-id"  # a label that Ray gives every node
# THP_MEM_ALLOC_ENABLE: torch backs large CPU tensors with huge pages. Each step allocates its activations anew, and
# touching them in pages of 4 KiB took up to half of it (docs/decisions/cpu-speed.md). Digits are the same.
# RAY_TRAIN_*: by default it looks after its workers every 2 s and keeps metrics and logs: 25 s to a first step.
ACTOR_ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "THP_MEM_ALLOC_ENABLE": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
}
# With a dashboard somebody reads them: metrics of worker groups, and runs with their workers, which an actor of Ray
# Train's collects for the dashboard's /api/train/v2/runs/v1.
SHOWN_ENVIRONMENT = ACTOR_ENVIRONMENT | {
    "RAY_TRAIN_METRICS_ENABLED": "1",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "1",
}


@contextmanager
def closed_to_others(own_token: bool) -> Iterator[None]:
    """A cluster started meanwhile listens on 127.0.0.1 alone, and answers only who has its token.

    With `own_token` that is a new one in the environment of this process and its children, in no file; without, Ray's
    own in ~/.ray, which a person at the dashboard needs. One that the user has set is kept.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if own_token and not os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    if not own_token:
        keep_token_private()
    with _in_force(LOOPBACK_ONLY):
        yield


@contextmanager
def _in_force(settings: Mapping[str, str]) -> Iterator[None]:
    """Have Ray imported with these settings, and what is started meanwhile: parts of its dashboard join the cluster.

    Ray reads them as it is imported and only then. Where something imported it before (a notebook, a test) it is made
    to read them again, by private names.
    """
    imported = "ray" in sys.modules
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        import ray  # noqa: F401

        with ray_private.settings_read_again() if imported else nullcontext():
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def keep_token_private(path: Path | None = None) -> None:
    """Have the file of Ray's token there, readable by its owner alone; Ray would make it readable by everybody.

    Args:
        path: default: ~/.ray/auth_token, where Ray looks.
    """
    path = path or Path.home() / ".ray" / "auth_token"
    if os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError), open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    with suppress(PermissionError):  # somebody else's, as on a node that many share
        path.chmod(0o600)


def start_ray(
    address: str | None,
    cpus: int | None,
    dashboard: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Connect to a cluster, or start one in this process alone.

    With `dashboard` one started here has Ray's dashboard, on the loopback interface alone; `say` is told its address.
    Without an address a bare `ray.init()` would attach to any stale cluster of this machine, hence `local`.
    """
    _set_environment(QUIET)
    starting = join.explained(address) if address else _started(own_token=not dashboard)
    with starting, import_path.beside_our_code(), _our_signals():
        import ray

        given = _there(address, dashboard) if address else _here(cpus, dashboard)
        given |= {"dashboard_host": "127.0.0.1", "log_to_driver": False, "logging_level": logging.ERROR}
        context = ray.init(**given, configure_logging=True) if address else _init_here(given, say)
        if not address:
            reaper.begin()
            _check_loopback(ray.get_runtime_context().gcs_address)
        if dashboard:
            say(f"dashboard: http://{context.dashboard_url} (it asks for the token that `ray get-auth-token` prints)")


def _init_here(given: Mapping[str, Any], say: Callable[[str], None]) -> Any:
    """Start a Ray of this process alone, a second time where the first fails.

    Ray ends its node process where its agents do not start within 15 s (ray-project/ray#65983), and has no setting for
    that. A busy computer needs longer. At the second start their files are in memory.
    """
    others = set(reaper.below(os.getpid()))
    try:
        return _init_once(given, others)
    except OSError:  # a full disk stays full
        raise
    except Exception:  # Ray raises errors of many kinds; what is no matter of time is raised again by the second start
        say(
            "Ray did not start in the time that it allows, mostly since the computer is busy; starting it once more ..."
        )
    return _init_once(given, others)


def _init_once(given: Mapping[str, Any], others: Collection[int]) -> Any:
    """Start Ray; where that fails, no process of it stays. `others` are processes below this one that are not Ray's."""
    import ray

    try:
        with ended_with_ray():
            return ray.init(**given)
    except BaseException:
        ray.shutdown()
        reaper.end_below(keep=others)
        raise


def _check_loopback(head: str) -> None:
    """Raises ClusterError, and ends the cluster, unless the head that was started here is on the loopback interface."""
    if not head.startswith(("127.0.0.1:", "localhost:", "[::1]:")):
        stop_ray()
        raise ClusterError(
            f"Ray listens on {head}, where others could reach it: it takes no notice of {', '.join(LOOPBACK_ONLY)}; "
            f"{ray_private.tried()}"
        )


@contextmanager
def _our_signals() -> Iterator[None]:
    """Keep this process's handler of SIGTERM: Ray replaces it by one that exits without a word."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _signals_again() -> None:
    """Set this process's handlers anew: Ray's shutdown leaves SIGTERM at the system's default, unknown to Python.

    Without this, `kill` or `pretune stop` while tables are written would end the study without a word.
    """
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if (handler := signal.getsignal(number)) is not None:
                signal.signal(number, handler)


@contextmanager
def _started(own_token: bool) -> Iterator[None]:
    """Turn what keeps Ray from starting here into one sentence; Ray raises bare Exceptions for it."""
    try:
        with closed_to_others(own_token):
            yield
    except ClusterError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise ClusterError(
            f"Ray did not start on this machine: {text} (run the command again with less other work running; Ray also "
            "needs some free memory and disk)"
        ) from error


def _there(address: str, dashboard: bool) -> dict[str, Any]:
    given = SHOWN_ENVIRONMENT if dashboard else ACTOR_ENVIRONMENT
    return {"address": address, "runtime_env": {"env_vars": given} | join.code_for_workers()}


def _here(cpus: int | None, dashboard: bool) -> dict[str, Any]:
    """Workers inherit the environment of this process. Under a `runtime_env` the workers that Ray starts with itself
    would go unused, and new ones would have to start."""
    _set_environment(SHOWN_ENVIRONMENT if dashboard else ACTOR_ENVIRONMENT)
    for name in join.OTHER_ADDRESSES:  # of another cluster, which Ray Train in its workers would ask
        os.environ.pop(name, None)
    return {"address": "local", "num_cpus": cpus or usable_cpus(), "include_dashboard": dashboard}


def _set_environment(values: Mapping[str, str]) -> None:
    """Set variables of this process and all that it starts; those that are set already stay."""
    os.environ.update({name: os.environ.get(name, value) for name, value in values.items()})


def stop_ray() -> None:
    """Leave the cluster; one of this process alone ends, so that another study can be run from it."""
    import ray

    ray.shutdown()
    _signals_again()
    reaper.end()
    import_path.forget()


def keep_keys_to_ourselves() -> None:
    """Keep the driver's AWS_* keys out of Tune's actors. Processes have them from their node's environment, files or
    role (docs/storage.md)."""
    if keys := {name for name in os.environ if name.startswith("AWS_")}:
        ray_private.keep_from_actors(keys)


def place_of(config: Mapping[str, Any]) -> Any:
    """Return what Tune asks Ray for, for one trial: its resources, on a node that it is not kept off."""
    from ray.tune import PlacementGroupFactory

    transport = config[TRANSPORT]
    bundle = {name: amount for name, amount in transport["resources"].items() if amount}
    off = transport["excluded"]
    selector = {"bundle_label_selector": [{NODE_ID: f"!in({','.join(off)})"}]} if off else {}
    return PlacementGroupFactory([bundle], **selector)  # type: ignore[arg-type]  # of placement_group()


def run_trials(
    scheduler: Scheduler,
    resources: ClusterResources,
    task_for: Callable[[Stage, float], StageTask],
    live: dict[str, RunningTrial],
    images: dict[str, int] | None = None,
    named: bool = False,
    groups: bool = False,
    log_to: Sequence[LogTo] = (),
    nodes: Callable[[], Sequence[ClusterNode]] | None = None,
    say: Callable[[str], None] = lambda text: None,
    announce: Callable[[str], None] = lambda text: None,
) -> None:
    """Run stages as Tune trials until the scheduler is finished or the user stops.

    Args:
        task_for: makes the task of a stage, given its GPUs.
        live: filled with what is under way, by trial, for whoever draws it.
        images: counts the training images seen, by title of the stage.
        named: every stage run has an actor of its own, shown on the dashboard by stage, cell and seed: about 4 s each.
        groups: some stages run on several workers. Tune would keep an idle actor for its next trial, and the CPUs that
            a lost worker needs to come back with it: every stage run has an actor of its own then, too.
        log_to: Ray's loggers that also get what stages report.
        nodes: what the cluster has now, asked every few seconds; default: as at the start.
        say: told what whoever watches should know: nodes excluded, stages that nothing is heard of.
        announce: told what they should know only while the study runs.
    """
    from ray import tune

    from pretune.cluster.loggers import callbacks
    from pretune.cluster.tune_callbacks import NamedStage, StageSearcher, StageTrial, Watchdog
    from pretune.worker.preemption import stopped_by_signals, warnings_of_ray

    keep_keys_to_ourselves()
    logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)  # lists trials that did not end; our log says why
    for sentence in warnings_of_ray():
        say(sentence)
    counts = {} if images is None else images
    dispatcher = Dispatcher(scheduler, resources, task_for, live, counts, nodes=nodes, say=say, announce=announce)
    places = HeldPlaces(announce)
    with tempfile.TemporaryDirectory(prefix="pretune-tune-", ignore_cleanup_errors=True) as scratch:
        tuner = tune.Tuner(
            tune.with_resources(NamedStage if named else StageTrial, place_of),
            tune_config=tune.TuneConfig(
                search_alg=StageSearcher(dispatcher),
                num_samples=-1,
                reuse_actors=not (named or groups),
                trial_dirname_creator=lambda trial: str(trial.trial_id),
                trial_name_creator=lambda trial: str(trial.config["label"]),
            ),
            run_config=tune.RunConfig(
                name="study",
                storage_path=scratch,
                verbose=0,
                callbacks=[Watchdog(dispatcher, places.lost), *callbacks(log_to, scheduler)],
                failure_config=tune.FailureConfig(max_failures=0),  # retries are the scheduler's
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # states are the store's
            ),
        )
        try:
            with stopped_by_signals(dispatcher.stop):
                tuner.fit()
        finally:
            places.stop()
    if dispatcher.fault is not None:
        raise dispatcher.fault

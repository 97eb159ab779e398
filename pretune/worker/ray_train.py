"""One stage on several workers: Ray Train places them, and each runs the loop that a single process would.

Ray Train restarts the workers when one is lost; they go on from the state that the stage last wrote, on as many as
the study allows. It restarts them whatever they failed of, so a failure that would repeat is noted in the attempt's
folder, and restarted workers end at once. Its own checkpoints stay unused, since the store holds all state. Where one
of them is preempted (its node is drained, the study is stopped) all write and stop after the same step
(loop.CheckpointTimer).
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pretune.outcomes import Failure
from pretune.store.store import write_atomically
from pretune.trainables.constants import RESUMED
from pretune.trainables.data.errors import RequirementsError
from pretune.worker.failures import StageFailedError, describe, failed, is_out_of_memory
from pretune.worker.ray_private import cause_of_death, worker_exception
from pretune.worker.stage import device_for, hardware, run_worker, state_to_resume
from pretune.worker.stage_memory import what_fits_here
from pretune.worker.task import NEWS, StageTask

RESTARTS = 3  # of the workers within one attempt; a preempted node's are not counted
REPORT_SECONDS = 1.0  # least time between two progress reports
FINAL = "failed.json"  # in the attempt's folder: a failure that no restart would change
ON_HOST = "images-on-host"  # in the attempt's folder, until its workers have ended: GPU memory was too small for images
ANSWER = "answer.json"  # in the attempt's folder, until its workers have ended: how they did
STORAGE = "train"  # a folder of Ray Train's inside the attempt's, which all nodes see


def run_worker_group(
    task: StageTask, attempt: Path, report: Callable[[dict[str, Any]], None]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Run a stage on several workers; its metrics, and for the record who ended it: how many, on what hardware.

    To be called within a Ray cluster.

    Args:
        report: called with what the first worker reports, and with sentences (NEWS) on workers that were lost.

    Raises:
        DivergedError, PreemptedError: as the loops do.
        RequirementsError: the data set does not have what the stage asks for.
        StageFailedError: a worker failed in a way that no restart would change; none was tried.
        TrainingFailedError: workers were lost or failed more often than they are restarted.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from pretune.trainables.loop import DivergedError, PreemptedError

    resources = task.stage.resources
    counts = resources.worker_counts
    if len(counts) > 1 and not hasattr(ScalingConfig, "max_workers"):  # a Ray before 2.55
        report({NEWS: f"this version of Ray starts all {counts[-1]} workers or none: min_workers has no effect"})
        counts = counts[-1:]
    with forwarded(report) as callback:
        trainer = TorchTrainer(
            work,
            train_loop_config={"task": task.to_json(), "attempt": str(attempt)},
            torch_config=TorchConfig(backend="nccl" if task.gpus >= 1 else "gloo"),  # NCCL refuses to share a GPU
            scaling_config=ScalingConfig(
                num_workers=(counts[0], counts[-1]) if len(counts) > 1 else counts[0],  # type: ignore[arg-type]
                use_gpu=task.gpus > 0,
                resources_per_worker=place_of_worker(task),
            ),
            run_config=RunConfig(
                name=run_name(task.label),
                storage_path=str(attempt / STORAGE),
                failure_config=FailureConfig(max_failures=RESTARTS),
                callbacks=[callback],
            ),
        )
        trainer.fit()  # what `train_loop` returns is known to newer versions of Ray alone
    answer = json.loads((attempt / ANSWER).read_text(encoding="utf-8"))
    (attempt / ANSWER).unlink()
    (attempt / ON_HOST).unlink(missing_ok=True)
    shutil.rmtree(attempt / STORAGE, ignore_errors=True)
    if "refused" in answer:
        raise RequirementsError(*answer["refused"])
    if "failed" in answer:
        (attempt / FINAL).unlink(missing_ok=True)
        cause, failure = answer["failed"]
        raise StageFailedError(cause, Failure(failure))
    if "left" in answer:
        raise PreemptedError(answer["left"])
    if "diverged" in answer:
        *about, text = answer["diverged"]
        error = DivergedError(*about)
        error.args = (text,)
        raise error
    return answer["metrics"], answer["about"]


def place_of_worker(task: StageTask) -> dict[str, float]:
    """Resources of each worker; the mark in them tells whose its place is."""
    asked = {"CPU": float(task.stage.resources.cpus), "GPU": task.gpus, "memory": float(task.mark)}
    return {name: amount for name, amount in asked.items() if amount}


def run_name(label: str) -> str:
    """Return a stage's label as a name of a folder, by which Ray Train shows its run in metrics and elsewhere."""
    return re.sub(r"[^\w.=-]+", "-", label)[:100].strip("-.") or STORAGE


@contextmanager
def forwarded(report: Callable[[dict[str, Any]], None]) -> Iterator[Any]:
    """A callback of Ray Train, whose controller is another process: what it hears is reported here meanwhile."""
    from ray.exceptions import RayError
    from ray.train import UserCallback
    from ray.util.queue import Queue

    heard = Queue(actor_options={"num_cpus": 0})

    def tell(values: dict[str, Any] | None) -> None:
        """Progress is not worth the training: where nobody listens any more, that is logged."""
        try:
            heard.put(values)
        except RayError as error:
            logging.getLogger("pretune").warning("what workers report is not shown: %s", error)

    class Forwarding(UserCallback):
        said = ""  # while workers are preempted, Ray Train calls again at each of its looks

        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            self.said = ""
            tell(dict(metrics[0]))

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            if (news := news_of(worker_exceptions)) != self.said:
                self.said = news
                tell({NEWS: news})

    def pass_on() -> None:
        try:
            while (values := heard.get()) is not None:
                report(values)
        except RayError as error:
            logging.getLogger("pretune").warning("what workers report is not shown: %s", error)

    listener = threading.Thread(target=pass_on, name="pretune-reports", daemon=True)
    listener.start()
    try:
        yield Forwarding()
    finally:
        tell(None)
        listener.join()
        heard.shutdown(force=True)


def news_of(failures: Mapping[int, Exception]) -> str:
    """One sentence on workers of a group that failed, by rank."""
    ranks = ", ".join(map(str, sorted(failures)))
    one = len(failures) == 1
    first = worker_exception(failures[min(failures)])
    cause = describe(cause_of_death(first)).split(" | ")[0][:300]
    return (
        f"worker{'s' * (not one)} {ranks} {'was' if one else 'were'} lost ({cause}); "
        f"Ray Train starts all workers again from the last saved state, {RESTARTS} times at most"
    )


def work(config: dict[str, Any]) -> None:
    """Run the stage as one worker of the process group that Ray Train made; the first writes how it ended."""
    import torch.distributed as dist

    answer = run_as_worker(config)
    if dist.get_rank() == 0:
        write_atomically(Path(config["attempt"]) / ANSWER, json.dumps(answer))


def run_as_worker(config: dict[str, Any]) -> dict[str, Any]:
    """The answer of the stage: metrics, or why there are none."""
    import ray.train
    import torch
    import torch.distributed as dist
    from ray.train.torch import get_device

    from pretune.trainables.distributed import World
    from pretune.trainables.loop import DivergedError, PreemptedError
    from pretune.worker.preemption import at_work

    task, attempt = StageTask.from_json(config["task"]), Path(config["attempt"])
    world = World(dist.get_rank(), dist.get_world_size())
    device = get_device() if device_for(task.gpus).type == "cuda" else torch.device("cpu")
    last = time.monotonic()

    def report(values: dict[str, float]) -> None:
        """All workers report together or not at all: when, is for the first to say."""
        nonlocal last
        due = world.first and (RESUMED in values or time.monotonic() - last >= REPORT_SECONDS)
        if world.sum(torch.tensor(float(due), device=device)):
            last = time.monotonic()
            ray.train.report(values)

    resume = _where_to_resume(task, world)
    ended, resident = _of_earlier_starts(attempt, world)
    if ended:
        return {"failed": ended}
    try:
        with at_work() as preempted:  # a drain of this worker's node, or a stop of the study
            metrics = run_worker(task, attempt, report, device, resume, world, preempted, resident)
    except RequirementsError as error:  # on all workers alike, as the next
        return {"refused": error.args}
    except DivergedError as error:
        return {"diverged": (error.metric, error.step, error.value, str(error))}
    except PreemptedError as left:  # likewise: they have told each other
        return {"left": str(left)}
    except Exception as error:  # perhaps on this worker alone: it raises, or the others would wait for it
        if resident and device.type == "cuda" and is_out_of_memory(error):
            (attempt / ON_HOST).touch()  # Ray Train's next start leaves the images there
        else:
            note_if_final(error, task, attempt, world.size)
        raise
    machine = hardware(task) | {"images_kept_on_host": not resident}
    about = {"machine": machine, "workers": world.size, "resumed": resume is not None}
    return {"metrics": metrics, "about": about}


def note_if_final(error: Exception, task: StageTask, attempt: Path, workers: int = 1) -> None:
    """Note a failure that no restart would change: Ray Train restarts workers whatever they failed of."""
    batch_size = getattr(task.stage.settings, "batch_size", None)
    root = task.folders.open_store().root
    outcome = failed(error, batch_size, root, lambda: what_fits_here(task.stage, task.gpus, workers))
    if outcome.policy is not None and not outcome.policy.retried:
        write_atomically(attempt / FINAL, json.dumps([outcome.cause, outcome.failure]))


def _of_earlier_starts(attempt: Path, world: Any) -> tuple[list[str], bool]:
    """Cause and kind of a failure that an earlier start of these workers noted, [] for none; and whether images may
    lie on the GPUs. Equal on all workers."""
    import torch.distributed as dist

    found = [(final_failure(attempt), not (attempt / ON_HOST).exists()) if world.first else ([], True)]
    dist.broadcast_object_list(found)
    return found[0]


def final_failure(attempt: Path) -> list[str]:
    """Return the text of `note_if_final`, [] for nothing."""
    path = attempt / FINAL
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []


def _where_to_resume(task: StageTask, world: Any) -> Path | None:
    """The state that the first worker finds, so that all start from one. Raises FileNotFoundError where one cannot."""
    import torch.distributed as dist

    found = [state_to_resume(task) if world.first else None]
    dist.broadcast_object_list(found)
    if found[0] is not None and not found[0].exists():
        raise FileNotFoundError(f"{found[0]} is not on this machine; the store must be on a disk that all nodes share")
    return found[0]

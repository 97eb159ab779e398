"""Joining clusters and submitting to them: every fault is one sentence, before anything has started. Without Ray."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus

from pretune.cluster import jobs, join
from pretune.dispatch.resources import ClusterNode, ClusterResources, ResourceError
from pretune.errors import ClusterError
from pretune.run import Options, check_room, folders_of_all, only_driver
from pretune.search_spaces.resolve import from_dict
from pretune.store.object_store import ObjectError
from pretune.worker import ray_private
from tests.pretune.cli.test_study import pretune as pretune  # the fixture
from tests.pretune.dispatch.test_resources import stage


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as bound:  # bound, not listening: nobody else gets it, and nobody answers
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("ray://head:10001", r"Ray Client cannot run a study; give HOST:6379 .* or .* pretune submit"),
        ("http://head:8265", r"is a dashboard's: use pretune submit STUDY --address http://head:8265"),
        ("head", r"--address head is not an address; give HOST:6379"),
        ("head:six", r"--address head:six is not an address; give HOST:6379"),
        ("name.invalid:6379", r"nothing answers there \(.*\); give HOST:6379"),
    ],
)
def test_an_address_that_cannot_be_used_is_told(address: str, sentence: str) -> None:
    with pytest.raises(ClusterError, match=sentence):
        join.check_address(address)


def serve(answer: bytes) -> int:
    """The port of a service that says the same to all its callers, and then listens."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer_all() -> None:
        for _ in range(2):  # one looks whether anybody is there, one asks
            with server.accept()[0] as caller, suppress(OSError):
                caller.sendall(answer)
                while caller.recv(1024):
                    pass
        server.close()

    threading.Thread(target=answer_all, daemon=True).start()
    return int(server.getsockname()[1])


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"-ERR\r\n", b""])
def test_another_service_at_the_address_is_told_at_once(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would ask it for 47 s: it is not asked."""
    monkeypatch.setattr(join, "CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(ray_private, "check_head", lambda address: pytest.fail("Ray was asked"))
    address = f"127.0.0.1:{serve(answer)}"
    with pytest.raises(ClusterError, match=r"other than a Ray head .*HOST:6379"):
        join.check_address(address)


def test_what_speaks_http2_is_asked_further(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(ray_private, "check_head", asked.append)
    address = f"127.0.0.1:{serve(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))}"
    join.check_address(address)
    assert asked == [address]


@settings(deadline=None)  # a loaded node may stall in any example
@given(st.text(max_size=30))
def test_no_text_given_as_an_address_ends_in_anything_but_a_sentence(text: str) -> None:
    if ":" not in text:  # what has no port is not looked up
        with pytest.raises(ClusterError, match="is not an address"):
            join.check_port(text, "advice")


def test_run_names_an_address_where_nothing_answers(
    pretune: Any, tiny: dict[str, Any], tmp_path: Path, closed_port: int
) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    address = f"127.0.0.1:{closed_port}"
    code, _, err = pretune("run", tmp_path / "tiny.yaml", "--root", tmp_path / "runs", "--address", address)
    assert code == 2
    assert err == (
        f"error: --address {address}: nothing answers there (Connection refused); "
        "give HOST:6379 of a running Ray head\n"
    )
    assert not (tmp_path / "runs").exists()


def test_submit_names_an_address_where_nothing_answers(
    pretune: Any, tiny: dict[str, Any], tmp_path: Path, closed_port: int
) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    where = ["--address", f"http://127.0.0.1:{closed_port}", "--root", "/shared/runs"]
    code, _, err = pretune("submit", tmp_path / "tiny.yaml", *where)
    assert code == 2
    assert "nothing answers there (Connection refused)" in err
    assert "ssh -N -L 8265:localhost:8265 HEAD" in err
    code, _, err = pretune("submit", tmp_path / "tiny.yaml", "--address", "head:6379", "--root", "/shared/runs")
    assert (code, "is not a dashboard address" in err) == (2, True)
    code, _, err = pretune("submit", tmp_path / "tiny.yaml", *where[:2], "--root", "runs")
    assert (code, "--root runs: give an absolute path on the cluster nodes" in err) == (2, True)
    tiny["finetune"]["freze"] = "encoder"
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    code, _, err = pretune("submit", tmp_path / "tiny.yaml", *where)
    assert (code, 'did you mean "freeze"?' in err) == (2, True)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (AuthenticationError("bad token"), r"the cluster refuses the token; set RAY_AUTH_MODE=token"),
        (
            RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.50.0\n    Python: 3.10.1\n"
                         "This process on node 10.0.0.1 was started with:\n    Ray: 2.60.0\n"),
            r"Version mismatch: .* Ray: 2.50.0 Python: 3.10.1 .* Ray: 2.60.0; install the cluster's versions here$",
        ),
        (ConnectionError("RPC error: Method not found!"), r"something other than a Ray head answers there; give"),
        (ConnectionError("lost\nit"), r"the cluster cannot be used: lost it$"),
        (
            ImportError("cannot import name 'GcsClient' from 'ray._raylet'"),
            r"lacks what Pretune uses of it \(cannot import name 'GcsClient' .*\); it was tried with 2\.52 to",
        ),
        (AttributeError("no attribute 'state'"), r"Ray 2\.60\.\d+ lacks what Pretune uses of it \(no attr"),
    ],
)  # fmt: skip
def test_what_ray_raises_becomes_one_line(error: Exception, sentence: str) -> None:
    with pytest.raises(ClusterError, match=sentence) as caught, join.explained("head:6379"):
        raise error
    assert "\n" not in str(caught.value)


def test_a_gpu_that_no_node_has_is_named_before_the_study_starts(tiny: dict[str, Any]) -> None:
    from pretune.plan import make_plan
    from pretune.trainables.data.resident.digest import content_digest

    tiny["resources"] = {"pretrain": {"gpus": 1}}
    _, stages = make_plan(from_dict(tiny), lambda data: content_digest(data, None))
    resources = ClusterResources([ClusterNode({"CPU": 4.0}), ClusterNode({"CPU": 8.0})])
    with pytest.raises(ResourceError, match=r"resources\.pretrain\.gpus: .* 1 GPU, .* 0;"):
        resources.check({stage.fingerprint: stage for stage in stages})


def test_what_the_cluster_has_and_where_stages_run_is_one_line() -> None:
    head, worker = ClusterNode({"CPU": 4.0}, "1"), ClusterNode({"CPU": 8.0, "GPU": 1.0})
    assert join.describe(ClusterResources([head])) == (
        "1 node; stages without an explicit `gpus` run on the CPU (no node has a GPU)"
    )
    assert join.describe(ClusterResources([head, head, worker, worker])) == (
        "2 nodes, 2 more may come; stages without an explicit `gpus` run on a GPU each"
    )


def test_a_refused_stage_names_the_option_where_it_is_not_known_how_far_the_cluster_grows(tmp_path: Path) -> None:
    def refused(*nodes: ClusterNode, address: str | None) -> str:
        options = Options(tmp_path, tmp_path, tmp_path, address=address)
        with pytest.raises(ResourceError) as caught:
            check_room(ClusterResources(nodes), {"a": stage("a", cpus=8)}, options)
        return str(caught.value)

    head = ClusterNode({"CPU": 0.0}, "head")
    text = "resources.finetune.cpus: a stage needs 8 CPU, there are 0; lower it or add nodes to the cluster"
    hint = " (if the cluster can start more nodes, say how many: --may-grow 8xCPU=8,GPU=1)"
    assert refused(head, address=None) == text
    assert refused(head, address="head:6379") == text + hint
    assert "--may-grow" not in refused(head, ClusterNode({"CPU": 4.0}), address="head:6379")


def test_data_that_a_study_names_by_whole_paths_must_be_on_every_node(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["data"]["mine"] = {"dataset": "image-folder", "root": "/data/mine"}
    tiny["data"]["below"] = {"dataset": "image-folder", "root": "mine"}
    tiny["data"]["afar"] = {"dataset": "parquet", "root": "s3://bucket/mine"}
    for name in ("mine", "below", "afar"):
        tiny["probe"] = tiny.get("probe", {}) | {name: {"kind": "knn", "data": name}}
    options = Options(tmp_path / "out", tmp_path / "store", tmp_path / "cache", data=tmp_path)
    shared, readable = folders_of_all(from_dict(tiny), options)
    assert shared == {"--root": tmp_path / "cache", "--store": tmp_path / "store"}
    assert readable == {"--data": tmp_path, "data.mine.root": Path("/data/mine")}


def test_an_empty_place_to_mount_a_folder_at_is_not_the_folder(tmp_path: Path) -> None:
    """Each node is asked for something that lies in the folder."""
    for name in ("b", "a", "c"):
        (tmp_path / "data" / name).mkdir(parents=True)
    assert join.witness(tmp_path / "data") == tmp_path / "data" / "a"
    (tmp_path / "empty").mkdir()
    for alone in ("empty", "missing"):
        assert join.witness(tmp_path / alone) == tmp_path / alone
    (tmp_path / "file").write_text("x")
    assert join.witness(tmp_path / "file") == tmp_path / "file"


@pytest.mark.parametrize(
    "gone", [ray.exceptions.NodeDiedError("died"), ray.exceptions.TaskUnschedulableError("drained")]
)
def test_a_node_that_leaves_is_not_a_reason_to_refuse_a_study(gone: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def get(answer: Any, timeout: float) -> Any:
        raise gone

    monkeypatch.setattr(ray, "get", get)
    assert join._answer("10.0.0.2", None, may_leave=True) is None
    with pytest.raises(ClusterError, match=r"10.0.0.2 cannot run Pretune"):
        join._answer("10.0.0.2", None)


def test_a_node_says_which_paths_it_does_not_see(tmp_path: Path) -> None:
    found = join.look_here({"--data": str(tmp_path), "--store": str(tmp_path / "absent")})
    assert found["missing"] == ["--store"]
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))


# ---------------------------------------------------------------------------------------------------------- submit


class Client:
    """Stands for Ray's JobSubmissionClient: keeps what it was given, and looks into the folder while it is there."""

    def __init__(self, *states: JobStatus, code: int | None = None) -> None:
        self.states, self.code, self.asked, self.given = list(states), code, 0, {}  # type: ignore[var-annotated]

    def submit_job(self, **given: Any) -> str:
        folder = Path(given["runtime_env"]["working_dir"])
        listed = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        self.given = given | {"files": listed, "study": (folder / "study.yaml").read_text()}
        done = subprocess.run(
            [sys.executable, "-m", "pretune", "--help"], cwd=folder, env={"PATH": "/usr/bin"}, capture_output=True
        )
        self.given["starts"] = done.returncode
        return str(given["submission_id"])

    def get_job_info(self, job: str) -> Any:
        self.asked += 1
        if self.asked == 2:
            raise ConnectionError("the laptop slept")
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return SimpleNamespace(status=state, driver_exit_code=self.code)

    def get_job_logs(self, job: str) -> str:
        return "".join(f"line {number}\n" for number in range(self.asked))


def test_a_job_is_the_study_file_and_our_code_and_can_be_started(tmp_path: Path) -> None:
    file = tmp_path / "my study.yaml"
    file.write_text("study: mine  # as it is\n")
    client = Client()
    job = jobs.submit(client, "http://x", "my study", file, ["--root", "/shared/my runs"], pip=False)
    given = client.given
    assert job == given["submission_id"]
    assert job.startswith("pretune-my-study-")
    assert given["entrypoint"] == "python -m pretune run study.yaml --address auto --root '/shared/my runs'"
    assert given["study"] == "study: mine  # as it is\n"
    assert {
        "pretune/cli/study.py",
        "pretune/search_spaces/schema/__init__.py",
        "pretune/trainables/loop.py",
        "pretune/analysis/questions/tables.py",
    } <= given["files"]
    assert not any("__pycache__" in name for name in given["files"])
    assert given["runtime_env"].keys() == {"working_dir", "env_vars"}
    assert given["starts"] == 0


def test_a_job_carries_no_secret_of_this_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "PRETUNE_SEARCH_STORAGE"):
        monkeypatch.setenv(name, "s3cret")
    file = tmp_path / "study.yaml"
    file.write_text("study: mine\n")
    client = Client()
    jobs.submit(client, "http://x", "mine", file, [], pip=True)
    assert "s3cret" not in str(client.given)
    assert "torch>=2.11" in client.given["runtime_env"]["pip"]
    assert not [line for line in client.given["runtime_env"]["pip"] if line.startswith(("ray", "pytest"))]
    with pytest.raises(ClusterError, match="password in a URL"):
        jobs.submit(client, "http://x", "mine", file, ["--set", "a.url=https://key:s3cret@host/x"], pip=False)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 3, 3),
        (JobStatus.FAILED, None, 1),
        (JobStatus.STOPPED, None, 130),
    ],
)
def test_following_ends_with_the_job_and_a_lost_connection_is_no_end(
    status: JobStatus, code: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.0)
    told: list[str] = []
    noted: list[str] = []
    client = Client(JobStatus.RUNNING, status, code=code)
    assert jobs.follow(client, "http://x", "job", told.append, noted.append) == expected
    assert "".join(told) == "line 0\nline 1\nline 2\n"
    assert noted == [
        "the connection to http://x is lost; job is looked for every 0 s",
        "the connection to http://x is there again",
    ]


class Failing(Client):
    """Answers all questions about a job with these errors in turn, then as `Client`."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__(JobStatus.SUCCEEDED)
        self.errors = list(errors)
        self.asked = 2

    def get_job_info(self, job: str) -> Any:
        if self.errors:
            raise self.errors.pop(0)
        return super().get_job_info(job)


NOT_THERE = RuntimeError("Request failed with status code 404: Job job does not exist.")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (NOT_THERE, r"http://x knows no job job \(a head that was started anew has forgotten its jobs\)"),
        (AuthenticationError("Authentication failed: 403"), "the cluster refuses the token; set RAY_AUTH_MODE=token"),
    ],
)
def test_following_ends_where_waiting_does_not_help(
    error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.0)
    noted: list[str] = []
    with pytest.raises(ClusterError, match=sentence):
        jobs.follow(Failing(OSError("timed out"), error), "http://x", "job", lambda _: None, noted.append)
    assert noted == ["the connection to http://x is lost; job is looked for every 0 s"]


def test_a_long_loss_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.0)
    noted: list[str] = []
    client = Failing(*[RuntimeError("status code 404: a page of another server")] * 5)
    assert jobs.follow(client, "http://x", "job", lambda _: None, noted.append) == 0
    assert len(noted) == 2


def test_a_job_whose_log_went_with_its_node_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "get_job_logs", lambda *_: (_ for _ in ()).throw(RuntimeError("status code 500")))
    client = Client(JobStatus.FAILED)
    assert jobs.follow(client, "http://x", "job", lambda _: None, lambda _: None) == 1


SECRET = st.text("abcXYZ019+/", min_size=12, max_size=40).map(lambda text: f"Q9{text}")


@given(
    secret=SECRET,
    form=st.sampled_from(
        [
            "s3://AKIAXX:{}@bucket/x",
            "S3://AKIAXX:{}@bucket/x",
            "s3://AKIAXX/{}@bucket/x",
            "gs://AKIAXX:{}/bucket/x",
            "s3a://AKIAXX:{}@bucket/x",
            "s3://AKIAXX%3A{}%40bucket/x",
            "s3://bucket/x?secret_key={}",
            "s3://bucket/x?{}",
            "s3://bucket/x?region=AKIAXX:{}@eu",
            "s3://bucket/x?endpoint_override=http://AKIAXX:{}@host",
            "s3://bucket/x#{}",
            "http://AKIAXX:{}@host/x",
            "data.url=https://me:{}@host/x",
            "data.url=https://host/x?token={}",
            "data.url=s3://bucket/x?a=1&secret_key={}",
        ]
    ),
)
def test_no_secret_in_an_address_is_submitted_or_shown(secret: str, form: str) -> None:
    client = Client()
    with pytest.raises((ClusterError, ObjectError)) as caught:
        jobs.submit(client, "http://x", "mine", Path("absent"), ["--store", form.format(secret)], pip=False)
    assert client.given == {}
    assert secret not in str(caught.value)
    assert "\n" not in str(caught.value)


@given(
    bucket=st.from_regex(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", fullmatch=True),
    folder=st.from_regex(r"(/[A-Za-z0-9._ =+:-]{1,12}){0,3}", fullmatch=True),
    option=st.sampled_from(["", "?region=eu-west-1", "?endpoint_override=localhost:9000&scheme=http"]),
)
def test_addresses_without_a_secret_are_submitted(bucket: str, folder: str, option: str) -> None:
    jobs.check_arguments(["--store", f"s3://{bucket}{folder}{option}", "--set", "seeds.report=2", "--root", "/a:b/c"])


def test_a_secret_is_refused_before_anything_is_asked(pretune: Any, tiny: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    where = ["--address", "http://127.0.0.1:1", "--root", "/shared/runs"]
    code, _, err = pretune("submit", tmp_path / "tiny.yaml", *where, "--store", "s3://AKIAXX:ab/cdSECRET@bucket/x")
    assert code == 2
    assert "keys do not belong in an address" in err
    assert "SECRET" not in err
    code, _, err = pretune("submit", tmp_path / "tiny.yaml", *where[:3], "s3://AKIAXX:ab/cdSECRET@bucket/x")
    assert (code, "--root must be a folder on the cluster nodes, not an address" in err) == (2, True)
    assert "SECRET" not in err


def test_submit_takes_all_that_run_takes_and_passes_it_on(
    pretune: Any, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pretune.cli import study as commands

    by_name = [{option.name for option in command.params} for command in (commands.run, commands.submit)]
    assert by_name[1] - by_name[0] == {"pip", "wait"}
    assert by_name[0] <= by_name[1]
    sent: list[list[str]] = []
    monkeypatch.setattr(jobs, "connect", lambda address: Client())
    monkeypatch.setattr(jobs, "submit", lambda client, address, name, file, words, pip: sent.append(words) or "job")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    options = [
        "--root", "/a/runs", "--data", "/a/data", "--out", "/a/out", "--store", "s3://bucket/x", "--parallel", "3",
        "--search-storage", "postgresql://host/x", "--may-grow", "2xCPU=4", "--dashboard",
        "--log-to", "tensorboard", "--log-to", "mlflow", "--set", "seeds.report=2",
    ]  # fmt: skip
    code, _, err = pretune("submit", tmp_path / "tiny.yaml", "--address", "http://h:1", "--no-wait", *options)
    assert code == 0, err
    commands.run.make_context("run", ["study.yaml", *sent[0]])  # `run` takes them
    pairs = set(itertools.pairwise(options)) - {("--dashboard", "--log-to")}
    assert {pair for pair in pairs if pair[0].startswith("--")} <= set(zip(sent[0], sent[0][1:], strict=False))
    assert "--dashboard" in sent[0]


class Page(BaseHTTPRequestHandler):
    """Answers everything with the server's `code` and `text`."""

    def do_GET(self) -> None:
        self.send_response(self.server.code)  # type: ignore[attr-defined]
        self.end_headers()
        self.wfile.write(self.server.text)  # type: ignore[attr-defined]

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("code", "text"),
    [(404, b"no such page"), (200, b"<html>"), (200, b"{}"), (200, b"[1]"), (200, b'{"ray_version": 2}')],
)
def test_submit_says_that_another_server_is_no_dashboard(code: int, text: bytes) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        server.code, server.text = code, text  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ClusterError, match="other than a Ray dashboard"):
            jobs.connect(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


@pytest.mark.parametrize("name", ["RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"])
def test_submit_asks_the_address_that_it_is_given_whatever_the_environment_says(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []
    monkeypatch.setenv(name, "http://another:8265")
    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", lambda address: asked.append(os.environ.get(name)))
    with socket.create_server(("127.0.0.1", 0)) as server:
        jobs.connect(f"http://127.0.0.1:{server.getsockname()[1]}")
    assert asked == [None]
    assert os.environ[name] == "http://another:8265"


@pytest.mark.parametrize("banner", [b"SSH-2.0-OpenSSH_9.6\r\n", b""])
def test_submit_says_that_what_speaks_no_http_is_no_dashboard(banner: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second accepts and stays silent."""
    monkeypatch.setattr(jobs, "REQUEST_SECONDS", 0.5)
    with ExitStack() as held:
        server = held.enter_context(socket.create_server(("127.0.0.1", 0)))

        def answer() -> None:
            with suppress(OSError):  # the server was closed
                while True:
                    caller = held.enter_context(server.accept()[0])
                    if banner:
                        caller.sendall(banner)

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(ClusterError, match="other than a Ray dashboard"):
            jobs.connect(f"http://127.0.0.1:{server.getsockname()[1]}")
        server.shutdown(socket.SHUT_RDWR)


# ------------------------------------------------------------------------------------------------------------ stop


def test_stop_says_what_is_not_there(pretune: Any, tmp_path: Path) -> None:
    code, _, err = pretune("stop", tmp_path / "absent")
    assert (code, "is not a study folder; to stop a job of that name give --address" in err) == (2, True)
    code, _, err = pretune("stop", tmp_path)
    assert (code, f"no study is running on {tmp_path}" in err) == (2, True)


def test_stop_knows_who_works_on_a_folder(pretune: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(join.JOB, "pretune-x-1")
    with only_driver(tmp_path):
        code, _, err = pretune("stop", tmp_path)
        assert (code, "is in use by the job pretune-x-1: give --address of its cluster" in err) == (2, True)
        monkeypatch.setattr(socket, "gethostname", lambda: "another")
    assert jobs.driver_of(tmp_path) is None
    monkeypatch.delenv(join.JOB)
    with only_driver(tmp_path):
        monkeypatch.setattr(socket, "gethostname", lambda: "a third")
        code, _, err = pretune("stop", tmp_path)
        assert (code, "is in use by a process on another: run pretune stop there" in err) == (2, True)


class Ended:
    """Stands for the client of a cluster whose job has these states one after the other."""

    def __init__(self, *states: JobStatus) -> None:
        self.states, self.stopped = list(states), 0

    def get_job_status(self, job: str) -> JobStatus:
        return self.states.pop(0)

    def stop_job(self, job: str) -> bool:
        self.stopped += 1
        return True


@pytest.mark.parametrize(
    ("states", "said", "asked"),
    [
        ([JobStatus.STOPPED], "x had ended before: stopped", 0),
        ([JobStatus.FAILED], "x had ended before: failed", 0),
        ([JobStatus.RUNNING, JobStatus.RUNNING, JobStatus.STOPPED], "x stopped; submit the study again", 1),
        ([JobStatus.RUNNING, JobStatus.SUCCEEDED], "x had ended by itself: succeeded", 1),
    ],
)
def test_stop_says_whether_it_was_what_ended_the_job(
    states: list[JobStatus], said: str, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Ended(*states)
    monkeypatch.setattr(jobs, "connect", lambda _: client)
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.0)
    assert jobs.stop_job("x", "http://x").startswith(said)
    assert client.stopped == asked

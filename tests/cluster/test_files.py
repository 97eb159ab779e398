"""The files that launch clusters: accepted by the schemas of those who read them, and closed to the world."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

TOP = Path(__file__).resolve().parents[2]
SCHEMAS = TOP.parent / "shared" / "schemas"
AUTOSCALER = [TOP / "cluster.yaml", TOP / "cluster" / "local.yaml"]


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.load(path.read_text(), yaml.CSafeLoader)  # as safe_load, in C
    return found


@pytest.mark.parametrize("path", AUTOSCALER, ids=lambda path: path.name)
@pytest.mark.filterwarnings("ignore")  # of Ray's own imports
def test_ray_up_accepts_the_file(path: Path) -> None:
    """As `ray up` does: filled with the provider's defaults, then validated."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    filled = prepare_config(read(path))
    validate_config(filled)
    assert {"available_node_types", "head_node_type", "head_start_ray_commands"} <= filled.keys()


@pytest.mark.filterwarnings("ignore")
def test_rays_schema_refuses_what_is_no_field_of_it() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(jsonschema.ValidationError, match=r"\('min_worker' was unexpected"):
        validate_config(prepare_config(read(AUTOSCALER[0]) | {"min_worker": 1}))


@pytest.mark.parametrize("path", AUTOSCALER, ids=lambda path: path.name)
def test_every_node_asks_for_the_token_and_the_dashboard_stays_on_loopback(path: Path) -> None:
    config = read(path)
    starts = [
        command
        for role in ("head", "worker")
        for command in config[f"{role}_start_ray_commands"]
        if re.search(r"\bray start\b", command)
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "0.0.0.0" not in " ".join(starts)
    assert "~/.ray/auth_token" in config["file_mounts"]


def test_on_aws_workers_are_spot_and_the_head_runs_no_stage() -> None:
    config = read(AUTOSCALER[0])
    head, gpu = (config["available_node_types"][name] for name in ("head", "gpu"))
    assert head["resources"] == {"CPU": 0}
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert (gpu["min_workers"], gpu["max_workers"]) == (0, 8)


@pytest.mark.filterwarnings("ignore")  # of Ray's own imports
def test_on_aws_ray_starts_machines_that_only_ones_own_address_reaches_by_ssh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray bootstraps the file and starts a head and a worker, as `ray up` and then the head do, on moto's AWS.

    The group is made as the file's first lines say. Ray may not add to it: the group it would make has ssh open to all.
    """
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto")
    from ray.autoscaler._private.aws import config as aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config

    for name, value in {"HOME": tmp_path, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(aws.time, "sleep", lambda _: None)  # until a new role has spread
    with moto.mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        ec2 = boto3.resource("ec2", region_name="eu-central-1")
        group = ec2.create_security_group(GroupName="pretune", Description="pretune")
        ssh, own = "203.0.113.7/32", {"GroupId": group.id}
        group.authorize_ingress(IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp=ssh)
        group.authorize_ingress(IpPermissions=[{"IpProtocol": "-1", "UserIdGroupPairs": [own]}])
        image = boto3.client("ec2", "eu-central-1").describe_images()["Images"][0]["ImageId"]
        text = AUTOSCALER[0].read_text()
        config = yaml.safe_load(re.sub(r"\bIMAGE$", image, text, flags=re.M).replace("[GROUP]", f"[{group.id}]"))
        made = aws.bootstrap_aws(prepare_config(config))
        provider = AWSNodeProvider(made["provider"], made["cluster_name"])
        for name, kind in made["available_node_types"].items():
            provider.create_node(kind["node_config"], {"ray-node-type": name, "ray-user-node-type": name}, 1)
        machines = list(ec2.instances.all())
        assert sorted(machine.instance_type for machine in machines) == ["g5.2xlarge", "m6i.xlarge"]
        assert {tuple(g["GroupId"] for g in machine.security_groups) for machine in machines} == {(group.id,)}
        group.reload()
        opened = [
            (rule["IpProtocol"], rule.get("FromPort"), [r["CidrIp"] for r in rule["IpRanges"]],
             [pair["GroupId"] for pair in rule["UserIdGroupPairs"]])
            for rule in group.ip_permissions
        ]  # fmt: skip
        assert sorted(opened) == [("-1", None, [], [group.id]), ("tcp", 22, [ssh], [])]
        assert {g.group_name for g in ec2.security_groups.all()} == {"default", "pretune"}  # none of Ray's


def test_on_aws_what_must_be_changed_is_said() -> None:
    """Ids of one account stand as words in capitals, each named in the line that begins with CHANGE."""
    text = AUTOSCALER[0].read_text()
    change = text[text.index("# CHANGE") :].split("It was validated")[0]
    body = "\n".join(line.split("#")[0] for line in text.splitlines())
    words = set(re.findall(r"\b(?:GROUP|IMAGE|[A-Z]+(?:_[A-Z]+)*_ID)\b", body)) - {"RAY_HEAD_IP"}
    assert words == {"GROUP", "IMAGE", "FILE_SYSTEM_ID"}
    assert all(word in change for word in words)
    assert "resolve:ssm" not in body  # the head's role may not ask SSM


def test_every_field_of_the_aws_file_is_explained() -> None:
    """Each key of the top level, of the provider and of the node types has a comment on its line or above it."""
    lines = (TOP / "cluster.yaml").read_text().splitlines()
    bare = []
    for number, line in enumerate(lines):
        if re.match(r"^( {4})?[a-z_]+:", line):
            above = next((before for before in reversed(lines[:number]) if before.strip()), "")
            if "#" not in line and not above.lstrip().startswith("#"):
                bare.append(line.strip())
    assert not {key.split(":")[0] for key in bare} - EVIDENT


def test_on_aws_nodes_get_what_pretune_needs_in_the_tested_versions() -> None:
    config = read(AUTOSCALER[0])
    install = next(command for command in config["setup_commands"] if "pip install" in command)
    assert "--constraint ~/constraints.txt" in install
    assert config["file_mounts"]["~/constraints.txt"] == "constraints.txt"
    asked = {name.strip("'").split("[")[0] for name in install.split()}
    needed = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {re.split(r"[\[<>=~]", requirement)[0] for requirement in needed} <= asked
    mount = next(command for command in config["setup_commands"] if "mount -t nfs4" in command)
    assert "lookupcache=positive" in mount
    assert any("install -y nfs-common" in command for command in config["setup_commands"])


def test_on_aws_a_node_whose_image_has_these_versions_installs_nothing() -> None:
    install = next(command for command in read(AUTOSCALER[0])["setup_commands"] if "pip install" in command)
    assert install.startswith("cmp --silent ~/constraints.txt ~/venv/installed.txt || ~/venv/bin/pip install ")
    assert install.endswith(" && cp ~/constraints.txt ~/venv/installed.txt")


def test_the_image_copies_what_is_there_and_nothing_else_reaches_its_builder() -> None:
    lines = (TOP / "cluster" / "Dockerfile").read_text().replace("\\\n", "").splitlines()
    copied = {name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]}
    assert not {name for name in copied if not (TOP / name).exists()}
    ignore = (TOP / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignore if line.startswith("!")} == copied
    assert "*" in ignore
    linked = {path.resolve().name for path in (TOP / "pretune").iterdir() if path.is_symlink()}
    assert linked <= copied  # a link to what is not there would be copied in silence


def test_the_image_gets_what_pretune_needs() -> None:
    words = [sys.executable, str(TOP / "cluster" / "requirements.py")]
    asked = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    assert asked == [*tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["dependencies"], "boto3"]


def test_the_key_that_the_head_gets_is_no_users_own() -> None:
    assert read(TOP / "cluster" / "local.yaml")["auth"]["ssh_private_key"] == "~/.ssh/pretune-cluster"


def manifests() -> list[dict[str, Any]]:
    """The specification of the cluster in each of KubeRay's documents."""
    documents = list(yaml.safe_load_all((TOP / "cluster" / "kuberay.yaml").read_text()))
    return [document["spec"].get("rayClusterSpec", document["spec"]) for document in documents]


def test_on_kubernetes_the_operator_hands_out_the_token_and_evicted_pods_have_time_to_drain() -> None:
    for spec in manifests():
        assert spec["authOptions"] == {"mode": "token", "secretName": "pretune-token"}
        pods = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
        own = {
            entry["name"] for pod in pods for c in pod["template"]["spec"]["containers"] for entry in c.get("env", [])
        }
        assert not {name for name in own if name.startswith("RAY_AUTH")}  # would stand beside the operator's
        for group in spec["workerGroupSpecs"]:
            (container,) = group["template"]["spec"]["containers"]
            (wait,) = (entry["value"] for entry in container["env"] if "DRAIN" in entry["name"])
            assert 0 < float(wait) < group["template"]["spec"]["terminationGracePeriodSeconds"]


def test_on_kubernetes_the_job_is_told_how_far_its_cluster_may_grow() -> None:
    _, job = yaml.safe_load_all((TOP / "cluster" / "kuberay.yaml").read_text())
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    grows = f"{group['maxReplicas']}xCPU={limits['cpu']},GPU={limits['nvidia.com/gpu']}"
    assert job["spec"]["entrypoint"].endswith(f"--may-grow {grows}")


def test_on_kubernetes_a_study_that_failed_is_not_run_again_on_new_clusters() -> None:
    """KubeRay repeats every failure alike, also those that no repetition mends."""
    _, job = yaml.safe_load_all((TOP / "cluster" / "kuberay.yaml").read_text())
    assert job["spec"]["backoffLimit"] == 0


@pytest.mark.parametrize(("version", "code"), [("(3, 10)", 1), ("(3, 11)", 0), ("(3, 13)", 0), ("(3, 14)", 1)])
def test_on_aws_an_image_whose_python_does_not_fit_is_refused(version: str, code: int) -> None:
    (check,) = (command for command in read(AUTOSCALER[0])["setup_commands"] if "version_info" in command)
    command = check.replace("/usr/bin/python3", sys.executable).replace("sys.version_info", version)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, "Pretune needs Python 3.11 to 3.13" in done.stderr) == (code, code == 1)


EVIDENT = {"type", "region", "ssh_user", "head_node_type", "available_node_types", "head", "gpu", "provider", "auth",
           "worker_start_ray_commands"}  # fmt: skip


@pytest.mark.skipif(not SCHEMAS.is_dir(), reason=f"KubeRay's published schemas are not at {SCHEMAS}")
def test_the_manifests_are_what_kuberay_publishes() -> None:
    documents = list(yaml.safe_load_all((TOP / "cluster" / "kuberay.yaml").read_text()))
    assert [document["kind"] for document in documents] == ["RayCluster", "RayJob"]
    for document in documents:
        published = read(SCHEMAS / f"ray.io_{document['kind'].lower()}s.yaml")
        version = next(v for v in published["spec"]["versions"] if f"ray.io/{v['name']}" == document["apiVersion"])
        schema = closed(version["schema"]["openAPIV3Schema"])
        jsonschema.validate(document["spec"], schema["properties"]["spec"])
        broken = document["spec"] | {"entrypont": "x"}
        with pytest.raises(jsonschema.ValidationError, match="'entrypont' was unexpected"):
            jsonschema.validate(broken, schema["properties"]["spec"])


def closed(schema: Any) -> Any:
    """Unknown fields refused everywhere, as a strict API server does; its int-or-string as JSON Schema says it."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    if "properties" in schema and isinstance(schema["properties"], dict) and "type" in schema:
        made.setdefault("additionalProperties", False)
    return made


@pytest.mark.parametrize("name", ["slurm.sh", "spot_notice.sh"])
def test_bash_can_read_the_script(name: str) -> None:
    subprocess.run(["bash", "-n", str(TOP / "cluster" / name)], check=True)

"""cluster/gpu.yaml and aws-account.yaml against a simulated AWS: what Ray really starts there.

moto answers in this process; only SSH and rsync are replaced, by a recorder.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from moto import mock_aws
from moto.ec2.models.instance_types import INSTANCE_TYPES
from ray.autoscaler._private import commands
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler.tags import TAG_RAY_LAUNCH_CONFIG, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

ROOT = Path(__file__).parents[2]
REGION = "us-west-2"
MY_ADDRESS = "192.0.2.7/32"

Prepared = Callable[[str], dict[str, Any]]


def test_the_head_can_start_workers() -> None:
    """The autoscaler on the head needs boto3, which every node installs from here."""
    assert re.search(r"^boto3==", (ROOT / "requirements.txt").read_text(), re.MULTILINE)


def test_the_account_template_is_valid() -> None:
    lint = Path(sys.executable).parent / "cfn-lint"  # comes with moto
    result = subprocess.run([lint, ROOT / "cluster/aws-account.yaml"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_nodes_have_the_shape_of_run_instances(prepared: Prepared) -> None:
    ec2 = botocore.session.get_session().get_service_model("ec2")
    shape = ec2.operation_model("RunInstances").input_shape
    known_types = set(ec2.shape_for("InstanceType").enum)
    for name, node in prepared("gpu.yaml")["available_node_types"].items():
        report = ParamValidator().validate({**node["node_config"], "MinCount": 1, "MaxCount": 1}, shape)
        assert not report.has_errors(), (name, report.generate_report())
        assert node["node_config"]["InstanceType"] in known_types
        assert node["node_config"]["ImageId"] == "ami-CHOOSE"  # EC2 refuses it until someone chooses


def test_workers_offer_what_their_types_have(prepared: Prepared) -> None:
    workers = prepared("gpu.yaml")["available_node_types"]
    del workers["head"]
    for name, node in workers.items():
        has = INSTANCE_TYPES[node["node_config"]["InstanceType"]]
        gpus = sum(gpu["Count"] for gpu in has["GpuInfo"]["Gpus"])
        on_demand = {"on_demand": 1} if name.endswith("_on_demand") else {}
        assert node["resources"] == {"CPU": has["VCpuInfo"]["DefaultVCpus"], "GPU": gpus, **on_demand}, name
        assert name == f"gpu_{gpus}" + ("_on_demand" if on_demand else "")
        assert "x86_64" in has["ProcessorInfo"]["SupportedArchitectures"]


class Recorder:
    """Stands for SSH and rsync: keeps what would run on the head, and takes it for done."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.copied: dict[str, str] = {}  # remote path -> local path
        self.text: dict[str, str] = {}  # remote path -> what was in the file

    def check_call(self, command: list[str], *_: Any, **__: Any) -> int:
        self.calls.append([str(part) for part in command])
        if command[0] == "rsync":
            local, remote = Path(command[-2]), command[-1].partition(":")[2]
            self.copied[remote] = str(command[-2])
            if local.is_file():
                self.text[remote] = local.read_text()
        return 0

    def check_output(self, command: list[str], *_: Any, **__: Any) -> bytes:
        self.check_call(command)
        return b""

    def ran(self) -> list[str]:
        return [call[-1] for call in self.calls if call[0] == "ssh"]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Recorder, dict[str, Any], Any]]:
    """`ray up cluster/gpu.yaml` in an account that has aws-account.yaml: its calls, its configuration, EC2's client."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    (home / ".ray/auth_token").write_text("the-token")
    runner = Recorder()
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        for key, value in {
            "HOME": str(home),
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": REGION,
        }.items():
            patch.setenv(key, value)
        patch.chdir(ROOT)
        deploy_account()
        ec2 = boto3.client("ec2")
        image = ec2.register_image(Name="ubuntu with a driver", RootDeviceName="/dev/sda1")["ImageId"]
        text = (ROOT / "cluster/gpu.yaml").read_text().replace("ami-CHOOSE", image)
        config = commands._bootstrap_config(yaml.safe_load(text), no_config_cache=True)
        commands.get_or_create_head_node(
            config, "cluster/gpu.yaml", no_restart=False, restart_only=False, yes=True, override_cluster_name=None,
            _runner=runner,  # type: ignore[arg-type]
        )  # fmt: skip
        yield runner, config, ec2


def deploy_account() -> None:
    parameters = {"Bucket": "results-of-mine", "SshFrom": MY_ADDRESS}
    boto3.client("cloudformation").create_stack(
        StackName="tune-adamsrt",
        TemplateBody=(ROOT / "cluster/aws-account.yaml").read_text(),
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )


Started = tuple[Recorder, dict[str, Any], Any]


def instances(ec2: Any, name: str) -> list[dict[str, Any]]:
    found = ec2.describe_instances(Filters=[{"Name": "tag:ray-user-node-type", "Values": [name]}])
    return [instance for reservation in found["Reservations"] for instance in reservation["Instances"]]


def tags_of(instance: dict[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in instance["Tags"]}


def profile_of(instance: dict[str, Any]) -> str:
    return str(instance["IamInstanceProfile"]["Arn"].rpartition("/")[2])


def test_ray_up_starts_the_head(started: Started) -> None:
    _, config, ec2 = started
    (head,) = instances(ec2, "head")
    assert head["InstanceType"] == config["available_node_types"]["head"]["node_config"]["InstanceType"]
    assert "InstanceLifecycle" not in head  # never spot
    assert profile_of(head) == "tune-adamsrt-head"
    assert [group["GroupName"] for group in head["SecurityGroups"]] == ["tune-adamsrt"]
    assert head["MetadataOptions"]["HttpTokens"] == "required"
    tags = tags_of(head)
    assert tags["ray-cluster-name"] == "tune-adamsrt" and tags["project"] == "tune_adamsrt"
    assert tags["ray-node-status"] == "up-to-date"


def test_only_ssh_is_open_and_only_to_the_chosen_address(started: Started) -> None:
    ec2 = started[2]
    (group,) = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["tune-adamsrt"]}])[
        "SecurityGroups"
    ]
    from_outside = [rule for rule in group["IpPermissions"] if rule["IpRanges"] or rule["Ipv6Ranges"]]
    assert [(rule["FromPort"], rule["ToPort"], rule["IpProtocol"]) for rule in from_outside] == [(22, 22, "tcp")]
    assert [ip["CidrIp"] for ip in from_outside[0]["IpRanges"]] == [MY_ADDRESS]
    inside = [rule for rule in group["IpPermissions"] if rule not in from_outside]
    assert [pair["GroupId"] for rule in inside for pair in rule["UserIdGroupPairs"]] == [group["GroupId"]]


def test_the_token_and_the_code_reach_the_head(started: Started) -> None:
    assert started[0].text["~/.ray/auth_token"] == "the-token"
    assert started[0].copied["~/tune_adamsrt/tune_adamsrt/"] == "tune_adamsrt/"
    assert not any("the-token" in part for call in started[0].calls for part in call)
    ran = started[0].ran()
    order = [
        next(n for n, line in enumerate(ran) if what in line)
        for what in ("node_setup.sh", "mlflow", "ray start --head")
    ]
    assert order == sorted(order)
    assert sum("pip install" in line for line in ran) == 0  # nothing beside the pinned packages


def test_the_file_on_the_head_has_no_secret_and_its_own_copies(started: Started) -> None:
    text = started[0].text["~/ray_bootstrap_config.yaml"]
    assert "the-token" not in text and "testing" not in text
    mounts = json.loads(text)["file_mounts"]  # the head hands on what it was given
    assert mounts["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert all(remote == local for remote, local in mounts.items())


@pytest.mark.parametrize(
    ("name", "instance_type", "market"),
    [
        ("gpu_1", "g6.xlarge", "spot"),
        ("gpu_4", "g6.12xlarge", "spot"),
        ("gpu_8", "g6.48xlarge", "spot"),
        ("gpu_1_on_demand", "g6.xlarge", None),
    ],
)
def test_workers_are_spot_but_for_the_named_and_may_use_the_bucket_only(
    started: Started, name: str, instance_type: str, market: str | None
) -> None:
    """What the autoscaler does on the head, from the file it got: Ray's own AWS provider starts a node of this type."""
    runner, _, ec2 = started
    config = json.loads(runner.text["~/ray_bootstrap_config.yaml"])
    provider = _get_node_provider(config["provider"], config["cluster_name"], use_cache=False)
    node_config = config["available_node_types"][name]["node_config"]
    tags = {TAG_RAY_NODE_KIND: "worker", TAG_RAY_USER_NODE_TYPE: name, TAG_RAY_LAUNCH_CONFIG: "hash"}
    provider.create_node(node_config, tags, 1)
    (worker,) = instances(ec2, name)
    assert worker["InstanceType"] == instance_type
    assert worker.get("InstanceLifecycle") == market
    assert profile_of(worker) == "tune-adamsrt-worker"
    assert [group["GroupName"] for group in worker["SecurityGroups"]] == ["tune-adamsrt"]
    assert tags_of(worker)["ray-cluster-name"] == "tune-adamsrt" and tags_of(worker)["project"] == "tune_adamsrt"
    assert worker["ImageId"] == instances(ec2, "head")[0]["ImageId"]


def test_what_the_roles_may_do(started: Started) -> None:
    iam = boto3.client("iam")
    for role in ("tune-adamsrt-worker", "tune-adamsrt-head"):
        (attached,) = iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]
        version = iam.get_policy(PolicyArn=attached["PolicyArn"])["Policy"]["DefaultVersionId"]
        policy = iam.get_policy_version(PolicyArn=attached["PolicyArn"], VersionId=version)["PolicyVersion"]
        for statement in statements(policy["Document"]):
            assert all(action.startswith("s3:") for action in statement["Action"])
            assert statement["Resource"].startswith("arn:aws:s3:::results-of-mine")
    assert iam.list_role_policies(RoleName="tune-adamsrt-worker")["PolicyNames"] == []
    (name,) = iam.list_role_policies(RoleName="tune-adamsrt-head")["PolicyNames"]
    own = statements(iam.get_role_policy(RoleName="tune-adamsrt-head", PolicyName=name)["PolicyDocument"])
    (passes,) = [statement for statement in own if "iam:PassRole" in statement["Action"]]
    assert passes["Resource"] == iam.get_role(RoleName="tune-adamsrt-worker")["Role"]["Arn"]
    (ends,) = [statement for statement in own if "ec2:TerminateInstances" in statement["Action"]]
    assert ends["Condition"] == {"StringEquals": {"ec2:ResourceTag/ray-cluster-name": started[1]["cluster_name"]}}
    template = yaml.safe_load((ROOT / "cluster/aws-account.yaml").read_text())["Resources"]["Results"]
    public = template["Properties"]["PublicAccessBlockConfiguration"]  # moto does not carry it out
    assert len(public) == 4 and all(public.values())
    assert template["DeletionPolicy"] == "Retain"


def statements(document: Any) -> list[dict[str, Any]]:
    # moto gives some policies as text, in YAML's quotes
    return list((yaml.safe_load(document) if isinstance(document, str) else document)["Statement"])

"""The sample manifest says what the program does."""

from pathlib import Path

import pytest
import yaml

from alibi_jax.config import Config
from alibi_jax.errors import Diverged, HeldError, Interrupted, Refused
from alibi_jax.run.commands import Supervise
from alibi_jax.run.invocation import COMMAND
from alibi_jax.run.parse import parse

ROOT = Path(__file__).parents[1]


@pytest.fixture
def manifest():
    """kind -> object; one of each."""
    objects = list(yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text()))
    assert [one["kind"] for one in objects] == ["Service", "Job"]
    return {one["kind"]: one for one in objects}


def test_hosts_find_each_other(manifest):
    service, job = manifest["Service"], manifest["Job"]
    name, pod = job["metadata"]["name"], job["spec"]["template"]["spec"]
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    environment = {one["name"]: one.get("value") or one["valueFrom"] for one in pod["containers"][0]["env"]}
    port = service["spec"]["ports"][0]["port"]
    assert environment == {
        "JAX_COORDINATOR_ADDRESS": f"{name}-0.{pod['subdomain']}:{port}",
        "JAX_NUM_PROCESSES": str(job["spec"]["completions"]),
        "JAX_PROCESS_ID": {
            "fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}
        },
    }
    assert job["spec"]["completionMode"] == "Indexed" and job["spec"]["parallelism"] == job["spec"]["completions"]


def test_exit_statuses_are_those_of_the_program(manifest):
    spec = manifest["Job"]["spec"]
    pod = spec["template"]["spec"]
    rules = {
        (rule["action"], *rule["onExitCodes"]["values"])
        for rule in spec["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    }
    assert rules == {("FailJob", Refused.status, Diverged.status), ("Ignore", Interrupted.status)}
    assert not any(HeldError.status in rule for rule in rules), "a pod that is going may not be gone yet"
    assert all(
        rule["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
        for rule in spec["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    )
    assert pod["restartPolicy"] == "Never"  # the only one that podFailurePolicy allows


def test_command_is_one_that_the_program_takes(manifest, monkeypatch, tmp_path):
    spec = manifest["Job"]["spec"]
    pod = spec["template"]["spec"]
    container = pod["containers"][0]
    monkeypatch.chdir(tmp_path)  # an image need not hold the repository
    assert container["command"][0] == COMMAND
    supervised = parse(container["command"][1:])
    assert isinstance(supervised, Supervise) and supervised.workdir.startswith("gs://")
    assert supervised.stop_seconds < pod["terminationGracePeriodSeconds"] and supervised.stall_seconds > 0
    config = parse(list(supervised.command)).config
    assert isinstance(config, Config)
    assert config.data.directory == container["volumeMounts"][0]["mountPath"]
    chips = container["resources"]["limits"]["google.com/tpu"] * spec["completions"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert config.mesh.fsdp == chips == rows * columns
    assert config.train.batch_size % chips == 0

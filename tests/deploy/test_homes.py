"""Laptops, macOS, Docker and k3s: what their own formats demand."""

from __future__ import annotations

import plistlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from mdi.cli.app import node_app
from mdi.cluster.peers import DEFAULT_PORT

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def options_of_node_start() -> set[str]:
    start = get_command(node_app).commands["start"]  # type: ignore[attr-defined]
    return {option for parameter in start.params for option in parameter.opts}


def test_the_user_unit_is_valid(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze") or pytest.skip("systemd-analyze is not here")
    unit = tmp_path / "mdi.service"
    unit.write_text((DEPLOY / "systemd/mdi.service").read_text().replace("%h/.mdi/bin/mdi", "/bin/true"))
    done = subprocess.run([analyze, "verify", "--user", "--man=no", unit], capture_output=True, text=True, timeout=60)
    assert [line for line in done.stderr.splitlines() if "mdi" in line] == []


def test_the_launchd_agent_has_the_keys_and_types_that_launchd_reads() -> None:
    path = DEPLOY / "macos/org.mdi.node.plist"
    agent = plistlib.loads(path.read_bytes())
    assert agent["Label"] == path.stem
    assert agent["ProgramArguments"][-1] == 'exec "$HOME/.mdi/bin/mdi" node start'
    assert agent["KeepAlive"] == {"SuccessfulExit": False}
    assert agent["Umask"] == 0o077
    kinds = {"RunAtLoad": bool, "ThrottleInterval": int, "ExitTimeOut": int, "ProcessType": str, "Nice": int}
    assert {key: type(agent[key]) for key in kinds} == kinds


def test_the_image_copies_what_a_build_reads_and_runs_as_nobody_in_particular() -> None:
    text = (DEPLOY / "docker/Dockerfile").read_text()
    sources = [word for line in re.findall(r"^COPY (?!--from)(.*)", text, re.MULTILINE) for word in line.split()[:-1]]
    allowed = [
        line[1:] for line in (DEPLOY / "docker/Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")
    ]
    assert sorted(sources) == sorted(allowed)
    assert all((ROOT / source).exists() for source in sources)
    assert re.findall(r"^USER (.*)", text, re.MULTILINE) == ["10001:10001"]
    assert f"EXPOSE {DEFAULT_PORT}" in text
    assert len(set(re.findall(r"^FROM (\S+)", text, re.MULTILINE))) == 1  # one Python for building and running


def documents() -> dict[str, Any]:
    return {each["kind"]: each for each in yaml.safe_load_all((DEPLOY / "k3s/mdi.yaml").read_text())}


def test_the_service_is_headless_and_selects_the_daemon_sets_pods() -> None:
    service, daemons = documents()["Service"], documents()["DaemonSet"]
    pod = daemons["spec"]["template"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == daemons["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]
    assert service["metadata"]["namespace"] == daemons["metadata"]["namespace"]
    assert service["spec"]["ports"][0]["port"] == DEFAULT_PORT == pod["spec"]["containers"][0]["ports"][0]["containerPort"]


def test_the_pod_runs_mdi_with_options_that_it_has_and_mounts_that_exist() -> None:
    pod = documents()["DaemonSet"]["spec"]["template"]["spec"]
    (node,) = pod["containers"]
    assert {word for word in node["args"] if word.startswith("--")} <= options_of_node_start()
    volumes = {volume["name"] for volume in pod["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for each in (*pod["initContainers"], node) for mount in each["volumeMounts"]}
    assert mounts.keys() <= volumes
    environment = {entry["name"]: entry.get("value") for entry in node["env"]}
    assert environment["MDI_CLUSTER_KEY_FILE"] == f"{mounts['key']}/cluster.key"
    assert environment["MDI_HOME"].startswith(mounts["host"])
    assert node["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pod["securityContext"]["runAsNonRoot"] is True
    # What the node accepts as a key that was handed out by root: no write for the group, nothing for others.
    (secret,) = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
    assert secret["defaultMode"] & 0o037 == 0

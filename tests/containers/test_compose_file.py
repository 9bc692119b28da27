"""What docker-compose.yaml says with each profile; it needs the client's compose plugin and no engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from local.settings import DATABASES
from local.triton import KEY_HEADER, RESTRICTED
from nightshift_common.storage_tokens import OPERATOR, TOKENS
from tests.containers.cluster import ROOT, clean_environment

ALWAYS = {
    "postgres", "databases", "redis", "init", "api-server", "scheduler", "dag-processor", "triggerer", "worker",
    "mlflow", "model-storage",
}  # fmt: skip
PROFILES = {
    "gpu": {"worker-gpu"},
    "t4": {"worker-t4"},
    "demo": {"collect", "collect-digits"},
    "serving": {"triton"},
    "serving-cpu": {"triton-cpu"},
    "s3": {"s3"},
    "monitoring": {"prometheus", "grafana"},
}
SECRET = re.compile(r"PASSWORD|TOKEN|SECRET|_KEY$")
WORKERS = ("worker", "worker-gpu", "worker-t4")
ONCE = {"databases", "init", "collect-digits"}  # end by themselves: nobody waits for their health


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `.env` as docker/secrets makes it."""
    if shutil.which("docker") is None or not _succeeds("docker", "compose", "version"):
        pytest.skip("the compose plugin of Docker's client is not installed")
    folder = tmp_path_factory.mktemp("compose")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "docker.sock"))
        command = [sys.executable, str(ROOT / "docker" / "secrets"), "--file", str(folder / "env")]
        environment = {**clean_environment(), "DOCKER_SOCKET": str(folder / "docker.sock")}
        subprocess.run(command, check=True, capture_output=True, env=environment)
    lines = (folder / "env").read_text().splitlines()
    (folder / "env").write_text("\n".join(line for line in lines if not line.startswith("COMPOSE_PROFILES")))
    return folder / "env"


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


def config(settings: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["docker", "compose", "--env-file", str(settings), *arguments, "config", "--format", "json"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**clean_environment(), **environment})


def services(settings: Path, *profiles: str) -> dict[str, Any]:
    done = config(settings, *(f"--profile={profile}" for profile in profiles))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["services"]
    return found


@pytest.mark.parametrize("profile", PROFILES)
def test_each_profile_adds_its_services(settings: Path, profile: str) -> None:
    assert set(services(settings, profile)) == ALWAYS | PROFILES[profile]


def test_every_service_has_limits_health_and_no_port_for_others(settings: Path) -> None:
    found = services(settings, *PROFILES)
    assert set(found) == ALWAYS.union(*PROFILES.values())
    for name, service in found.items():
        assert service["logging"]["options"]["max-size"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert ":" in service["image"] and "latest" not in service["image"], name
        assert not service.get("privileged"), name
        for port in service.get("ports", []):
            assert port["host_ip"] == "127.0.0.1", f"{name} is open to others"
        if name in ONCE:
            assert service["healthcheck"]["disable"] and service["restart"] == "no", name
            continue
        assert service["restart"] == "unless-stopped", name
        assert service.get("healthcheck", {}).get("test") or name in ("api-server", "triton-cpu"), name  # their images'
        assert service.get("mem_limit") or name == "triton", name  # whose models need what they need
        assert service["stop_grace_period"] in ("30s", "1m0s"), name


def test_only_workers_have_the_engine_s_socket_and_none_is_root(settings: Path) -> None:
    for name, service in services(settings, *PROFILES).items():
        socket_mounted = any("docker.sock" in volume["source"] for volume in service.get("volumes", []))
        assert socket_mounted is name.startswith("worker"), name
        if service["image"].startswith("nightshift/"):
            assert service["cap_drop"] == ["ALL"] and service.get("user") in (None, ""), name


def test_jobs_have_an_image_for_each_of_their_environments(settings: Path) -> None:
    images = json.loads(services(settings)["worker"]["environment"]["NIGHTSHIFT_JOB_IMAGES"])
    assert set(images) == {
        "training_jobs", "conversion_jobs", "conversion_jobs.build_plan", "conversion_jobs.verify_plan", "detection",
    }  # fmt: skip
    built = subprocess.run([str(ROOT / "docker" / "build"), "--help"], capture_output=True, text=True).stdout
    assert all(image.partition("/")[2].partition(":")[0] in built for image in images.values())


def test_workers_reserve_gpus_by_id_and_only_where_a_profile_asks(settings: Path) -> None:
    found = services(settings, "gpu", "t4", "serving")
    assert found["worker-t4"]["environment"]["NIGHTSHIFT_JOB_GPU_COMPUTE_CAPABILITY"] == "7.5"
    assert "NIGHTSHIFT_JOB_GPUS" not in found["worker"]["environment"]
    (device,) = found["triton"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia" and device["device_ids"] == ["0"]


def test_no_secret_stands_in_a_command_line_or_a_health_check(settings: Path) -> None:
    known = dict(line.split("=", 1) for line in settings.read_text().splitlines() if "=" in line)
    secrets = {name: value for name, value in known.items() if SECRET.search(name)}
    assert len(secrets) >= 16 and all(len(value) >= 16 for value in secrets.values())
    found = services(settings, *PROFILES)
    told = {
        name
        for name, value in secrets.items()
        if any(value in str(one["environment"]) for one in found.values() if "environment" in one)
    }
    assert told == set(secrets), "what nobody is given could stand nowhere"
    for service, one in found.items():
        lines = str([one.get("command"), one.get("entrypoint"), one.get("healthcheck")])
        assert not [name for name, value in secrets.items() if value in lines], service


def test_redis_takes_its_password_by_standard_input(settings: Path, tmp_path: Path) -> None:
    """The script of the service, with doubles that tell what they were given."""
    redis = services(settings)["redis"]
    for name, text in (("docker-entrypoint.sh", 'exec "$@"'), ("redis-server", 'echo "$@"; cat')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "REDISCLI_AUTH": "a pass$word"}
    script = redis["command"][-1].replace("$$", "$")
    done = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["- --appendonly yes", 'requirepass "a pass$word"']


def test_the_superuser_s_password_is_given_to_the_server_and_the_maker_of_roles_alone(settings: Path) -> None:
    known = dict(line.split("=", 1) for line in settings.read_text().splitlines() if "=" in line)
    found = services(settings, *PROFILES)
    holders = {name for name, one in found.items() if known["POSTGRES_PASSWORD"] in str(one.get("environment"))}
    assert holders == {"postgres", "databases"}
    urls = str([one["environment"] for name, one in found.items() if name not in holders and "environment" in one])
    assert set(re.findall(r"postgresql(?:\+psycopg2)?://(\w+):", urls)) == set(DATABASES)


def test_the_key_that_signs_packages_is_the_api_server_s_alone_and_the_storage_takes_signed_ones_only(
    settings: Path,
) -> None:
    key = dict(line.split("=", 1) for line in settings.read_text().splitlines() if "=" in line)["SIGNING_KEY"]
    found = services(settings, *PROFILES)
    assert {name for name, service in found.items() if key in json.dumps(service)} == {"api-server"}
    environment = found["model-storage"]["environment"]
    assert environment["MODEL_STORAGE_SIGNATURES"] == "require" and environment["MODEL_STORAGE_PUBLIC_KEYS"]
    connection = json.loads(found["api-server"]["environment"]["AIRFLOW_CONN_NIGHTSHIFT_SIGNING"])
    assert connection["password"] == key


def test_who_signs_without_a_key_reaches_the_storage_with_the_trust_root_as_a_file(
    settings: Path, tmp_path: Path
) -> None:
    def storage(**environment: str) -> tuple[dict[str, str], str]:
        done = config(settings, **environment)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)["services"]["model-storage"]
        (mount,) = (volume for volume in found["volumes"] if volume["target"] == "/run/trust/trusted_root.json")
        assert mount["read_only"]
        return found["environment"], mount["source"]

    environment, source = storage()
    assert (environment["MODEL_STORAGE_IDENTITIES"], source) == ("[]", "/dev/null")
    assert not environment["MODEL_STORAGE_TRUST_ROOT"]
    who = json.dumps([{"identity": "a@example.org", "identity_provider": "https://example.org"}])
    environment, source = storage(SIGNING_IDENTITIES=who, SIGNING_TRUST_ROOT=str(tmp_path / "root.json"))
    assert environment["MODEL_STORAGE_IDENTITIES"] == who
    assert (environment["MODEL_STORAGE_TRUST_ROOT"], source) == (
        "/run/trust/trusted_root.json",
        str(tmp_path / "root.json"),
    )


def test_triton_s_key_is_shared_with_the_model_storage_alone_and_each_start_makes_another(
    settings: Path, tmp_path: Path
) -> None:
    found = services(settings, *PROFILES)
    mounts = {
        name: [v for v in service.get("volumes", []) if v["target"] == "/run/triton"] for name, service in found.items()
    }
    assert {name for name, volumes in mounts.items() if volumes} == {"triton", "triton-cpu", "model-storage"}
    assert mounts["model-storage"][0]["read_only"]
    assert found["model-storage"]["environment"]["MODEL_STORAGE_TRITON_KEY_FILE"] == "/run/triton/key"
    for name, text in (("tritonserver", 'printf "%s\\n" "$@"'), ("chown", "true")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    script = found["triton"]["command"][-1].replace("$$", "$").replace("/run/triton", str(tmp_path))
    keys = set()
    for _ in range(2):
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
        key = (tmp_path / "key").read_text()
        assert len(key) == 48 and (tmp_path / "key").stat().st_mode & 0o777 == 0o600
        restriction = f"{','.join(RESTRICTED)}:{KEY_HEADER}={key}"
        assert {f"--http-restricted-api={restriction}", f"--grpc-restricted-protocol={restriction}"} <= set(
            done.stdout.splitlines()
        )
        keys.add(key)
    assert len(keys) == 2


def test_the_storage_knows_each_token_with_its_scopes_and_airflow_gives_each_its_connection(settings: Path) -> None:
    found = services(settings)
    known = json.loads(found["model-storage"]["environment"]["MODEL_STORAGE_TOKENS"])
    assert {name: tuple(token["scopes"]) for name, token in known.items()} == TOKENS
    start = "AIRFLOW_CONN_NIGHTSHIFT_STORAGE_"
    variables = found["api-server"]["environment"]
    given = {name.removeprefix(start).lower(): json.loads(variables[name]) for name in variables if start in name}
    assert {name: value["password"] for name, value in given.items()} == {
        name: token["token"] for name, token in known.items() if name != OPERATOR
    }
    assert len({token["token"] for token in known.values()}) == len(TOKENS)
    for name, service in found.items():
        held = [token["token"] for token in known.values() if token["token"] in json.dumps(service)]
        assert not held or name in ("model-storage", "api-server"), name


KEYS = {
    "AIRFLOW__API_AUTH__JWT_SECRET": {"api-server", "scheduler"},
    "AIRFLOW__API__SECRET_KEY": {"api-server", "triggerer", *WORKERS},
    "AIRFLOW__CELERY__BROKER_URL": {"scheduler", *WORKERS},
    "AIRFLOW__CELERY__RESULT_BACKEND": {"scheduler", *WORKERS},
    "AIRFLOW__CORE__FERNET_KEY": {"init", "api-server", "scheduler", "dag-processor", "triggerer"},
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": {"init", "api-server", "scheduler", "dag-processor", "triggerer"},
    "NIGHTSHIFT_ADMIN_PASSWORD": {"api-server"},
    "AIRFLOW_CONN_NIGHTSHIFT_BOTTLE": {"api-server"},
}


@pytest.mark.parametrize("variable", KEYS)
def test_each_key_of_airflow_is_where_it_is_needed_and_nowhere_else(settings: Path, variable: str) -> None:
    """By its value as well: under another name it would open as much."""
    found = services(settings, *PROFILES)
    values = {found[name]["environment"][variable] for name in KEYS[variable]}
    (value,) = values
    assert {name for name, service in found.items() if json.dumps(value)[1:-1] in json.dumps(service)} == KEYS[variable]


def test_a_worker_has_two_secrets_of_the_cluster(settings: Path) -> None:
    known = dict(line.split("=", 1) for line in settings.read_text().splitlines() if "=" in line)
    secret = [name for name in known if name.endswith(("PASSWORD", "TOKEN", "_KEY", "_SECRET"))]
    assert len(secret) >= 18
    found = services(settings, *PROFILES)
    for worker in WORKERS:
        held = {name for name in secret if known[name] in json.dumps(found[worker])}
        assert held == {"AIRFLOW_SECRET_KEY", "REDIS_PASSWORD"}, worker


def test_a_worker_s_own_host_needs_its_file_and_two_secrets_only(settings: Path, tmp_path: Path) -> None:
    known = dict(line.split("=", 1) for line in settings.read_text().splitlines() if "=" in line)
    names = ("AIRFLOW_SECRET_KEY", "REDIS_PASSWORD", "DOCKER_GID")
    values = {name: known[name] for name in names} | {
        "NIGHTSHIFT_API_URL": "http://10.0.0.5:8080", "NIGHTSHIFT_REDIS": "10.0.0.5:6379", "NIGHTSHIFT_QUEUE": "gpu",
        "NIGHTSHIFT_WORKER_NAME": "gpu-1",
    }  # fmt: skip
    file = tmp_path / "env"
    file.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    done = config(file, "--file", "docker/worker.yaml", "--project-directory", ".")
    assert done.returncode == 0, done.stderr
    (worker,) = json.loads(done.stdout)["services"].values()
    elsewhere = [name for name, having in KEYS.items() if "worker" not in having]
    assert not [name for name in worker["environment"] if name.startswith("AIRFLOW_CONN") or name in elsewhere]


@pytest.mark.parametrize("missing", ["POSTGRES_PASSWORD", "AIRFLOW_JWT_SECRET", "REDIS_PASSWORD", "MLFLOW_PASSWORD"])
def test_without_a_secret_nothing_starts(settings: Path, tmp_path: Path, missing: str) -> None:
    for text in ("", f"{missing}=\n"):  # an empty one is none
        file = tmp_path / "env"
        kept = [line for line in settings.read_text().splitlines() if not line.startswith(f"{missing}=")]
        file.write_text("\n".join(kept) + f"\n{text}")
        done = config(file)
        assert done.returncode != 0 and f"{missing}" in done.stderr and "run docker/secrets" in done.stderr


def test_no_secret_has_a_default() -> None:
    for file in ("docker/cluster.yaml", "docker/airflow.yaml", "docker/worker.yaml", "docker-compose.yaml"):
        for line in (ROOT / file).read_text().splitlines():
            for part in line.split("${")[1:]:
                name, _, rest = part.partition("}")[0].partition(":")
                if name.endswith(("PASSWORD", "TOKEN", "_KEY", "_SECRET")) and not name.startswith("S3_"):
                    assert rest.startswith("?"), f"{file}: {name} does not have to be set"

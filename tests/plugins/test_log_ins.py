"""Who can make a log-in of Airflow: the real API server is shown tokens for an administrator who does not exist.

`tests/containers/test_cluster.py` tries whatever a worker of a cluster holds.
"""

import httpx
import pytest

from local.settings import Settings
from tests.support.airflow import Airflow, signed

NOBODY = {"sub": "nobody", "role": "admin"}
REFUSED = (401, 403)


def log_in(airflow: Airflow, token: str) -> int:
    """Return what the API server answers to the holder of a token who asks for what administrators may read."""
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.get(f"{airflow.url}/api/v2/connections", headers=headers, timeout=30).status_code


@pytest.mark.parametrize("algorithm", ["HS256", "HS512"])
def test_the_key_of_the_log_servers_makes_no_log_in(airflow: Airflow, algorithm: str) -> None:
    key = Settings(airflow.state).secrets["airflow_api"]
    for audience in ("apache-airflow", "task-instance-logs"):
        assert log_in(airflow, signed(key, algorithm=algorithm, aud=audience, **NOBODY)) in REFUSED


def test_a_token_for_a_task_or_a_form_is_no_log_in_while_the_same_key_makes_one(airflow: Airflow) -> None:
    key = Settings(airflow.state).secrets["airflow_jwt"]
    for audience in ("urn:airflow.apache.org:task", "nightshift.operations.page"):
        assert log_in(airflow, signed(key, aud=audience, **NOBODY)) in REFUSED
    assert log_in(airflow, signed(key, aud="apache-airflow", seconds=-60, **NOBODY)) in REFUSED
    assert log_in(airflow, signed(key, aud="apache-airflow", **NOBODY)) == 200, "why no worker may have it"

"""Client of the collection API: which pictures a group has, and the metadata of its picsets."""

from __future__ import annotations

from typing import Any

import httpx

from jobkit import settings
from jobkit.errors import ConfigurationError, TransientError
from nightshift_common.http_errors import detail_of
from training_jobs.data import http_client
from training_jobs.data.listing import Listed

# What the older loader asks for: a group is everything that was collected for it, checked by a person or not.
MODES = ["PREPARING", "CHECKING", "VALIDATED"]
PICSETS_A_REQUEST = 200


class Collect:
    """A session with the collection API that the environment names."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        self.url = settings.require(settings.COLLECT_URL).rstrip("/")
        self.files_url = settings.require(settings.COLLECT_FILES_URL).rstrip("/")
        login, password = settings.require(settings.COLLECT_LOGIN), settings.require(settings.COLLECT_PASSWORD)
        answer = self._post("/login", {"login": login, "password": password}, {})
        if not isinstance(token := answer.get("token"), str):
            raise ConfigurationError(f"{self.url}/login answered without a token: is this a collection API?")
        self.headers = {"Authorization": f"bearer {token}"}

    def pictures(self, group: str, modes: list[str]) -> list[Listed]:
        """Return the pictures of `group`, each with its category as label and its picset as split group.

        Raises:
            ConfigurationError: there is no such group, or it has no pictures in `modes`.
        """
        query = {"listBy": 0, "categories": [], "groups": [group], "mode": modes}
        data = self._post("/meta/pictures", query, self.headers).get("data")
        try:
            found = [
                Listed(
                    source=str(item["filepath"]),
                    split_group=str(item["picsetGuid"]),
                    label=None if "trash" in category.lower() else category,
                )
                for category, pictures in (data or {}).items()
                for item in pictures["pictures"]
            ]
        except (AttributeError, KeyError, TypeError) as error:
            raise ConfigurationError(f"{self.url}/meta/pictures answered in an unknown form: {error!r}") from error
        if not found:
            raise ConfigurationError(f"{self.url} has no pictures of group {group!r} in the modes {', '.join(modes)}")
        return found

    def picsets(self, guids: list[str]) -> dict[str, dict[str, Any]]:
        """Return the metadata of picsets by guid: `{picset: {...}, items: [...]}` as the API sends it."""
        found: dict[str, dict[str, Any]] = {}
        for start in range(0, len(guids), PICSETS_A_REQUEST):
            data = self._post("/meta/picsets", {"guids": guids[start : start + PICSETS_A_REQUEST]}, self.headers).get(
                "data"
            )
            try:
                found |= {str(entry["picset"]["guid"]): entry for entry in data or []}
            except (KeyError, TypeError) as error:
                raise ConfigurationError(f"{self.url}/meta/picsets answered in an unknown form: {error!r}") from error
        return found

    def file_url(self, filepath: str) -> str:
        """Return the address of a picture file."""
        return f"{self.files_url}/{filepath.lstrip('/')}"

    def _post(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
        response = http_client.request(self.client, "POST", f"{self.url}{path}", json=body, headers=headers)
        if response.is_client_error:
            raise ConfigurationError(f"{self.url}{path} answered {response.status_code}: {detail_of(response)}")
        try:
            answer = response.json()
        except ValueError as error:
            raise TransientError(
                f"{self.url}{path} did not answer with JSON but with {response.text[:100]!r}"
            ) from error
        if not isinstance(answer, dict):
            raise ConfigurationError(f"{self.url}{path} answered in an unknown form: {response.text[:100]!r}")
        return answer

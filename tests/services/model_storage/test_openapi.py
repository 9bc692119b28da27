"""The OpenAPI description against the service: Schemathesis sends what it allows, and what it does not."""

from __future__ import annotations

import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import CHECKS
from schemathesis.generation import GenerationMode

from tests.services.model_storage.support import TOKEN, Storage, model_zip

WANTED = ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]


def test_no_input_makes_the_service_fail_and_every_answer_is_as_described(storage: Storage) -> None:
    storage.upload("m", model_zip("m", 2.0))
    schema = schemathesis.openapi.from_url(f"{storage.url}/openapi.json")
    checks = [CHECKS.get_one(name) for name in WANTED]
    for result in schema.get_all_operations():
        operation = result.ok()
        modes = [
            operation.as_strategy(generation_mode=mode) for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        ]

        @settings(
            max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(case=st.one_of(modes), about_a_known_model=st.booleans())
        def sends(case: schemathesis.Case, about_a_known_model: bool) -> None:
            if about_a_known_model and "model" in case.path_parameters:
                case.path_parameters["model"] = "m"
            reply = case.call(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30)
            case.validate_response(reply, checks=checks)

        sends()

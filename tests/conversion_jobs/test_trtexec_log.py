"""What trtexec's logs mean: whole logs, and what a person who reads them says.

`trtexec_logs/` holds the lines that users published with their issues (NVIDIA/TensorRT 106, 149, 1775, 2642, 2793,
4587, 4621, 4690, onnx-tensorrt 425 and 800, tensorrtx 1205, ultralytics 22271 among them) in the frame that the
version's trtexec prints around them; paths, times and sizes are made up. The verdicts were written by hand.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from conversion_jobs.tensorrt.trtexec_log import Failure, failure, skipped_tactics

LOGS = Path(__file__).parent / "trtexec_logs"
# log -> exit code, whether it was to load a plan, kind, what is said
VERDICTS = {
    "new_gpu": (1, False, "configuration", "does not support the GPU .compute 120"),
    "kernel_library_missing": (1, False, "configuration", "library of TensorRT's kernels.*builder_resource.so.10.8.0"),
    "full_gpu_fp16": (1, False, "transient", "memory ran out"),
    "memory_only": (1, False, "transient", "memory ran out"),
    "autotuning_out_of_memory": (1, False, "transient", "memory ran out"),
    "no_implementation": (1, False, "data", "no kernel for /fc/Gemm\\. Next"),
    "cuda_init_memory": (1, False, "transient", "memory ran out"),
    "cuda_init_driver": (1, False, "configuration", "no usable GPU"),
    "no_device": (1, False, "configuration", "no usable GPU"),
    "unknown_cuda_error": (1, False, "configuration", "no usable GPU"),
    "plugin_without_code": (-6, True, "configuration", "no code for the GPU"),
    "skipped_without_code": (1, False, "configuration", "no code for the GPU"),
    "illegal_address": (1, True, "data", "CUDA error 700"),
    "plugin_found_full_gpu": (1, False, "transient", "memory ran out"),
    "plugin_missing": (1, False, "data", "operator TRTBatchedNMS"),
    "plugin_missing_8": (1, False, "data", "operator Round"),
    "parse_failed": (1, False, "data", r"node number 94 \[Constant"),
    "file_missing": (1, False, "configuration", "cannot open model.onnx"),
    "unknown_option_10": (1, False, "configuration", "does not know --workspace"),
    "unknown_option_11": (1, False, "configuration", "does not know --fp16"),
    "plan_of_another_version": (0, True, "configuration", "another version of TensorRT"),
    "plan_incompatible": (1, True, "configuration", "another version of TensorRT"),
    "plan_of_another_gpu": (1, True, "configuration", "expects compute 7.5, this one is 8.6"),
    "damaged_plan": (0, True, "data", "could not be read"),
    "load_out_of_memory": (1, True, "transient", "memory ran out"),
    "disk_full": (1, False, "transient", "disk is full"),
    "internal_error": (1, False, "transient", "cause that is not known.*Assertion !n13"),
    "internal_error_streamed": (1, False, "transient", "cause that is not known.*Assertion !n13"),
    "full_gpu_streamed": (1, False, "transient", "memory ran out"),
    "no_implementation_streamed": (1, False, "data", "no kernel for /fc/Gemm"),
}
SUCCESSES = {  # log -> whether it was to load a plan, tactics that were skipped
    "plugin_found": (False, 2),
    "built_with_skips_8": (False, 2),
    "loaded": (True, 0),
    "loaded_8.0": (True, 0),
}


def read(name: str) -> str:
    return (LOGS / f"{name}.log").read_text()


@pytest.mark.parametrize("name", VERDICTS)
def test_a_failed_run_has_the_verdict_of_a_person_who_reads_its_log(name: str) -> None:
    exit_code, loads, kind, says = VERDICTS[name]
    found = failure(read(name), exit_code, loads=loads)
    assert found is not None
    assert found.kind == kind, str(found)
    assert re.search(says, str(found), re.DOTALL), str(found)


@pytest.mark.parametrize("name", SUCCESSES)
def test_a_run_that_passed_is_none_and_each_tactic_that_it_skipped_counts_once(name: str) -> None:
    loads, skipped = SUCCESSES[name]
    assert failure(read(name), 0, loads=loads) is None
    assert skipped_tactics(read(name)) == skipped


def test_every_log_has_a_verdict() -> None:
    assert {path.stem for path in LOGS.iterdir()} == set(VERDICTS) | set(SUCCESSES)


@pytest.mark.parametrize("name", [name for name, verdict in VERDICTS.items() if verdict[0] == 1])
def test_the_lines_with_which_every_failed_build_ends_tell_no_cause(name: str) -> None:
    """The real trtexec prints them after whatever went wrong; a log without them has the same verdict."""
    ends = ("Engine could not be created", "Building engine failed", "Failed to create engine", "Engine set up failed")
    shorter = "".join(line for line in read(name).splitlines(keepends=True) if not any(end in line for end in ends))
    loads = VERDICTS[name][1]
    assert failure(shorter, 1, loads=loads) == failure(read(name), 1, loads=loads)


@pytest.mark.parametrize(
    "symptom",
    [
        "[E] Error Code 2: OutOfMemory (Requested size was 1 bytes.)",
        "[V] [TRT] --------------- Timing Runner: /conv (Cask)",
    ],
)
def test_reading_grows_with_the_log_and_no_faster(symptom: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: how many characters the rules look at, of a log and of one that is ten times as long."""
    from conversion_jobs.tensorrt import trtexec_log

    looked_at = 0

    class Counting:
        def __init__(self, pattern: re.Pattern[str]) -> None:
            self.pattern = pattern

        def search(self, text: str) -> re.Match[str] | None:
            nonlocal looked_at
            looked_at += len(text)
            return self.pattern.search(text)

    symptoms = [
        trtexec_log._Symptom(Counting(s.pattern), s.kind, s.cause, s.next_step, s.as_warning)  # type: ignore[arg-type]
        for s in trtexec_log._SYMPTOMS
    ]
    monkeypatch.setattr(trtexec_log, "_SYMPTOMS", tuple(symptoms))
    counts = []
    for lines in (1_200, 12_000):
        looked_at = 0
        text = read("full_gpu_fp16") + f"{symptom}\n" * lines
        assert isinstance(failure(text, 1), Failure)
        counts.append(looked_at)
    assert counts[1] <= 10 * counts[0]


def test_a_line_of_a_megabyte_is_read_to_its_bound() -> None:
    text = "[E] " + "parsing node number " * 50_000 + "\n" + read("no_implementation")
    found = failure(text, 1)
    assert found is not None
    assert found.kind == "data"

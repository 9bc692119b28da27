"""The gate's rules, one by one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jobkit import job
from jobkit.bottle import FolderBottle
from jobkit.errors import ConfigurationError, DataValidationError
from nightshift_common.options.gate import GateOptions
from tests.support.reports import assert_stands_alone, charts_of, text_of
from training_jobs import gate
from training_jobs.gate import Decision, decide
from training_jobs.scoring.evaluation import Comparison, Evaluation, Gain, Reference, Scores, Slice, read_evaluation
from training_jobs.scoring.evidence import interval, spent_at
from training_jobs.scoring.history import best_so_far
from training_jobs.scoring.planning import PlanArguments, needed

ROOT = Path(__file__).resolve().parents[2]


def scores(version: str, accuracy: float, slices: dict[str, tuple[float, int]] | None = None) -> Scores:
    parts = slices or {"class/ant": (accuracy, 100), "class/bee": (accuracy, 100)}
    return Scores(
        version=version,
        metrics={"accuracy": accuracy, "macro_f1": accuracy - 0.01, "log_loss": 0.1, "ece": 0.01},
        slices={name: Slice(support=n, precision=f1, recall=f1, f1=f1) for name, (f1, n) in parts.items()},
        confusion=[[1]],
    )


def evaluation(candidate: Scores, champion: Scores | None) -> Evaluation:
    comparison = None
    if champion:
        gains = {
            name: Gain(value=candidate.metrics[name] - champion.metrics[name], standard_error=0.004)
            for name in ("accuracy", "macro_f1")
        }
        comparison = Comparison(pictures=200, only_candidate_right=5, only_champion_right=1, p_value=0.22, gains=gains)
    return Evaluation(
        group="g", snapshot_id="s", experiment="models/g/v__1", model_name="g", labels=["ant", "bee"], pictures=200,
        candidate=candidate, champion=champion, comparison=comparison, mistakes=[],
    )  # fmt: skip


MEASURED = {"min_gain": 0.0, "undecided": "promote"}  # what was promoted before there were intervals


def judge(candidate: Scores, champion: Scores | None, **rules: object) -> Decision:
    return decide(evaluation(candidate, champion), GateOptions.model_validate({"metric": "accuracy", **rules}))


@pytest.mark.parametrize(("value", "promote"), [(0.969, False), (0.97, True), (0.98, True)])
def test_the_floor(value: float, promote: bool) -> None:
    decision = judge(scores("new", value), None, floor=0.97)
    assert decision.promote is promote
    assert ("reaches the floor of 0.97" if promote else "is below the floor of 0.97") in decision.reasons[0]
    assert decision.failed == ([] if promote else [decision.reasons[0]])


def test_without_a_champion_the_floor_alone_decides() -> None:
    decision = judge(scores("new", 0.5), None, floor=0.4, min_gain=0.5)
    assert decision.promote
    assert "no champion" in decision.reasons[1]


@pytest.mark.parametrize(
    ("value", "min_gain", "promote"),
    [(0.96, 0.01, True), (0.96, 0.02, False), (0.95, 0.0, True), (0.949, 0.0, False), (0.946, -0.005, True)],
)
def test_where_too_few_pictures_decide_nothing_the_numbers_as_measured_may(
    value: float, min_gain: float, promote: bool
) -> None:
    decision = judge(scores("new", value), scores("0.0.3", 0.95), min_gain=min_gain, undecided="promote")
    assert (decision.verdict, decision.promote) == ("undecided", promote)
    assert ("meet the rules" in decision.reasons[-1]) is promote
    gain = decision.reasons[1]
    assert "the champion 0.0.3 (0.9500)" in gain
    assert f"{value - 0.95:+.4f}" in gain
    assert "Standard error 0.0040" in gain
    assert "candidate alone is right on 5 pictures, the champion 0.0.3 alone on 1 (McNemar p = 0.22)" in gain
    assert decision.undecided == [gain]


def test_the_metric_that_is_asked_for_counts() -> None:
    assert judge(scores("new", 0.95), None, floor=0.95).promote
    assert not judge(scores("new", 0.95), None, floor=0.95, metric="macro_f1").promote


def test_a_class_may_not_lose_more_than_the_limit() -> None:
    before = {"class/ant": (0.99, 100), "class/bee": (0.90, 40)}
    after = {"class/ant": (1.0, 100), "class/bee": (0.84, 40)}
    decision = judge(scores("new", 0.97, after), scores("old", 0.95, before), max_slice_loss=0.05, **MEASURED)
    assert not decision.promote
    (reason,) = decision.failed
    assert "class/bee loses 0.0600 of F1 (0.9000 to 0.8400, 40 golden pictures)" in reason
    assert judge(scores("new", 0.97, after), scores("old", 0.95, before), max_slice_loss=0.06, **MEASURED).promote


def test_a_class_with_few_pictures_does_not_veto_but_is_named() -> None:
    before, after = {"class/bee": (1.0, 19)}, {"class/bee": (0.8, 19)}
    decision = judge(scores("new", 0.97, after), scores("old", 0.95, before), max_slice_loss=0.05, **MEASURED)
    assert decision.promote
    assert "class/bee loses 0.2000" in decision.reasons[2]
    assert "no veto" in decision.reasons[2]
    assert not judge(scores("new", 0.97, after), scores("old", 0.95, before), min_support=19, **MEASURED).promote


def test_every_broken_rule_is_named() -> None:
    before, after = {"class/ant": (0.9, 50), "class/bee": (0.9, 50)}, {"class/ant": (0.1, 50), "class/bee": (0.2, 50)}
    decision = judge(scores("new", 0.5, after), scores("old", 0.9, before), floor=0.97)
    assert len(decision.failed) == 4


def test_an_evaluation_without_its_comparison_is_refused() -> None:
    broken = evaluation(scores("a", 0.9), scores("b", 0.9)).model_copy(update={"comparison": None})
    with pytest.raises(DataValidationError, match="evaluate again"):
        decide(broken, GateOptions(metric="macro_f1"))


def run(context: job.Context, bottle: FolderBottle, found: Evaluation, **options: object) -> gate.Result:
    bottle.write("evaluations/g/s/v.json", found.model_dump_json())
    return gate.run(gate.Arguments(report="evaluations/g/s/v.json", metric="accuracy", **options), context)


@pytest.mark.parametrize(
    ("lost", "floor", "says"),
    [(0.2, 0.5, "reject: class/bee loses 0.2000 of F1"), (0.0, 0.97, "reject: accuracy 0.9600 on ")],
    ids=["a slice", "the floor"],
)
def test_the_sentence_names_the_rule_that_stands_in_the_way(lost: float, floor: float, says: str) -> None:
    before, after = {"class/bee": (0.9, 50)}, {"class/bee": (0.9 - lost, 50)}
    found = evaluation(scores("new", 0.96, after), scores("old", 0.95, before))
    rules = GateOptions(metric="accuracy", min_gain=-0.01, floor=floor)
    assert gate.decide(found, rules).sentence.startswith(says)


def test_a_rejection_stops_the_run_with_its_reasons(context: job.Context, bottle: FolderBottle) -> None:
    result = run(context, bottle, evaluation(scores("new", 0.9), scores("old", 0.95)), floor=0.5)
    assert result.decision == "reject"
    assert result.stop_here is not None
    assert result.stop_here.outcome == "rejected"
    assert "new was rejected: accuracy 0.9000 is a gain of -0.0500" in result.stop_here.reason
    assert result.sentence.startswith("reject: the true gain in accuracy over the champion old is between -0.06")
    assert "floor" not in result.stop_here.reason


def test_a_promotion_goes_on(context: job.Context, bottle: FolderBottle) -> None:
    result = run(context, bottle, evaluation(scores("new", 0.96), scores("old", 0.95)))
    assert (result.decision, result.stop_here, len(result.reasons)) == ("promote", None, 3)
    (evidence,) = result.evidence
    assert evidence.lower < 0.01 < evidence.upper


@pytest.mark.parametrize(
    ("policy", "decided", "outcome"), [("keep", "keep", "undecided"), ("reject", "reject", "rejected")]
)
def test_what_is_undecided_is_left_to_the_policy(
    context: job.Context, bottle: FolderBottle, policy: str, decided: str, outcome: str
) -> None:
    found = evaluation(scores("new", 0.951), scores("old", 0.95))
    result = run(context, bottle, found, min_gain=0.0, undecided=policy)
    assert (result.verdict, result.decision) == ("undecided", decided)
    assert result.stop_here is not None
    assert result.stop_here.outcome == outcome
    assert "golden pictures would decide" in result.stop_here.reason
    assert f"gate.undecided is {policy}" in result.stop_here.reason


def test_the_report_for_people_has_the_verdict_the_rules_and_how_far_the_numbers_are_from_them(
    context: job.Context, bottle: FolderBottle
) -> None:
    before, after = {"class/ant": (0.9, 50), "class/bee": (0.9, 50)}, {"class/ant": (0.95, 50), "class/bee": (0.7, 50)}
    found = evaluation(scores("new", 0.96, after), scores("old", 0.95, before))
    result = run(context, bottle, found, min_gain=0.002, max_slice_loss=0.1)
    page = bottle.read("evaluations/g/s/v.gate.html").decode()
    assert_stands_alone(page)
    text = text_of(page)
    assert "new: reject: class/bee loses 0.2000" in text
    assert all(reason in text for reason in result.reasons)
    proven, gains, slices = charts_of(page).values()
    (bounds,) = proven["data"]
    (found_bounds,) = result.evidence
    assert bounds["x"] == pytest.approx([found_bounds.gain])
    assert bounds["customdata"][0][1:3] == pytest.approx([found_bounds.lower, found_bounds.upper])
    assert proven["layout"]["shapes"][0]["x0"] == 0.002
    (drawn,) = gains["data"]
    assert drawn["x"] == pytest.approx([0.01, 0.01])
    assert drawn["customdata"][0][1:3] == pytest.approx([0.01 - 1.96 * 0.004, 0.01 + 1.96 * 0.004])
    assert gains["layout"]["shapes"][0]["x0"] == 0.002
    named = {
        about[0]: (one["name"], x)
        for one in slices["data"]
        for about, x in zip(one["customdata"], one["x"], strict=True)
    }
    assert named == {"class/bee": ("not met", pytest.approx(-0.2)), "class/ant": ("met", pytest.approx(0.05))}
    assert slices["layout"]["shapes"][0]["x0"] == -0.1


def test_a_first_model_has_a_report_without_a_comparison(context: job.Context, bottle: FolderBottle) -> None:
    run(context, bottle, evaluation(scores("new", 0.96), None))
    page = bottle.read("evaluations/g/s/v.gate.html").decode()
    assert charts_of(page) == {} and "new: promote: accuracy" in text_of(page)


def test_an_evaluation_that_is_not_there_or_damaged_is_refused(context: job.Context, bottle: FolderBottle) -> None:
    with pytest.raises(DataValidationError, match=r"evaluations/none\.json is not in the bottle"):
        gate.run(gate.Arguments(report="evaluations/none.json"), context)
    bottle.write("evaluations/torn.json", '{"group": "g"')
    with pytest.raises(DataValidationError, match="not a valid evaluation"):
        gate.run(gate.Arguments(report="evaluations/torn.json"), context)


@pytest.mark.parametrize("option", ["--floor=1.5", "--max_slice_loss=-1", "--min_support=0"])
def test_a_rule_out_of_bounds_is_a_configuration_error(option: str) -> None:
    with pytest.raises(ConfigurationError, match=option[2:].partition("=")[0]):
        job.parse(gate.Arguments, ["--report", "x", option])


@pytest.mark.parametrize("metric", ["loss", "log_loss", "ece"])
def test_a_metric_that_is_not_there_or_of_which_less_is_better_decides_nothing(metric: str) -> None:
    with pytest.raises(ConfigurationError, match=f"gate.metric is '{metric}'; .*more is better: accuracy, macro_f1"):
        judge(scores("new", 0.9), None, metric=metric)


def test_an_evaluation_of_another_kind_is_judged_by_its_own_metric_and_slices() -> None:
    def of(version: str, f1: float, small: float) -> Scores:
        slices = {"size/small": Slice(support=50, score=small), "size/large": Slice(support=50, score=0.9)}
        return Scores(version=version, metrics={"f1": f1, "ap": 0.4}, slices=slices, slice_metric="recall")

    found = evaluation(of("new", 0.8, 0.5), None).model_copy(
        update={
            "champion": of("old", 0.7, 0.7),
            "gate_metrics": ["f1"],
            "comparison": Comparison(
                pictures=100, only_candidate_right=9, only_champion_right=2, p_value=0.06,
                gains={"f1": Gain(value=0.1, standard_error=0.02)},
            ),
        }
    )  # fmt: skip
    decision = decide(found, GateOptions(metric="f1", max_slice_loss=0.1))
    assert not decision.promote
    assert decision.failed == [
        "size/small loses 0.2000 of recall (0.7000 to 0.5000, 50 golden pictures): more than the 0.1 that is allowed"
    ]


def test_an_evaluation_of_before_there_were_other_kinds_is_still_read(bottle: FolderBottle) -> None:
    old = json.loads(evaluation(scores("new", 0.96), scores("old", 0.9)).model_dump_json())
    for name in ("kind", "gate_metrics"):
        del old[name]
    for side in ("candidate", "champion"):
        del old[side]["slice_metric"]
        for part in old[side]["slices"].values():
            assert part.pop("score") == part["f1"]
    bottle.write("old.json", json.dumps(old))
    assert decide(read_evaluation(bottle, "old.json"), GateOptions(metric="accuracy")).promote


def test_the_gate_as_a_process_needs_no_heavy_library(bottle: FolderBottle, tmp_path: Path) -> None:
    bottle.write("e.json", evaluation(scores("new", 0.96), None).model_dump_json())
    code = (
        "import sys; from training_jobs import gate; from jobkit import job; from pathlib import Path;"
        "print(gate.run(gate.Arguments(report='e.json'), job.Context(Path('.'), None)).decision);"
        "print([m for m in ('torch', 'mlflow', 'sklearn', 'numpy', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["promote", "[]"], done.stderr


def test_mlflow_shows_the_decision_on_the_jobs_run_and_on_the_dag_runs(
    bottle: FolderBottle, tmp_path: Path, mlflow_url: str
) -> None:
    from mlflow import MlflowClient

    from nightshift_common.task_instance import TaskInstanceKey

    task_instance = TaskInstanceKey(dag_id="retrain_gate_test", run_id="r1", task_id="gate")
    context = job.Context(tmp_path, task_instance)
    run(context, bottle, evaluation(scores("new", 0.5), None), floor=0.9)
    context.close(succeeded=True)
    api = MlflowClient(mlflow_url)
    ours = api.get_run(context.tracking.run_id)
    parent = api.get_run(context.tracking.parent_id)
    for stored in (ours, parent):
        assert stored.data.tags["nightshift.decision"] == "reject"
        assert "below the floor of 0.9" in stored.data.tags["nightshift.reasons"]
    assert json.loads(ours.data.params["gate.floor"]) == 0.9


def test_the_champion_becomes_the_best_so_far_only_where_that_is_shown(
    context: job.Context, bottle: FolderBottle
) -> None:
    def judged(value: float, error: float) -> str | None:
        found = evaluation(scores("new", 0.96), scores("0.0.9", 0.95))
        against = found.comparison
        assert against is not None
        ahead = against.model_copy(update={"gains": {"accuracy": Gain(value=value, standard_error=error)}})
        earlier = Reference(
            role="founding champion", version="0.0.1", metrics={"accuracy": 0.9}, candidate=ahead, champion=ahead
        )
        run(context, bottle, found.model_copy(update={"references": [earlier]}))
        return best_so_far(bottle, "g", "g")

    assert judged(0.01, 0.005) is None
    assert judged(-0.05, 0.005) is None
    assert judged(0.05, 0.005) == "0.0.9"


@pytest.mark.parametrize(("margin", "classes", "least"), [(0.01, 50, 10_000), (0.02, 2, 2_500), (0.05, 200, 10_000)])
def test_the_plan_keeps_its_promise(margin: float, classes: int, least: int) -> None:
    """Equal models on as many pictures as it says: four of five pass; on a third of them, few."""
    arguments = PlanArguments(margin=margin, classes=classes)
    planned = needed(arguments, margin)
    assert planned.pictures >= least
    assert planned.pictures_a_class * classes >= planned.pictures
    assert needed(arguments, margin / 2).pictures > planned.pictures or planned.decided_by == "the classes"

    def passing(pictures: int) -> float:
        random = np.random.default_rng(3)
        draws = random.multinomial(pictures, [0.02, 0.02, 0.96], size=300)
        level, promoted = spent_at(90, 0.05), 0
        for ours, theirs, _ in draws:
            gain = (ours - theirs) / pictures
            error = ((ours + theirs) / pictures / pictures) ** 0.5
            found = Gain(value=gain, standard_error=error, groups=pictures, effective=float(pictures))
            promoted += interval(found, level).lower >= -margin
        return promoted / len(draws)

    assert passing(planned.pictures) >= 0.92, "the champion alone may refuse one in twenty"
    if planned.decided_by == "the margin":
        assert passing(planned.pictures) <= 0.98
        assert passing(planned.pictures // 3) < 0.4


def test_the_plan_is_a_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training_jobs.gate", "plan", "--margin", "0.02", "--classes", "4"]
    environment = {**os.environ, "NIGHTSHIFT_JOB_DIR": str(tmp_path)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    said = json.loads((tmp_path / "result.json").read_text())["result"]["needed"]
    assert said == needed(PlanArguments(margin=0.02, classes=4), 0.02).model_dump()

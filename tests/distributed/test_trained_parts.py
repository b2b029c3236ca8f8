"""Jobs whose learner has other runs as parts: a teacher, experts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

from metadist.config import Job, build_experiment, identity
from metadist.distributed.evaluate import EvaluationRequest, evaluate_run
from metadist.distributed.run import RunOptions, open_run, resume_run, with_parts
from metadist.testing.observers import Notes
from metadist.training.evaluation import paired
from metadist.training.start_values import read_start
from tests.distributed import test_init_from

MODEL = {"kind": "mlp", "hidden": [4]}
STUDENT = {"kind": "maml", "inner_lr": 0.1}


def job(tmp_path: Path, **changes: Any) -> Job:
    return test_init_from.job(tmp_path, **{"model": MODEL} | changes)


def run(tmp_path: Path, name: str, **changes: Any) -> dict[str, Any]:
    return test_init_from.run(tmp_path, name, **{"model": MODEL} | changes)


def distilled(teacher: Any, **settings: Any) -> dict[str, Any]:
    return {"kind": "distill", "teacher": teacher, "student": STUDENT} | settings


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of another learner, with another model and with parameters beside its network's."""
    folder = tmp_path_factory.mktemp("teacher")
    run(folder, "run", model={"kind": "mlp", "hidden": [8, 8]}, learner={"kind": "metasgd"})
    return folder / "run"


def test_the_run_does_not_need_its_teacher_any_more(tmp_path: Path, teacher: Path) -> None:
    source = Path(shutil.copytree(teacher, tmp_path / "source"))
    before = read_start(str(source)).tensors
    whole = run(tmp_path, "whole", test=True, learner=distilled(str(source)))
    run(tmp_path, "half", stop_after=2, learner=distilled(str(source)))
    shutil.rmtree(source)
    notes = Notes()
    ended = resume_run(str(tmp_path / "half"), lambda old: old, notes, RunOptions())
    assert ended["params_sha256"] == whole["params_sha256"]
    assert ended["test"] == whole["test"]
    kept = safetensors.torch.load_file(tmp_path / "half" / "frozen.safetensors")
    assert kept.keys() == {f"teacher.{name}" for name in before}
    assert all(torch.equal(kept[f"teacher.{name}"], value) for name, value in before.items())
    judged = evaluate_run(str(tmp_path / "half"), EvaluationRequest(), notes, RunOptions())
    assert judged["test"]["per_step"] == whole["test"]["per_step"]
    assert judged["test"]["beside"] == whole["test"]["beside"]


def test_the_report_shows_both(tmp_path: Path, teacher: Path) -> None:
    summary = run(tmp_path, "run", test=True, learner=distilled(str(teacher)))
    ours, theirs = (
        evaluate_run(str(folder), EvaluationRequest(), Notes(), RunOptions()) for folder in (tmp_path / "run", teacher)
    )
    alone, apart = theirs["test"], paired(ours["scores"].values, theirs["scores"].values)
    expected = {key: alone[key] for key in ("accuracy", "ci95", "loss")}
    expected |= {"difference": apart.mean, "difference_ci95": apart.ci95}
    assert summary["test"]["beside"] == {"teacher": expected}
    costs = summary["costs"]
    assert (costs["learner"]["parameters"], costs["teacher"]["parameters"]) == (12 + 10, 24 + 72 + 18)
    assert costs["learner"]["milliseconds"] > 0
    page = (tmp_path / "run" / "report.md").read_text()
    assert f"| teacher | 114 | {costs['teacher']['milliseconds']:.2f} | {100 * alone['accuracy']:.2f} ±" in page
    assert f" % | {100 * apart.mean:+.2f} ± {100 * apart.ci95:.2f} |" in page


def test_path_is_placement_and_content_is_identity(tmp_path: Path, teacher: Path) -> None:
    moved = shutil.copytree(teacher, tmp_path / "moved")
    run(tmp_path, "run", stop_after=2, learner=distilled(str(teacher)))
    written = open_run(str(tmp_path / "run"))[1]
    assert written.learner.teacher.sha256 == read_start(str(teacher)).sha256
    there = with_parts(job(tmp_path, learner=distilled({"path": str(moved)})))[0]
    assert identity(there, None) == identity(written, None)
    assert identity(there, None)["learner"]["teacher"]["job"]["learner"]["kind"] == "metasgd"
    # The same name again goes on, although the teacher is elsewhere now.
    assert run(tmp_path, "run", learner=distilled(str(moved)))["step"] == 4


def test_a_distilled_run_is_a_teacher_too(tmp_path: Path, teacher: Path) -> None:
    run(tmp_path, "first", learner=distilled(str(teacher)))
    second = run(tmp_path, "second", test=True, learner=distilled(str(tmp_path / "first"), weight=1.0))
    first = evaluate_run(str(tmp_path / "first"), EvaluationRequest(), Notes(), RunOptions())["test"]
    assert second["test"]["beside"]["teacher"]["loss"] == first["loss"]


@pytest.mark.parametrize("kind", ["maml", "hybrid"])
def test_what_a_teacher_has_frozen_does_not_adapt(tmp_path: Path, kind: str) -> None:
    learner = {"kind": kind, "inner_lr": 0.5, "inner_steps": 2}
    run(tmp_path, "frozen", learner=learner, freeze=["layers.*"])
    run(tmp_path, "again", test=True, learner=distilled(str(tmp_path / "frozen")))
    alone = evaluate_run(str(tmp_path / "frozen"), EvaluationRequest(), Notes(), RunOptions())["test"]
    judged = evaluate_run(str(tmp_path / "again"), EvaluationRequest(), Notes(), RunOptions())["test"]
    assert judged["beside"]["teacher"]["loss"] == alone["loss"]
    told = open_run(str(tmp_path / "again"))[1].learner.teacher.job
    assert told["freeze"] == ["layers.*"]
    run(tmp_path, "free", learner=learner)
    run(tmp_path, "other", learner=distilled(str(tmp_path / "free")))
    assert "freeze" not in open_run(str(tmp_path / "other"))[1].learner.teacher.job


def test_a_start_and_frozen_layers_are_the_students(tmp_path: Path, teacher: Path) -> None:
    run(tmp_path, "alone", learner=STUDENT)
    start = read_start(str(tmp_path / "alone")).tensors
    settings = {"init_from": str(tmp_path / "alone"), "freeze": ["layers.*"], "learner": distilled(str(teacher))}
    run(tmp_path, "run", **settings)
    after = read_start(str(tmp_path / "run")).tensors
    assert torch.equal(after["layers.0.weight"], start["layers.0.weight"])
    assert not torch.equal(after["head.weight"], start["head.weight"])


def test_another_teacher_is_refused(tmp_path: Path, teacher: Path) -> None:
    run(tmp_path, "run", stop_after=2, learner=distilled(str(teacher)))
    written = open_run(str(tmp_path / "run"))[1].learner.teacher
    run(tmp_path, "other", learner={"kind": "metasgd"}, model={"kind": "mlp", "hidden": [8, 8]}, seed=1)
    with pytest.raises(ValueError, match=r"expected the same job; changed: learner.teacher.sha256"):
        run(tmp_path, "run", learner=distilled(str(tmp_path / "other")))
    with pytest.raises(ValueError, match=r"learner.teacher.sha256: got .* The run or file has changed since"):
        run(tmp_path, "new", learner=distilled({"path": str(tmp_path / "other"), "sha256": written.sha256}))
    path = tmp_path / "run" / "frozen.safetensors"
    safetensors.torch.save_file({n: v + 1 for n, v in safetensors.torch.load_file(path).items()}, path)
    with pytest.raises(ValueError, match="beside frozen parameters of sha256"):
        resume_run(str(tmp_path / "run"), lambda old: old, Notes(), RunOptions())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "nowhere"}, r"learner.teacher.path: got 'nowhere'.*There is nothing there"),
        ({"teacher": ""}, "learner.teacher.path: got ''|path: got ''"),
        ({"teacher": "RUN.safetensors"}, "learner.teacher: got .* expected a run folder, or one of"),
        ({"teacher": {"path": "RUN", "sha": "0"}}, "learner.teacher.sha: got '0', .* Did you mean 'sha256'"),
        ({"student": {"kind": "reptile"}}, "learner.student.kind: got 'reptile', expected a learner whose"),
        ({"student": {"kind": "task_relation"}}, "learner.student.kind: got 'task_relation', expected a learner whose"),
        ({"student": {"kind": "distill", "teacher": "RUN", "student": STUDENT}}, "learner.student.kind: got 'distill'"),
        ({"student": {"kind": "mamll"}}, "learner.student.kind: got 'mamll', .* Did you mean 'maml'"),
        ({"student": {"kind": "maml", "iner_lr": 1}}, "learner.student.iner_lr: got 1"),
        ({"student": {"kind": "maml", "adapt": ["neck.*"]}}, r"learner.student.adapt.0: got 'neck.\*'"),
        ({"temperature": 0.0}, "learner.temperature: got 0.0"),
        ({"weight": 1.5}, "learner.weight: got 1.5"),
    ],
)
def test_mistakes(tmp_path: Path, teacher: Path, changes: dict[str, Any], message: str) -> None:
    safetensors.torch.save_file({"a": torch.ones(1)}, teacher.with_suffix(".safetensors"))
    settings = json.loads(json.dumps(distilled("RUN") | changes).replace("RUN", str(teacher)))
    with pytest.raises(ValueError, match=message):
        run(tmp_path, "wrong", learner=settings)
    assert not (tmp_path / "wrong").exists()


WAVES = {"tasks": {"kind": "waveform", "ways": 3}, "model": {"kind": "gru"}}
DIGITS = {"data": {"source": "sklearn:digits"}, "tasks": {"kind": "images", "ways": 2}}


@pytest.mark.parametrize(
    ("here", "there", "message"),
    [
        (WAVES, {"tasks": {"kind": "waveform", "ways": 5}}, "tasks with a number of outputs of 3, .* there: 5"),
        (DIGITS, DIGITS | {"data": {"size": 28}, "learner": {"kind": "protonet"}}, "tasks with data.size 8, .*: 28"),
        ({}, {"tasks": {"kind": "linear", "dimension": 5}}, r"tasks with inputs of shape \[2\], .* there: \[5\]"),
        ({}, {"tasks": {"kind": "sinusoid"}}, "tasks with loss cross_entropy, as this job's; there: mse"),
    ],
)
def test_tasks_that_are_not_the_teachers(
    tmp_path: Path, here: dict[str, Any], there: dict[str, Any], message: str
) -> None:
    data = {"data": {"source": "sklearn:digits", "size": 8, "split": {"train": 5, "valid": None, "test": 5}}}
    made = job(tmp_path, **here | data, learner=distilled({"path": "run", "job": there}))
    with pytest.raises(ValueError, match=f"learner.teacher: got 'run', expected a run of {message}"):
        build_experiment(made, "run")


@pytest.mark.parametrize("section", ["model", "learner"])
def test_no_run_has_code_imported(tmp_path: Path, teacher: Path, section: str) -> None:
    source = Path(shutil.copytree(teacher, tmp_path / "source"))
    content = yaml.safe_load((source / "job.yaml").read_text())
    content[section] = {"kind": "nowhere.Own"}
    (source / "job.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=r"learner.teacher: got .* own learners and models, its job names nowhere.Own"):
        run(tmp_path, "wrong", learner=distilled(str(source)))


def test_tensors_of_another_model_are_refused(tmp_path: Path, teacher: Path) -> None:
    source = Path(shutil.copytree(teacher, tmp_path / "source"))
    content = yaml.safe_load((source / "job.yaml").read_text())
    content["model"]["hidden"] = [7]
    (source / "job.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=r"learner.teacher: got .* of another shape: head.weight \(\[2, 8\], here"):
        run(tmp_path, "wrong", learner=distilled(str(source)))


def test_a_student_learns_from_its_teacher_alone(tmp_path: Path, teacher: Path) -> None:
    """The true labels of the query set have no part in its loss."""
    learning: dict[str, Any] = {"optimizer": {"lr": 0.02}, "evaluation": {"every": 80, "tasks": 4, "test_tasks": 100}}
    learning |= {"tasks": {"kind": "linear", "ways": 2, "shots": 5, "batch": 8, "chunk": 8, "query": 5}, "steps": 80}
    run(tmp_path, "teacher", model={"kind": "mlp", "hidden": [16]}, learner={"kind": "maml"}, **learning)
    learner = distilled(str(tmp_path / "teacher"), student={"kind": "maml"}, weight=1.0)
    found = run(tmp_path, "run", test=True, learner=learner, **learning)["test"]
    assert found["accuracy"] > found["from_scratch"] + 0.05
    assert found["accuracy"] > found["beside"]["teacher"]["accuracy"] - 0.05


@pytest.mark.slow
def test_experts_are_weighed(tmp_path: Path, teacher: Path) -> None:
    """The one that was trained for longer weighs more, whatever their models are; a resume needs neither."""
    evaluation = {"every": 30, "tasks": 4, "test_tasks": 10, "query": 3}
    learning = {"optimizer": {"lr": 0.02}, "steps": 60, "evaluation": evaluation}
    source = Path(shutil.copytree(teacher, tmp_path / "source"))
    run(tmp_path, "trained", learner={"kind": "maml"}, **learning)
    experts = [str(tmp_path / "trained"), str(source)]
    fused: dict[str, Any] = {"learner": {"kind": "fusion", "experts": experts, "folds": 2}, "evaluation": evaluation}
    fused["tasks"] = {"kind": "linear", "ways": 2, "shots": 5, "query": 3, "batch": 4, "chunk": 2}
    whole = run(tmp_path, "whole", test=True, **fused)
    found = whole["test"]
    assert list(found["beside"]) == ["experts.0", "experts.1", "average"]
    assert found["figures"]["weights.0"] > 0.5
    assert sum(found["figures"].values()) == pytest.approx(1.0)
    assert found["loss"] < found["beside"]["average"]["loss"]
    assert whole["costs"]["learner"]["parameters"] == 22 + 114
    assert f"weights.0 {found['figures']['weights.0']:.3f}" in (tmp_path / "whole" / "report.md").read_text()
    assert open_run(str(tmp_path / "whole"))[1].model.hidden == [4], "what is said of the model is the first expert's"

    run(tmp_path, "half", stop_after=2, **fused)
    shutil.rmtree(source)
    ended = resume_run(str(tmp_path / "half"), lambda old: old, Notes(), RunOptions())
    assert (ended["params_sha256"], ended["test"]) == (whole["params_sha256"], whole["test"])
    with pytest.raises(ValueError, match="--norm: got 'layer', expected none of it"):
        evaluate_run(str(tmp_path / "whole"), EvaluationRequest(norm="layer"), Notes(), RunOptions())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experts": ["RUN"]}, "learner.experts: got .*, expected two runs at least"),
        ({"experts": ["RUN", "nowhere"]}, "learner.experts.1.path: got 'nowhere'"),
        ({"experts": ["RUN", {"path": "RUN", "sha": 1}]}, "learner.experts.1.sha: got 1"),
        ({"experts": "RUN"}, "learner.experts: got .*, expected a list"),
        ({"inner_lr": 0.0}, "learner.inner_lr: got 0.0"),
        ({"inner_lr": 20.0}, "learner.inner_lr: got 20.0, expected at most 1/uniform = 10"),
        ({"inner_steps": -1}, "learner.inner_steps: got -1"),
        ({"folds": 1}, "learner.folds: got 1"),
        ({"uniform": -0.1}, "learner.uniform: got -0.1"),
        ({"agreement": -1.0}, "learner.agreement: got -1.0"),
    ],
)
def test_mistakes_with_experts(tmp_path: Path, teacher: Path, changes: dict[str, Any], message: str) -> None:
    settings = {"kind": "fusion", "experts": ["RUN", "RUN"]} | changes
    with pytest.raises(ValueError, match=message):
        run(tmp_path, "wrong", learner=json.loads(json.dumps(settings).replace("RUN", str(teacher))))
    assert not (tmp_path / "wrong").exists()


def test_actors_get_the_teacher(ray: Any, tmp_path: Path, teacher: Path) -> None:
    """Its tensors travel with the job: the workers never open its run."""
    settings: dict[str, Any] = {"learner": distilled(str(teacher))}
    alone = run(tmp_path, "alone", test=True, **settings)
    spread = run(tmp_path, "spread", test=True, **settings, runtime="ray", resources={"workers": 2})
    assert spread["params_sha256"] == alone["params_sha256"]
    assert spread["test"] == alone["test"]

"""Contract 7: a user's mistake is one message that names field, value and what was expected, and exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metadist.errors import UserError


def assert_mistake(ended: Any, field: str, value: str, expected: str) -> None:
    """One line on stderr with all three, exit code 2, no traceback."""
    assert ended.code == 2, ended.err
    assert "Traceback" not in ended.err
    lines = [line for line in ended.err.splitlines() if line.startswith("metadist: ")]
    assert len(lines) == 1, ended.err
    assert f"{field}: got {value}" in lines[0]
    assert expected in lines[0].partition(", expected ")[2], lines[0]
    assert ended.out == ""


# (settings of the tiny job, field, value as shown, part of what is expected or advised)
SETTINGS = [
    # names
    (["stpes=3"], "stpes", "3", "Did you mean 'steps'?"),
    (["learner.iner_lr=0.1"], "learner.iner_lr", "0.1", "Did you mean 'inner_lr'?"),
    (["data.split.trian=3"], "data.split.trian", "3", "Did you mean 'train'?"),
    (["data.augment.flipp=true"], "data.augment.flipp", "True", "Did you mean 'flip'?"),
    (["optimizer.groups=[{mach: '*'}]"], "optimizer.groups.0.mach", "'*'", "Did you mean 'match'?"),
    (["a..b=1"], "a", "{'': {'b': 1}}", "one of the keys name, seed"),
    # kinds and choices
    (["learner.kind=mamll"], "learner.kind", "'mamll'", "Did you mean 'maml'?"),
    (["learner.kind=[1]"], "learner.kind", "[1]", "one of maml, "),
    (["learner.kind=null"], "learner.kind", "None", "one of maml, "),
    (["tasks={kind: sinusoids}"], "tasks.kind", "'sinusoids'", "Did you mean 'sinusoid'?"),
    (["runtime=inproces"], "runtime", "'inproces'", "Did you mean 'inprocess'?"),
    (["optimizer.schedule=cosin"], "optimizer.schedule", "'cosin'", "Did you mean 'cosine'?"),
    (["data.channels=2"], "data.channels", "2", "one of 1, 3 or null"),
    (["model.init=he"], "model.init", "'he'", "kaiming"),
    # types
    (["steps=ten"], "steps", "'ten'", "a whole number"),
    (["steps=true"], "steps", "True", "a whole number"),
    (["steps=3.0"], "steps", "3.0", "a whole number"),
    (["steps="], "steps", "None", "a whole number"),
    (["name=5"], "name", "5", "text"),
    (["learner.inner_lr=true"], "learner.inner_lr", "True", "a number"),
    (["learner.inner_lr=.nan"], "learner.inner_lr", "nan", "a number"),
    (["optimizer.lr=1e400"], "optimizer.lr", "inf", "a number"),
    (["learner.first_order=1"], "learner.first_order", "1", "true or false"),
    (["data=[1]"], "data", "[1]", "a section with keys of source"),
    (["data=null"], "data", "None", "a section with keys of source"),
    (["learner=maml"], "learner", "'maml'", "a section with a kind of maml"),
    (["optimizer.groups={match: x}"], "optimizer.groups", "{'match': 'x'}", "a list"),
    (["optimizer.groups=[1]"], "optimizer.groups.0", "1", "a section with keys of match"),
    (["optimizer.groups=[{lr: 0.1}]"], "optimizer.groups.0", "{'lr': 0.1}", "the key match"),
    (["data.split.train=true"], "data.split.train", "True", "a whole number"),
    (["bogus=" + "x" * 5000], "bogus", "\"'xxx", "one of the keys"),
    # values
    (["steps=-1"], "steps", "-1", "at least 0"),
    (["seed=-1"], "seed", "-1", "at least 0"),
    (["learner.inner_lr=0"], "learner.inner_lr", "0", "above 0"),
    (["tasks.ways=-2"], "tasks.ways", "-2", "at least 1"),
    (["tasks.chunk=5"], "tasks.chunk", "5", "at most tasks.batch = 4"),
    (["optimizer.betas=[0.9]"], "optimizer.betas", "[0.9]", "two numbers from 0 to below 1"),
    (["optimizer.betas=[0.9, 1]"], "optimizer.betas", "[0.9, 1.0]", "two numbers from 0 to below 1"),
    (["optimizer.average=2"], "optimizer.average", "2", "a share of the steps, from 0 to 1"),
    (["optimizer.clip=0"], "optimizer.clip", "0", "or null"),
    (["server.statistics_momentum=1"], "server.statistics_momentum", "1.0", "below 1"),
    (["server.mode=asynch"], "server.mode", "'asynch'", "Did you mean 'async'?"),
    (["server.staleness=-1"], "server.staleness", "-1", "at least 0"),
    (["server.age_weight=inverse"], "server.age_weight", "'inverse'", "no answer is old"),
    (["resources.workers={min: 3, max: 2}"], "resources.workers.max", "2", "at least min = 3"),
    (["resources.workers={least: 3}"], "resources.workers.least", "3", "one of the keys min, max"),
    (["resources.workers=some"], "resources.workers", "'some'", "a whole number or {min, max}"),
    (["resources.workers=0"], "resources.workers", "0", "at least 1"),
    (["evaluation.patience=0"], "evaluation.patience", "0", "at least 1"),
    (["checkpoint.keep=0"], "checkpoint.keep", "0", "at least 1"),
    (["data.size=0"], "data.size", "0", "a whole number of pixels"),
    (["data.augment.crop=-1"], "data.augment.crop", "-1", "at least 0"),
    (["model={kind: mlp, hidden: []}"], "model.hidden", "[]", "at least one width"),
    (["name=a/b"], "name", "'a/b'", "without '/'"),
    (['name="a\\nb"'], "name", "'a\\nb'", "printable"),
    (["name=" + "x" * 250], "name", "'xxx", "at most 200 bytes"),
    (["name="], "name", "None", "text"),
    # what does not go together
    (["tasks.ways=5"], "tasks.ways", "5", "at most the 4 classes of the train split"),
    (["tasks.shots=200"], "tasks.shots + query", "202", "no more examples a class than there are"),
    (["server.mode=async"], "tasks.batch", "4", "each is a step of its own"),
    (["tasks.train_ways=3"], "tasks.train_ways", "3", "tasks.ways = 2 for learner maml"),
    (["data.split.train=null"], "data.split.train", "None", "classes to train on"),
    (["data.split.train=[]"], "data.split.train", "[]", "at least one class"),
    (["data.split.train=[6]"], "data.split.test", "'6'", "not in data.split.train as well"),
    (["data.split.train=[eleven]"], "data.split.train", "'eleven'", "a name or pattern of the 10 classes"),
    (["data.split.train=50"], "data.split", "'50 classes (50 for train)'", "at most the 6 classes"),
    (["data.split.train=5.0"], "data.split.train", "5.0", "A count is a whole number"),
    (["tasks={kind: sinusoid}"], "model.kind", "'conv4'", "Use mlp."),
    (["tasks={kind: sinusoid}", "learner={kind: protonet}"], "learner.kind", "'protonet'", "Use maml or reptile."),
    (["model.pool=true", "model.layers=4"], "model.pool", "True", "images of at least 16 pixels a side"),
    (["optimizer.groups=[{match: 'neck.*'}]"], "optimizer.groups.0.match", "'neck.*'", "head.weight"),
    # sizes
    (["steps=0x" + "f" * 500], "--set steps", "'a whole number of 2000 bits", "at most 1000 bits"),
    (["model.layers=4294967296"], "model.layers", "4294967296", "at most 1000"),
    (["model.width=9223372036854775808"], "model", "'conv4'", "sizes that can be made; these give TypeError"),
    (["model.width=4611686018427387904"], "model", "'conv4'", "sizes that can be made; these give RuntimeError"),
    (["model={kind: mnist_net, kernel: 4294967296}"], "model.kind", "'mnist_net'", "at least 8589934592 pixels"),
    (["tasks={kind: waveform, valid_classes: 1000000000}"], "tasks.valid_classes", "1000000000", "0 to 100000"),
    # places
    (["data.source=" + "x" * 300], "data.source", "'xxx", "There is nothing at"),
    (["data.source='~nobody/x'"], "data.source", "'~nobody/x'", "There is nothing at"),
    (['data.source="a\\0b"'], "data.source", "'a\\x00b'", "There is nothing at"),
    (["init_from=" + "x" * 300], "x", "'File name too long'", "a place that can be read"),
    (["data.source=nowhere"], "data.source", "'nowhere'", "There is nothing at"),
    (["data.source='sklearn:digit'"], "data.source", "'sklearn:digit'", "Did you mean 'sklearn:digits'?"),
    (["data.source='foo://x'"], "data.source", "'foo://x'", "the URI of a store"),
    (["data.cache=/dev/null/x", "data.size=9"], "data.cache", "'/dev/null/x'", "a folder that can be written"),
    (["tracking.uri=mysq://x"], "tracking.uri", "'mysq://x'", "Did you mean 'mysql'?"),
    (["tracking.uri='sqlite://x.db'"], "tracking.uri", "'sqlite://x.db'", "three slashes"),
    # --set itself
    (["steps"], "--set", "'steps'", "dotted.key=value"),
    (["=3"], "--set", "'=3'", "dotted.key=value"),
    (["steps.x=3"], "--set", "'steps.x=3'", "a key below a section; steps is 3"),
    (["steps=[1"], "--set steps", '"expected', "YAML"),
    (["seed=2020-13-45"], "--set seed", "'month must be in 1..12'", "YAML"),
    (["seed=!!int abc"], "--set seed", '"invalid literal', "YAML"),
    (["seed=" + "[" * 3000], "--set seed", "'too many brackets", "a job file"),
]


@pytest.mark.parametrize(
    ("settings", "field", "value", "expected"), SETTINGS, ids=[" ".join(row[0])[:40] for row in SETTINGS]
)
def test_setting(
    metadist: Callable[..., Any],
    job: str,
    storage: Path,
    settings: list[str],
    field: str,
    value: str,
    expected: str,
) -> None:
    sets = [part for setting in settings for part in ("--set", setting)]
    ended = metadist("train", job, "--storage", str(storage), *sets)
    assert_mistake(ended, field, value, expected)
    assert len(ended.err) < 1500
    assert not list(storage.iterdir())


# (options beside the job, field, value, expected)
OPTIONS = [
    (["--steps", "-1"], "steps", "-1", "at least 0"),
    (["--workers", "0"], "resources.workers", "0", "at least 1"),
    (["--stop-after", "0"], "--stop-after", "0", "at least 1"),
    (["--name", ".hidden"], "name", "'.hidden'", "does not begin with '.'"),
    (["--address", "127.0.0.1:1"], "--address", "'127.0.0.1:1'", "Leave one of them out."),
    (["--resume", "elsewhere"], "JOB", "'", "and not both"),
    (["--fault", "now"], "--fault", "'now'", "POINT@VERSION:MARKER"),
    (["--storage", "/dev/null/x"], "storage", "'/dev/null/x'", "a place where a run's folder can be written"),
    (["--storage", "foo://x"], "storage", "'foo://x/tiny", "a URI that pyarrow can open"),
    (["--storage", ""], "storage", "''", "a folder or a URI"),
    (["--storage", "s3://"], "storage", "'s3://'", "a folder or a URI"),
]


@pytest.mark.parametrize(("options", "field", "value", "expected"), OPTIONS, ids=[" ".join(row[0]) for row in OPTIONS])
def test_option(
    metadist: Callable[..., Any],
    job: str,
    storage: Path,
    options: list[str],
    field: str,
    value: str,
    expected: str,
) -> None:
    assert_mistake(metadist("train", job, "--storage", str(storage), *options), field, value, expected)
    assert not list(storage.iterdir())


# (content of the job file, field, value, expected)
FILES = [
    (b"", "job.yaml", "None", "a mapping of a job's keys"),
    (b"- 1\n- 2\n", "job.yaml", "[1, 2]", "a mapping of a job's keys"),
    (b"\x00\xff\xfe" * 50, "job.yaml", "'not a text file'", "a job file (YAML)"),
    ("steps: 3".encode("utf-16"), "job.yaml", "'not a text file'", "a job file (YAML)"),
    (b"steps: 3\nsteps: 4\n", "steps", "'twice, again in line 2'", "each key once"),
    (b"learner:\n  inner_lr: 1\n  inner_lr: 2\n", "inner_lr", "'twice, again in line 3'", "each key once"),
    (b"steps: 3\ndata: [1\nseed: 0\n", "job.yaml", '"expected', "Check quotes, colons and indentation."),
    (b"a:\n\t- x\n", "job.yaml", '"found character', "Check quotes, colons and indentation."),
    (b"name: !!python/object/apply:os.getcwd []\n", "job.yaml", '"could not determine', "YAML"),
    (b"steps: 3\n---\nsteps: 4\n", "job.yaml", "'but found another document in line 2", "YAML"),
    (b"data: &a\n  source: *a\n", "job.yaml", "'found unconstructable recursive node", "YAML"),
    (b"? [a, b]\n: 1\n", "job", "'a list or section as a key in line 1'", "a name before the colon"),
    (b"[" * 5000, "job.yaml", "'too many brackets", "a job file"),
    (b"5: 3\n", "5", "3", "one of the keys name"),
]


@pytest.mark.parametrize(("content", "field", "value", "expected"), FILES, ids=[str(row[0][:30]) for row in FILES])
def test_job_file(
    metadist: Callable[..., Any], job: str, content: bytes, field: str, value: str, expected: str
) -> None:
    Path(job).write_bytes(content)
    assert_mistake(metadist("train", job), field, value, expected)


# (whole command line, field, value, expected)
COMMANDS = [
    (["train"], "JOB", "None", "a job file, or --resume RUN_DIR"),
    (["train", "nowhere.yaml"], "nowhere.yaml", "'No such file or directory'", "a job file (YAML)"),
    (["train", "a\nb"], "'a\\nb'", "'No such file or directory'", "a job file (YAML)"),
    (["train", "/"], "/", "'Is a directory'", "a job file (YAML)"),
    (["train", "--resume", "nowhere"], "nowhere", "'nothing there'", "a run folder (with job.yaml and run.json)"),
    (["train", "--resume", ""], "run folder", "'no", "a run folder (with job.yaml and run.json)"),
    (["train", "--resume", "/dev/null"], "/dev/null", "'no run'", "a run folder (with job.yaml and run.json)"),
    (["train", "--resume", "foo://x"], "storage", "'foo://x'", "a URI that pyarrow can open"),
    (["evaluate", "nowhere"], "nowhere", "'nothing there'", "a run folder"),
    (["evaluate", "x.safetensors"], "x.safetensors", "'x.safetensors'", "a checkpoint in its run folder"),
    (["data", "info", "nowhere"], "nowhere/manifest.json", "'No such file", "the manifest of a store"),
    (["data", "prepare", "nowhere", "store"], "data.source", "'nowhere'", "a folder of class folders"),
    (["data", "prepare", "sklearn:digits", "/dev/null/x"], "/dev/null/x", "'File exists'", "a path where nothing is"),
    (["data", "prepare", "sklearn:digits", "store", "--size", "-1"], "data.size", "-1", "of at least 1"),
    (["data", "prepare", "sklearn:digits", "store", "--channels", "2"], "data.channels", "2", "1 (grey), 3 (colour)"),
    (["ui", "--uri", "none"], "--uri", "'none'", "the address of a tracking store"),
    (["ui", "--uri", "foo://x"], "tracking.uri", "'foo://x'", "one of the schemes"),
    (["ui", "--uri", "\ud800"], "tracking.uri", "'\\ud800'", "a path that a file can have"),
]


@pytest.mark.parametrize(
    ("command", "field", "value", "expected"), COMMANDS, ids=[" ".join(row[0]) for row in COMMANDS]
)
def test_command(
    metadist: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    field: str,
    value: str,
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_mistake(metadist(*command), field, value, expected)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["trian"], "Did you mean 'train', 'pretrain'?"),
        (["train", "job.yaml", "--workers", "two"], "--workers"),
        (["train", "job.yaml", "--stesp", "3"], "--steps"),
        (["evaluate"], "Missing argument"),
        (["evaluate", "run", "--ways", "0"], "--ways"),
        (["evaluate", "run", "--split", "dev"], "--split"),
    ],
)
def test_usage(metadist: Callable[..., Any], command: list[str], shown: str) -> None:
    ended = metadist(*command)
    assert ended.code == 2
    assert shown in ended.err
    assert "Traceback" not in ended.err


def test_a_message_prints_no_whole_file() -> None:
    file = "x" * 10_000
    for parts in ((file, 1, "2"), ("field", file, "2"), ("field", 1, file), ("field", 1, "2", file)):
        assert 1000 < len(str(UserError(*parts))) < 1100


def test_debug_shows_the_traceback(metadist: Callable[..., Any]) -> None:
    ended = metadist("train", "nowhere.yaml", "--debug")
    assert ended.code == 2
    assert "Traceback" in ended.err
    assert ended.err.splitlines()[-1].startswith("metadist: nowhere.yaml: got ")


def test_fault_of_the_run(metadist: Callable[..., Any], job: str, storage: Path) -> None:
    """What is not the user's mistake exits 1: here a step size that diverges."""
    ended = metadist("train", job, "--storage", str(storage), "--set", "learner.inner_lr=1e300")
    assert ended.code == 1
    assert "not finite" in ended.err
    assert "--debug" in ended.err
    assert "Traceback" not in ended.err


def process(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "metadist", *command],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
        check=False,
    )


def test_process(job: str, storage: Path) -> None:
    """The whole program ends as `main` does."""
    ended = process("train", job, "--storage", str(storage), "--set", "stpes=3")
    assert ended.returncode == 2
    assert ended.stderr.startswith("metadist: stpes: got 3, expected one of the keys")
    assert len(ended.stderr.splitlines()) == 1
    assert ended.stdout == ""
    assert not list(storage.iterdir())


def test_unreachable_address(job: str, storage: Path) -> None:
    """Needs Ray, and a process of its own: within a session that is there, an address is not asked for."""
    began = time.monotonic()
    ended = process("train", job, "--storage", str(storage), "--set", "runtime=ray", "--address", "127.0.0.1:1")
    assert time.monotonic() - began < 45
    assert ended.returncode == 2, ended.stderr
    assert "--address: got '127.0.0.1:1', expected the address of a running Ray cluster" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not list(storage.iterdir())


def test_more_gpus_than_there_are(ray: object, metadist: Callable[..., Any], job: str, storage: Path) -> None:
    """Needs Ray: only a cluster knows its GPUs."""
    ended = metadist(
        "train", job, "--storage", str(storage), "--set", "runtime=ray", "--set", "resources.gpus_per_worker=8"
    )
    assert_mistake(ended, "resources.gpus_per_worker", "16", "at most the 2 GPUs")
    assert not list(storage.iterdir())

"""A job is a file: reads it, checks it, and builds what it describes.

Each component's settings are a frozen dataclass beside its class; the sections that belong to the run are here.
A mistake is one `UserError` that names the field, the value, what was expected and the nearest valid name.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from metadist.data import ClassStore, DataConfig, resolve_store
from metadist.errors import UserError, nearest
from metadist.learners import (
    LEARNERS,
    NOT,
    AnilConfig,
    BoilConfig,
    CaviaConfig,
    ConditionedConfig,
    Distill,
    DistillConfig,
    FinetuneConfig,
    Fusion,
    FusionConfig,
    HybridConfig,
    HypernetworkConfig,
    ImamlConfig,
    InContextConfig,
    Learner,
    LearnerSettings,
    MamlConfig,
    MamlPlusPlusConfig,
    MannConfig,
    MatchingConfig,
    Meta,
    MetaLstmConfig,
    MetaSgdConfig,
    Network,
    OnTrainedRuns,
    Precision,
    ProtoNetConfig,
    RelationConfig,
    ReptileConfig,
    TaskRelationConfig,
    TrainedPart,
    TrainedRun,
    adapting,
    gated,
    learner_class,
    matches,
    own_weights,
)
from metadist.models import (
    BaseModel,
    Conv4Config,
    GruConfig,
    LstmConfig,
    MlpConfig,
    MnistNetConfig,
    ResNet12Config,
    SimpleCnnConfig,
    TorchvisionConfig,
    TransformerConfig,
    base_model,
    own_model_config,
)
from metadist.outer import Experiment, OptimizerConfig, OuterRule, ServerConfig, check_groups, check_patterns
from metadist.reading import read_bounded
from metadist.reading_yaml import MOST_YAML, parse_yaml
from metadist.tasks import (
    Episode,
    ImageTasks,
    ImageTasksConfig,
    LinearTasks,
    LinearTasksConfig,
    LineTasks,
    LineTasksConfig,
    MixtureTasks,
    MixtureTasksConfig,
    QuadraticTasks,
    QuadraticTasksConfig,
    SinusoidTasks,
    SinusoidTasksConfig,
    TaskDistribution,
    WaveformTasks,
    WaveformTasksConfig,
)
from metadist.tracking import TrackingConfig, resolve_uri


def _at_least(config: object, **least: float) -> None:
    for name, bound in least.items():
        value = getattr(config, name)
        if value is not None and not value >= bound:
            raise UserError(name, value, f"a number of at least {bound}")


@dataclass(frozen=True)
class WorkersConfig:
    """A number of workers that may change while the job runs."""

    #: fewest worker actors that the job goes on with
    min: int
    #: most worker actors; what the cluster has no room for yet is waited for without holding up the others
    max: int

    def __post_init__(self) -> None:
        _at_least(self, min=1)
        if self.max < self.min:
            raise UserError("max", self.max, f"at least min = {self.min}")


@dataclass(frozen=True)
class ResourcesConfig:
    """What runs the job; placement, so it never changes a result."""

    #: worker actors; or {min, max}: as many as the cluster has room for, between chunks one more or one less
    workers: int | WorkersConfig = 2
    #: CPUs that each worker reserves; its CPU threads are this number rounded down, at least 1
    cpus_per_worker: float = 1.0
    #: GPUs that each worker reserves; fractions share one
    gpus_per_worker: float = 0.0
    #: workers that are kept ready to take the place of a lost one at once; each reserves what a worker reserves
    spares: int = 0
    #: seconds within which some worker must finish something, and the server must answer
    timeout: float = 300.0
    #: that paths of `storage` and `tracking.uri` without a scheme are on a disk that every node sees, or are meant to
    #: be the driver's: a cluster of several nodes wants to hear it
    shared_storage: bool = False

    def __post_init__(self) -> None:
        _at_least(self, cpus_per_worker=0, gpus_per_worker=0, timeout=1, spares=0)
        if isinstance(self.workers, int):
            _at_least(self, workers=1)

    @property
    def least(self) -> int:
        """The fewest workers that the job goes on with."""
        return self.workers.min if isinstance(self.workers, WorkersConfig) else 1

    @property
    def most(self) -> int:
        """The workers that are started where there is room."""
        return self.workers.max if isinstance(self.workers, WorkersConfig) else self.workers

    @property
    def needed(self) -> int:
        """The workers that the job cannot start without: all of a fixed number, the fewest of one that may change."""
        return self.workers.min if isinstance(self.workers, WorkersConfig) else self.workers

    @property
    def threads(self) -> int:
        """CPU threads of every process that touches numbers. These change bits: part of the identity."""
        return max(1, int(self.cpus_per_worker))


@dataclass(frozen=True)
class EvaluationConfig:
    """Fixed sets of tasks to judge on: the same for every seed and every learner of a setting."""

    #: outer steps between validations
    every: int = 200
    #: validation tasks
    tasks: int = 200
    #: test tasks
    test_tasks: int = 1000
    #: query examples per class that judge a task
    query: int = 15
    #: seed of the tasks' addresses
    seed: int = 0
    #: tasks per piece of work
    chunk: int = 8
    #: stop after so many validations without a better one; null never does
    patience: int | None = None

    def __post_init__(self) -> None:
        _at_least(self, every=1, tasks=1, test_tasks=1, query=1, seed=0, chunk=1, patience=1)


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save."""

    #: outer steps between checkpoints
    every: int = 100
    #: how many of the newest to keep, besides the best
    keep: int = 3

    def __post_init__(self) -> None:
        _at_least(self, every=1, keep=1)


@dataclass(frozen=True)
class InitFromConfig:
    """Meta-parameters that begin as another run left them."""

    #: run folder (its best version on validation), one of its checkpoints, or a safetensors file of parameters by name
    path: str
    #: of the tensors there, which a run's own job.yaml names; null takes them as they are
    sha256: str | None = None
    #: patterns of names that begin afresh, and are left alone there, for example `head.*`
    fresh: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.path.strip():
            raise UserError("path", self.path, "a run folder or a safetensors file")


@dataclass(frozen=True)
class PretrainConfig:
    """Supervised pre-training on all training classes (`metadist pretrain`); says nothing about meta-training."""

    #: passes over the training images
    epochs: int = 20
    #: images per step, of all workers together
    batch: int = 64
    #: share of each training class's images that is held out, to choose the best epoch by
    holdout: float = 0.1
    #: head over the training classes: `linear`, or `cosine` (Baseline++)
    head: Literal["linear", "cosine"] = "linear"
    #: factor on the cosines of a cosine head
    scale: float = 10.0
    #: the step; its schedule and average are over all steps of the pre-training
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        _at_least(self, epochs=1, batch=1)
        if not 0 <= self.holdout < 1:
            raise UserError("holdout", self.holdout, "a share from 0 to below 1")
        if not self.scale > 0:
            raise UserError("scale", self.scale, "a number above 0")


@dataclass(frozen=True)
class TuneConfig:
    """A sweep over the job's fields (`metadist tune`); says nothing about a single run."""

    #: fields by dotted path, each {uniform | loguniform | integers | logintegers: [low, high]} or
    #: {choice | grid: [value, …]}; null sweeps learner.inner_lr and optimizer.lr
    space: dict[str, Any] | None = None
    #: trials to compare with, run first, in full and beside the drawn ones: values by dotted path, the other fields
    #: as in the job
    initial: list[dict[str, Any]] = field(default_factory=list)
    #: trials to draw; with a grid, for each of its points
    num_samples: int = 10
    #: figure of the validations to go by; null: accuracy, or loss where there is no accuracy
    metric: Literal["accuracy", "loss", "precision", "recall", "f1"] | None = None
    #: whether more of it is better; null: min for loss, max otherwise
    mode: Literal["max", "min"] | None = None
    #: what ends bad trials early (never the initial ones): successive halving, the median of the others, nothing
    scheduler: Literal["asha", "median", "none"] = "asha"
    #: outer steps that every trial may take; null: up to the first validation
    grace: int | None = None
    #: asha lets about one in so many trials go on at each rung, and rungs are so many times apart
    reduction: float = 3.0
    #: how values are drawn: independently, or by Optuna from what earlier trials gave
    search: Literal["random", "optuna"] = "random"
    #: trials at a time; null: as many as there are CPUs for
    max_concurrent: int | None = None
    #: seconds after which the sweep ends; trials under way can be gone on with by --resume
    time_budget: float | None = None
    #: a trial's resources where they differ from the job's: workers, cpus_per_worker, …
    resources: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _at_least(self, num_samples=1, grace=1, max_concurrent=1, time_budget=1)
        if not self.reduction > 1:
            raise UserError("reduction", self.reduction, "a number above 1")


Section = TypeVar("Section")

#: bytes of a job's name: file systems take 255, of which a run's time and number need some
MAX_NAME = 200

TasksKind = (
    ImageTasksConfig
    | SinusoidTasksConfig
    | LineTasksConfig
    | QuadraticTasksConfig
    | LinearTasksConfig
    | WaveformTasksConfig
    | MixtureTasksConfig
)
#: or, by its import path, a module of a user's own
ModelKind = (
    Conv4Config
    | MlpConfig
    | MnistNetConfig
    | SimpleCnnConfig
    | ResNet12Config
    | TorchvisionConfig
    | LstmConfig
    | GruConfig
    | TransformerConfig
)
#: or, by its import path, the settings of a learner in a user's own module
LearnerKind = (
    MamlConfig
    | MamlPlusPlusConfig
    | AnilConfig
    | BoilConfig
    | MetaSgdConfig
    | MetaLstmConfig
    | ImamlConfig
    | CaviaConfig
    | ReptileConfig
    | ProtoNetConfig
    | MatchingConfig
    | RelationConfig
    | TaskRelationConfig
    | HybridConfig
    | HypernetworkConfig
    | InContextConfig
    | MannConfig
    | FinetuneConfig
    | DistillConfig
    | FusionConfig
)

#: learners without a head, in words
HEADLESS = ", ".join(kind for kind, learner in LEARNERS.items() if learner.embeds)


@dataclass(frozen=True)
class Job:
    """A whole job file."""

    #: prefix of the run folder's name, and the run's name in MLflow
    name: str = "job"
    #: what initial weights and training tasks are a function of
    seed: int = 0
    #: outer steps; 0 judges what the job starts from
    steps: int = 1000
    #: `ray` for worker actors, `inprocess` for one process without Ray; the same bits
    runtime: Literal["ray", "inprocess"] = "ray"
    #: what the base model computes in: `bf16` is `torch.autocast` to bfloat16 in every pass through it; all parameters,
    #: losses, meta-gradients and the outer step stay in 32 bits
    precision: Precision = "fp32"
    #: folder or URI under which the run's folder is made
    storage: str = "runs"
    data: DataConfig = field(default_factory=DataConfig)
    tasks: TasksKind = field(default_factory=ImageTasksConfig)
    model: ModelKind = field(default_factory=Conv4Config)
    learner: LearnerKind = field(default_factory=MamlConfig)
    #: run or file whose values the meta-parameters start with: a path, or {path, fresh: [pattern, …]} where some of
    #: them begin afresh; evaluations' random start stays random
    init_from: str | InitFromConfig | None = None
    #: patterns of parameters that stay as they start (`convs.*`): neither the adaptation nor training changes them
    freeze: list[str] = field(default_factory=list)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)

    def __post_init__(self) -> None:
        _at_least(self, seed=0, steps=0)
        check_name("name", self.name)
        if not self.storage.strip() or self.storage.endswith("://"):
            raise UserError("storage", self.storage, "a folder or a URI", "For example runs.")
        name = self.predictor.kind
        place = f"{self.predictor_place}.kind"
        kind = learner_class(name)
        if self.steps and not kind.meta_trains:
            hint = "Give the run to start from as init_from, and set steps: 0."
            raise UserError("steps", self.steps, f"0 for learner {name}, which has nothing to train", hint)
        embeds, train_ways = kind.embeds, self.tasks.train_ways
        if train_ways not in (None, self.tasks.ways) and not embeds:
            raise UserError(
                "tasks.train_ways",
                train_ways,
                f"tasks.ways = {self.tasks.ways} for learner {name}, whose head has one output a class",
                f"Leave train_ways out; only {HEADLESS} train with other ways than they are tested with.",
            )
        if 0 in (self.tasks.shots, self.tasks.train_shots):
            if not kind.sequential or isinstance(self.learner, DistillConfig):
                expected = f"at least 1 for learner {self.learner.kind}, which needs a support set"
                raise UserError("tasks.shots", 0, expected)
            if (norm := getattr(self.model, "norm", "none")) in ("support", "single"):
                raise UserError("model.norm", norm, "batch, layer or none where tasks.shots is 0")
            if (gates := getattr(self.model, "gates", None)) is not None:
                raise UserError("model.gates", gates, "null where tasks.shots is 0: they are made of a support set")
        if embeds and self.tasks.loss == "mse":
            raise UserError(place, name, "a learner for regression tasks", "Use maml or reptile.")
        if embeds and self.tasks.loss != "cross_entropy":
            expected = f"cross_entropy for learner {name}, which compares classes with each other"
            raise UserError("tasks.loss", self.tasks.loss, expected)

    @property
    def predictor(self) -> Any:
        """Settings of the learner that predicts with the job's model: `learner`, or its student."""
        return self.learner.student if isinstance(self.learner, DistillConfig) else self.learner

    @property
    def predictor_place(self) -> str:
        """Where the job says what `predictor` is."""
        return "learner.student" if isinstance(self.learner, DistillConfig) else "learner"

    @property
    def start(self) -> InitFromConfig | None:
        """`init_from`, which may be short for its path."""
        return InitFromConfig(self.init_from) if isinstance(self.init_from, str) else self.init_from

    @property
    def warnings(self) -> list[str]:
        """What is allowed but hardly meant, in sentences."""
        chunks = -(-self.tasks.batch // self.tasks.chunk)
        if self.runtime == "ray" and self.server.mode == "sync" and self.resources.most > chunks:
            return [
                f"resources.workers = {self.resources.most}, but a meta-batch of {self.tasks.batch} tasks has "
                f"{chunks} chunks of tasks.chunk = {self.tasks.chunk}: some workers will wait. "
                "Lower tasks.chunk (it changes the bits of a run) or use fewer workers."
            ]
        return []


def check_name(field: str, name: str) -> None:
    """Raise `UserError` for a name that cannot be that of a folder."""
    if not name.isprintable() or "/" in name or name.startswith((".", " ")) or not name:
        raise UserError(field, name, "printable text without '/' that does not begin with '.' or a space")
    if len(name.encode()) > MAX_NAME:
        raise UserError(field, name, f"at most {MAX_NAME} bytes, for it becomes the name of a folder")


def load_job(path: str, overrides: Sequence[str] = ()) -> Job:
    """Read a job file.

    Args:
        overrides: `dotted.key=value` with YAML values, applied before anything is checked.

    Raises:
        UserError: the file cannot be read or is no valid job.
    """
    content = read_mapping(path)
    for override in overrides:
        set_value(content, override)
    return parse_job(content)


def read_mapping(path: str) -> dict[str, Any]:
    """The content of a job file, or of another YAML file with keys at its top; nothing in it is checked."""
    try:
        text = read_bounded(path, MOST_YAML)
    except OSError as error:
        raise UserError(path, error.strerror, "a job file (YAML)", "Check the path; jobs/ has examples.") from error
    content = parse_yaml(text, path)
    if not isinstance(content, dict):
        raise UserError(path, _short(content), "a mapping of a job's keys (name, steps, data, …)")
    return content


def set_value(content: dict[str, Any], override: str) -> None:
    """Set one `dotted.key=value` in a job's content."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError("--set", override, "dotted.key=value", "For example --set learner.inner_lr=0.1")
    *parents, last = key.strip().split(".")
    place = content
    for parent in parents:
        step = place.setdefault(parent, {})
        if not isinstance(step, dict):
            raise UserError("--set", override, f"a key below a section; {parent} is {step!r}")
        place = step
    place[last] = parse_yaml(text, f"--set {key}")


def parse_job(content: Mapping[str, Any]) -> Job:
    """A checked job from plain data."""
    job: Job = _parse(Job, content, "")
    return job


def parse_section(kind: type[Section], content: Any, path: str) -> Section:
    """A frozen dataclass of settings from plain data, checked as a job is; `path` is its dotted place."""
    section: Section = _parse(kind, content, path)
    return section


def _parse(kind: Any, content: Any, path: str) -> Any:
    """A dataclass from plain data, checked field by field; `path` is its dotted place in the job."""
    if not isinstance(content, Mapping):
        names = ", ".join(f.name for f in dataclasses.fields(kind))
        raise UserError(path or "job", content, f"a section with keys of {names}")
    hints = _type_hints(kind, include_extras=True)
    values = {}
    for key, value in content.items():
        place = f"{path}.{key}" if path else str(key)
        if key not in hints:
            raise UserError(
                place,
                _short(value),
                f"one of the keys {', '.join(hints)}",
                nearest(str(key), hints) or "Unknown key.",
            )
        values[key] = _parse_value(hints[key], value, place)
    for needed in dataclasses.fields(kind):
        if needed.name not in values and needed.default is needed.default_factory is dataclasses.MISSING:
            raise UserError(path, dict(content), f"a section with the key {needed.name}")
    try:
        return kind(**values)
    except UserError as error:
        place = f"{path}.{error.field}" if path else error.field
        raise UserError(place, error.value, error.expected, error.hint) from None


def _parse_value(hint: Any, value: Any, place: str) -> Any:
    if hint == LearnerSettings:
        hint = LearnerKind
    members = _members(hint)
    if isinstance(value, Mapping) and not dataclasses.is_dataclass(members[0]):  # a section in place of a number
        for section in filter(dataclasses.is_dataclass, members):
            return _parse(section, value, place)
    if dataclasses.is_dataclass(members[0]) and types.NoneType in members:
        return None if value is None else _parse(members[0], value, place)
    if dataclasses.is_dataclass(members[0]):
        if hint in _OWN and isinstance(value, Mapping) and "." in str(value.get("kind")):
            return _parse_own(_OWN[hint](str(value["kind"])), value, place)
        return _parse(members[0] if len(members) == 1 else _by_kind(members, value, place), value, place)
    if typing.get_origin(hint) is list and _has_section(item_hint := typing.get_args(hint)[0]):
        if not isinstance(value, list):
            raise UserError(place, value, "a list")
        return [_parse_value(item_hint, item, f"{place}.{i}") for i, item in enumerate(value)]
    try:
        return _adapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        raise UserError(place, _short(value), describe_type(hint), _hint(hint, value)) from error


_type_hints = functools.cache(typing.get_type_hints)


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False))


def _is_section(hint: Any) -> bool:
    return all(map(dataclasses.is_dataclass, _members(hint)))


def _has_section(hint: Any) -> bool:
    return any(map(dataclasses.is_dataclass, _members(hint)))


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


#: sections whose kind may be the import path of a class of a user's own, and what gives the dataclass of its settings
_OWN: dict[Any, Callable[[str], type[Any]]] = {
    LearnerKind: lambda kind: learner_class(kind).config_type,
    ModelKind: own_model_config,
}


def _parse_own(settings: type[Any], content: Mapping[str, Any], place: str) -> Any:
    """The settings of a class in a user's own module; their `kind` is its import path, whatever they say."""
    own = {key: value for key, value in content.items() if key != "kind"}
    return replace(_parse(settings, own, place), kind=str(content["kind"]))


def _by_kind(members: Sequence[Any], value: Any, place: str) -> Any:
    kinds = {typing.get_args(_type_hints(member)["kind"])[0]: member for member in members}
    if not isinstance(value, Mapping):
        raise UserError(place, value, f"a section with a kind of {', '.join(kinds)}")
    kind = value.get("kind", next(iter(kinds)))
    if not isinstance(kind, str) or kind not in kinds:
        what = {"learner": "learner", "learner.student": "learner", "model": "module"}.get(place)
        own = f"A {what} of your own is named by its import path: package.Class." if what else ""
        hint = (nearest(kind, kinds) if isinstance(kind, str) else "") or own
        raise UserError(f"{place}.kind", _short(kind), f"one of {', '.join(kinds)}", hint)
    return kinds[kind]


def _short(value: Any) -> Any:
    """The beginning of a long value: a message must not print a whole file."""
    shown = repr(value)
    return value if len(shown) <= 200 else f"{shown[:200]}…"


def describe_type(hint: Any) -> str:
    """A type in words."""
    if isinstance(hint, types.UnionType) and _is_section(hint):
        return "a section of kind " + " or ".join(member.kind for member in typing.get_args(hint))
    if dataclasses.is_dataclass(hint):
        return "{" + ", ".join(part.name for part in dataclasses.fields(hint)) + "}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    if hint is Any:
        return "anything"
    if hint in words:
        return words[hint]
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, arguments)) if len(arguments) > 1 else str(arguments[0])
    if typing.get_origin(hint) is list:
        return "a list, each " + describe_type(arguments[0])
    if typing.get_origin(hint) is dict:
        return "a section"
    return " or ".join(describe_type(argument) for argument in arguments)


def _hint(hint: Any, value: Any) -> str:
    names = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
    return nearest(value, map(str, names)) if isinstance(value, str) else ""


def job_dict(job: Job) -> dict[str, Any]:
    """The resolved job as plain data, every default filled in; `pretrain` and `tune` only where there are any."""
    content = dataclasses.asdict(job)
    for name, default in (("pretrain", PretrainConfig()), ("tune", TuneConfig())):
        if getattr(job, name) == default:
            del content[name]
    return content


def dump_job(job: Job) -> str:
    """The resolved job as YAML."""
    return yaml.safe_dump(job_dict(job), sort_keys=False, allow_unicode=True)


#: sections that say where a job runs and what it is called, not what it computes
PLACEMENT = ("name", "runtime", "storage", "resources", "tracking", "pretrain", "tune")
#: keys of `data` that say where the images come from; what they are is in the store's sha
DATA_PLACEMENT = ("source", "cache", "skip_bad")


def identity(job: Job, store: ClassStore | None) -> dict[str, Any]:
    """What a run's results are a function of: the job without its placement, the data's content, threads."""
    content = {key: value for key, value in job_dict(job).items() if key not in PLACEMENT}
    for key in DATA_PLACEMENT:
        content["data"].pop(key)
    if store is None:
        content.pop("data")
    else:
        content["data"]["sha256"] = store.sha256
    if isinstance(job.model, TorchvisionConfig) and (weights := job.model.weights_file) and os.path.isfile(weights):
        content["model"]["weights"] = f"sha256:{hashlib.sha256(weights.read_bytes()).hexdigest()}"
    if job.start is None:
        del content["init_from"]
    else:
        content["init_from"] = {"sha256": job.start.sha256, "fresh": job.start.fresh}
    if not job.freeze:
        del content["freeze"]
    if isinstance(job.learner, OnTrainedRuns):
        runs = {name: replace(run, path="-") for name, run in job.learner.runs.items()}  # a path is placement
        content["learner"] = dataclasses.asdict(job.learner.with_runs(runs))
    # What is as it was before there was a choice is left out: a run that began then goes on.
    for tasks in (content["tasks"], *content["tasks"].get("of", [])):
        if tasks.get("within", "") is None:
            del tasks["within"]
    server, before = content["server"], ServerConfig()
    content["server"] = {
        key: server[key]
        for key in server
        if key in ("mode", "statistics_momentum") or server[key] != getattr(before, key)
    }
    return content | {"threads": job.resources.threads}


def pretrain_identity(job: Job, store: ClassStore, steps: int) -> dict[str, Any]:
    """What a pre-training's results are a function of, its number of workers included."""
    whole = identity(job, store)
    settings = dataclasses.asdict(job.pretrain)
    return {key: whole[key] for key in ("seed", "data", "model", "threads")} | {
        "pretrain": settings,
        "workers": pretrain_workers(job),
        "steps": steps,
    }


def pretrain_workers(job: Job) -> int:
    """The processes of a job's pre-training, whose number its results depend on."""
    return job.resources.most if job.runtime == "ray" else 1


def identity_sha256(content: Mapping[str, Any]) -> str:
    """The sha of an identity."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def content_sha256(content: Mapping[str, Any]) -> str:
    """The sha of what a valid job file says to compute: without placement, the place of its data, and its seed."""
    said = {key: value for key, value in content.items() if key not in PLACEMENT and key != "seed"}
    data = {key: value for key, value in said.pop("data", {}).items() if key not in DATA_PLACEMENT}
    return identity_sha256(said | ({"data": data} if data else {}))


def pretrain_content_sha256(content: Mapping[str, Any]) -> str:
    """The sha of what a valid job file says to pre-train, the number of workers included."""
    seen = content_sha256({key: content[key] for key in ("data", "model") if key in content})
    settings, workers = content.get("pretrain", {}), pretrain_workers(parse_job(content))
    return identity_sha256({"job": seen, "pretrain": settings, "workers": workers})


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """Dotted names of the fields in which two identities differ."""
    changed: list[str] = []
    for key in sorted({*old, *new}):
        place = f"{path}.{key}" if path else key
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            changed += changed_fields(a, b, place)
        elif a != b:
            changed.append(place)
    return changed


def open_data(job: Job, progress: Any = None) -> ClassStore | None:
    """The job's class store, prepared if need be; `None` for tasks that need no data."""
    return resolve_store(job.data, progress) if job.tasks.needs_data else None


def anchored(job: Job) -> Job:
    """The job with the places in this working folder made absolute, so that its run can go on from anywhere."""
    data, model, tracking = job.data, job.model, job.tracking
    if isinstance(model, TorchvisionConfig) and (weights := model.weights_file) and os.path.exists(weights):
        model = replace(model, weights=str(weights.resolve()))
    if "://" not in data.source and os.path.exists(data.source):
        data = replace(data, source=str(Path(data.source).resolve()))
    uri = resolve_uri(tracking)
    if uri is not None and uri.startswith("sqlite:"):  # others may hold a password, which a job file must not
        tracking = replace(tracking, uri=uri)
    return replace(job, data=data, model=model, tracking=tracking)


def with_store(job: Job, store: ClassStore | None) -> Job:
    """The job with its data at the store's own path, so that any process of the node can open it."""
    if store is None:
        return job
    return replace(job, data=replace(job.data, source=str(store.path)))


def build_distribution(job: Job) -> TaskDistribution:
    """The job's tasks."""
    store = open_data(job)

    def build(tasks: TasksKind) -> TaskDistribution:
        match tasks:
            case SinusoidTasksConfig():
                return SinusoidTasks()
            case LineTasksConfig():
                return LineTasks()
            case QuadraticTasksConfig():
                return QuadraticTasks()
            case LinearTasksConfig():
                return LinearTasks(tasks.dimension, tasks.loss)
            case WaveformTasksConfig():
                return WaveformTasks(tasks)
            case MixtureTasksConfig():
                return MixtureTasks([build(family) for family in tasks.of], tasks.weights or [1.0] * len(tasks.of))
            case ImageTasksConfig():
                assert store is not None
                return ImageTasks(store, job.data, tasks.loss, tasks.within)

    return build(job.tasks)


def build_learner(job: Job, distribution: TaskDistribution) -> Learner:
    """The job's learner with its base model, and with the runs that are parts of it."""
    parts = {name: _build_part(job, distribution, name, run) for name, run in trained_runs(job).items()}
    if isinstance(job.learner, DistillConfig):
        student = build_learner(replace(job, learner=job.learner.student), distribution)
        return Distill(job.learner, student, parts["teacher"])
    if isinstance(job.learner, FusionConfig):
        return Fusion(job.learner, list(parts.values()))
    kind = learner_class(job.learner.kind)
    outputs = None if kind.embeds else distribution.outputs(job.tasks.training_episode())
    model = build_model(job, distribution, outputs)
    network = Network(model, job.model.init, distribution.loss, precision=job.precision)
    if (hidden := getattr(job.model, "gates", None)) is not None:
        network = gated(network, hidden)
    make = cast(Callable[[Any, Network], Learner], kind)  # what a learner is called with is its own affair in Python
    return make(job.learner, network)


#: more would be built for ever
MOST_LAYERS = 1000


@contextmanager
def _fitting(field: str, kind: str) -> Iterator[None]:
    """Within, what is too large to be made is the job's mistake."""
    try:
        yield
    except (MemoryError, RuntimeError, TypeError, OverflowError) as error:  # torch's, of sizes
        if "." in kind:  # a class of a user's own may have other reasons
            raise
        what = (str(error).splitlines() or [""])[0][:200]
        expected = f"sizes that can be made; these give {type(error).__name__}: {what}"
        raise UserError(field, kind, expected, "Lower widths and steps.") from error


def trained_runs(job: Job) -> dict[str, TrainedRun]:
    """The runs that are parts of the job's learner, by the names of the parts."""
    return job.learner.runs if isinstance(job.learner, OnTrainedRuns) else {}


def with_trained_runs(job: Job, runs: Mapping[str, TrainedRun]) -> Job:
    """The job with these facts about the runs that are parts of its learner."""
    if isinstance(job.learner, FusionConfig):
        # It has no model of its own; what is said of the model is true of the first expert's.
        (name, first), *_ = runs.items()
        job = replace(job, model=_job_of(first, f"learner.{name}").model)
    return replace(job, learner=job.learner.with_runs(runs)) if isinstance(job.learner, OnTrainedRuns) else job


#: sections of a run's job that say what its tensors mean
PART_SECTIONS = ("steps", "data", "tasks", "model", "learner", "freeze")


def part_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a job that has a run as a part must know of that run's job, whose content this is."""
    kept = {key: content[key] for key in PART_SECTIONS if content.get(key) not in (None, [])}
    return kept | {"data": {key: kept.get("data", {}).get(key) for key in ("size", "channels")}}


def _build_part(job: Job, distribution: TaskDistribution, name: str, run: TrainedRun) -> TrainedPart:
    """A run's learner as a part of the job's; raises `UserError` where the run's tasks are not like the job's."""
    place = f"learner.{name}"
    theirs = _job_of(run, place)
    for what, here, there in _facts(job, theirs, distribution):
        if here != there:
            raise UserError(place, run.path, f"a run of tasks with {what} {here}, as this job's; there: {there}")
    if isinstance(theirs.model, TorchvisionConfig):
        theirs = replace(theirs, model=replace(theirs.model, weights=None))  # its tensors bring them
    return TrainedPart(name, build_learner(replace(theirs, precision=job.precision), distribution), theirs.freeze)


def _job_of(run: TrainedRun, place: str) -> Job:
    """The job of a run that is a part of another one's learner, which names it at `place`.

    Raises:
        UserError: it was not read yet, is wrong, or names code.
    """
    if run.job is None:
        hint = "metadist train reads it; other commands take the job.yaml of a run that it has begun."
        raise UserError(place, run.path, "a run whose job has been read", hint)
    if own := _imported(run.job):
        hint = "No run has another one's code imported."
        raise UserError(place, run.path, f"a run of metadist's own learners and models, its job names {own}", hint)
    try:
        return parse_job(run.job)
    except UserError as error:
        raise UserError(f"{place}.{error.field}", error.value, error.expected, error.hint) from error


def _imported(content: Any) -> str | None:
    """The first class that a job's content names by its import path."""
    if isinstance(content, Mapping) and "." in str(content.get("kind")):
        return str(content["kind"])
    parts = content.values() if isinstance(content, Mapping) else content if isinstance(content, list) else ()
    return next(filter(None, map(_imported, parts)), None)


def _facts(job: Job, theirs: Job, distribution: TaskDistribution) -> Iterator[tuple[str, Any, Any]]:
    """What the tasks of a job and of a run that is a part of it must agree in: what, here, there."""
    yield "loss", job.tasks.loss, theirs.tasks.loss
    if theirs.tasks.needs_data:
        for key in ("size", "channels"):
            here, there = getattr(job.data, key), getattr(theirs.data, key)
            yield f"data.{key}", here, there if here and there else here
        outputs: Any = theirs.tasks.ways
    else:
        others = build_distribution(theirs)
        yield "inputs of shape", list(distribution.input_shape), list(others.input_shape)
        outputs = others.outputs(theirs.tasks.training_episode())
    if not learner_class(theirs.predictor.kind).embeds:
        for episode in (job.tasks.training_episode(), evaluation_episode(job)):
            yield "a number of outputs of", distribution.outputs(episode), outputs


def build_model(job: Job, distribution: TaskDistribution, outputs: int | None) -> BaseModel:
    """The job's base model, without weights of its own."""
    if (layers := getattr(job.model, "layers", 0)) > MOST_LAYERS:
        raise UserError("model.layers", layers, f"at most {MOST_LAYERS}")
    try:
        with _fitting("model", job.model.kind):
            return base_model(job.model, distribution.input_shape, outputs)
    except UserError as error:
        place = error.field if error.field.startswith("model.") else f"model.{error.field}"
        raise UserError(place, error.value, error.expected, error.hint) from None


def build_experiment(job: Job, run: str, start: Mapping[str, Tensor] | None = None) -> Experiment:
    """Everything that a step of the job is a function of.

    Args:
        start: values that the meta-parameters start with, as `init_from` gives them.

    Raises:
        UserError: the data cannot give the job's tasks, or patterns match no parameter.
    """
    distribution = build_distribution(job)
    with _fitting("learner", job.learner.kind):
        learner = build_learner(job, distribution)
    rule = OuterRule(
        run=run,
        optimizer=job.optimizer,
        steps=job.steps,
        tasks=job.tasks.batch,
        chunk=job.tasks.chunk,
        statistics_momentum=job.server.statistics_momentum,
        phases=learner.phases,
        on_non_finite=job.server.on_non_finite,
        mode=job.server.mode,
        staleness=job.server.staleness,
        age_weight=job.server.age_weight,
    )
    _check_mode(job, rule)
    episode = job.tasks.training_episode()
    experiment = Experiment(
        distribution, learner, rule, episode, job.seed, start or {}, tuple(job.freeze), tuple(job.server.share)
    )
    if distribution.has("train"):
        distribution.check("train", experiment.episode)
    for split in ("valid", "test"):
        if distribution.has(split):
            distribution.check(split, evaluation_episode(job))
    with _fitting("learner", job.learner.kind):
        initial = experiment.initial()
    everything = initial.parameters | initial.still
    check_patterns("freeze", job.freeze, everything)
    check_patterns("server.share", [pattern.removeprefix(NOT) for pattern in job.server.share], everything)
    own = {name: value.shape for name, value in learner.network.module.named_parameters()}
    parts = tuple(f"{name}." for name in trained_runs(job))  # never change anyway
    frozen = {n: v for n, v in initial.frozen.items() if matches(n, job.freeze) and not n.startswith(parts)}
    if others := [name for name, value in frozen.items() if own.get(name) != value.shape]:
        hint = f"A rate of 0 keeps them as they start: optimizer.groups: [{{match: {others[0]}, lr: 0}}]."
        expected = f"patterns of the base model's parameters; {', '.join(others[:4])} are the learner's own"
        raise UserError("freeze", job.freeze, expected, hint)
    if not all(rule.moving(initial, phase).parameters for phase in range(len(rule.phases))):
        place, given = ("server.share", job.server.share) if initial.local else ("freeze", job.freeze)
        raise UserError(place, given, "patterns that leave some parameters to train")
    check_groups(job.optimizer, list(initial.parameters))
    _check_adapt(job, initial)
    return experiment


def _check_mode(job: Job, rule: OuterRule) -> None:
    """Raise `UserError` where steps are not to wait for each other, and have more than one chunk or phase."""
    mode = job.server.mode
    if mode == "sync":
        return
    if rule.chunks > 1:
        hint = f"For as many tasks in all: steps: {rule.steps * rule.chunks}."
        expected = f"{rule.chunk}, one chunk (tasks.chunk): with server.mode: {mode} each is a step of its own"
        raise UserError("tasks.batch", rule.tasks, expected, hint)
    if len(rule.phases) > 1:
        raise UserError("server.mode", mode, f"sync for learner {job.learner.kind}, whose steps have phases")


def _check_adapt(job: Job, initial: Meta) -> None:
    """Raise `UserError` where a pattern of `adapt` or `generate` matches no parameter, or nothing is left to adapt."""
    config, place = job.predictor, job.predictor_place
    patterns: list[str] | None = getattr(config, "adapt", None)
    if patterns is None:
        return
    everything, begun = initial.parameters | initial.still, initial.whole.parameters
    if isinstance(config, ConditionedConfig):  # its generator adapts nothing of itself
        everything, begun = own_weights(everything), own_weights(begun)
        check_patterns(f"{place}.generate", [name.removeprefix(NOT) for name in config.generate], everything)
        if not begun:
            raise UserError("freeze", job.freeze, "patterns that leave some of the base model's parameters to adapt")
    check_patterns(f"{place}.adapt", [name.removeprefix(NOT) for name in patterns], everything)
    if not adapting(begun, patterns):
        raise UserError(f"{place}.adapt", patterns, f"patterns of some of {', '.join(begun)}")


def evaluation_episode(job: Job) -> Episode:
    """The size of an evaluation task."""
    return Episode(job.tasks.ways, job.tasks.shots, job.evaluation.query)

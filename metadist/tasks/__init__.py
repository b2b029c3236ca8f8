"""What a task is, and the families that tasks are drawn from, one family a file."""

from metadist.tasks.address import generator
from metadist.tasks.base import TASK_AXES, Episode, Examples, Task, TaskDistribution, TasksConfig, join, run_of, take
from metadist.tasks.images import ImageTasks, ImageTasksConfig
from metadist.tasks.line import LineTasks, LineTasksConfig
from metadist.tasks.linear import LinearTasks, LinearTasksConfig
from metadist.tasks.mixture import MixtureTasks, MixtureTasksConfig
from metadist.tasks.quadratic import QuadraticTasks, QuadraticTasksConfig
from metadist.tasks.sinusoid import SinusoidTasks, SinusoidTasksConfig
from metadist.tasks.waveform import WaveformTasks, WaveformTasksConfig

__all__ = [
    "TASK_AXES",
    "Episode",
    "Examples",
    "ImageTasks",
    "ImageTasksConfig",
    "LineTasks",
    "LineTasksConfig",
    "LinearTasks",
    "LinearTasksConfig",
    "MixtureTasks",
    "MixtureTasksConfig",
    "QuadraticTasks",
    "QuadraticTasksConfig",
    "SinusoidTasks",
    "SinusoidTasksConfig",
    "Task",
    "TaskDistribution",
    "TasksConfig",
    "WaveformTasks",
    "WaveformTasksConfig",
    "generator",
    "join",
    "run_of",
    "take",
]

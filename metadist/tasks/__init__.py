"""What a task is, and the families that tasks are drawn from, one family a file."""

from metadist.tasks.address import generator
from metadist.tasks.base import TASK_AXES, Episode, Examples, Task, TaskDistribution, TasksConfig, join, take
from metadist.tasks.images import ImageTasks, ImageTasksConfig
from metadist.tasks.linear import LinearTasks, LinearTasksConfig
from metadist.tasks.sinusoid import SinusoidTasks, SinusoidTasksConfig

__all__ = [
    "TASK_AXES",
    "Episode",
    "Examples",
    "ImageTasks",
    "ImageTasksConfig",
    "LinearTasks",
    "LinearTasksConfig",
    "SinusoidTasks",
    "SinusoidTasksConfig",
    "Task",
    "TaskDistribution",
    "TasksConfig",
    "generator",
    "join",
    "take",
]

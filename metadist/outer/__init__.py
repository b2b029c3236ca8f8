"""The outer loop's maths: meta-gradient, aggregation, outer step, checkpoint. No thread, no clock, no wait."""

from metadist.outer.capture import fitting, pieces
from metadist.outer.checkpoint import Checkpoint, decode_checkpoint, encode_checkpoint
from metadist.outer.digest import meta_sha256, tensors_sha256
from metadist.outer.experiment import Experiment, torch_generator
from metadist.outer.messages import (
    ChunkKey,
    ChunkReport,
    Payload,
    Published,
    Update,
    Verdict,
    to_arrays,
    to_meta,
    to_payload,
    to_tensors,
)
from metadist.outer.meta_gradient import MetaGradient, Strategy, compute_meta_gradient
from metadist.outer.optimizer import OptimizerConfig, check_groups
from metadist.outer.server import (
    AgeWeight,
    OuterRule,
    OuterState,
    ServerConfig,
    all_finite,
    apply_step,
    own_copy,
    publish,
)
from metadist.outer.start import check_patterns, start_values
from metadist.outer.strategy import StrategyCheck, check_strategy, choose_strategy

__all__ = [
    "AgeWeight",
    "Checkpoint",
    "ChunkKey",
    "ChunkReport",
    "Experiment",
    "MetaGradient",
    "OptimizerConfig",
    "OuterRule",
    "OuterState",
    "Payload",
    "Published",
    "ServerConfig",
    "Strategy",
    "StrategyCheck",
    "Update",
    "Verdict",
    "all_finite",
    "apply_step",
    "check_groups",
    "check_patterns",
    "check_strategy",
    "choose_strategy",
    "compute_meta_gradient",
    "decode_checkpoint",
    "encode_checkpoint",
    "fitting",
    "meta_sha256",
    "own_copy",
    "pieces",
    "publish",
    "start_values",
    "tensors_sha256",
    "to_arrays",
    "to_meta",
    "to_payload",
    "to_tensors",
    "torch_generator",
]

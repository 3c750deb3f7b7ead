"""Episodes of varying size: what is drawn, masks and padding, and the score over shots."""

import json
import math
import subprocess

import numpy as np
import pytest
import torch

from metarun.config.build import build, build_task
from metarun.config.compose import composed
from metarun.core import Batch, Episode
from metarun.errors import ConfigError
from metarun.evaluation.episodes import BLOCK, by_size, chunks_of, manifest
from metarun.evaluation.scoring import Subject, score_episodes
from metarun.evaluation.shots import FirstShots, OverShots, with_shots
from metarun.execution.compiled import Compiled
from metarun.execution.execution import Looped, Vmapped
from metarun.tasks.sizes import PointSize, Sized, sizes_by_split
from metarun.training.padding import PIECES, bucket, num_sizes, padded, pads
from metarun.training.stream import meta_batches
from metarun.trees import ravel, slice_tasks, tree_leaves
from tests.helpers import OUTSIDE

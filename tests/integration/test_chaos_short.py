"""The kill suite in small (tests/chaos): the sizes of ``make test``, seconds at three times the promise."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.chaos import scenarios
from tests.chaos.full_disk import fill_the_disk
from tests.chaos.load import Load
from tests.chaos.scenarios import DEADLY, Figures, Round
from tests.chaos.stack import Stack, running_stack
from tests.chaos.verdict import verify
from tests.servers import RedisServer

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("chaos")]

SEED = 20261121
PATIENCE = 3.0
LEVEL_SECONDS_MAX = 60.0

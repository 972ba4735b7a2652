"""Tables of nodes, alone and together."""

import gc
import threading
import time

import models
import numpy as np
import pytest

from quantjit.executor import Executor
from quantjit.kernels import schedule, simd
from quantjit.kernels.wrapped import prepare_add
from quantjit.passes.lower import lower

pytestmark = [
    pytest.mark.jit,
    pytest.mark.skipif(simd.FORM == "portable", reason="this form has no tables"),
]
SIZE = 1 << 18


def chain_of_sums(count, threads):
    """Return a table in which blob i + 1 is blob i doubled, and the blobs."""
    blobs = [np.full(SIZE, 1 if i == 0 else 0, np.float32) for i in range(count + 1)]
    nodes = [prepare_add(SIZE, threads) for _ in range(count)]
    for node, left, out in zip(nodes, blobs, blobs[1:], strict=False):
        node.bind((left, left), (out,), schedule.make_scratch(0))
    return np.array([row for node in nodes for row in node.rows], np.int64), nodes, blobs


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_a_team_keeps_the_order_of_nodes(threads):
    table, nodes, blobs = chain_of_sums(6, threads)
    assert nodes[0].tasks > 1
    team = schedule.Team(threads)
    for _ in range(200):
        for blob in blobs[1:]:
            blob[:] = 0
        team.run(table, 0, len(table))
        np.testing.assert_array_equal(blobs[-1], np.float32(2**6))
    team.close()


def test_a_team_changes_tables():
    team, chains = schedule.Team(4), [chain_of_sums(count, 4) for count in (1, 3, 5)]
    for turn in range(300):
        table, _, blobs = chains[turn % 3]
        for blob in blobs[1:]:
            blob[:] = 0
        team.run(table, 0, len(table))
        np.testing.assert_array_equal(blobs[-1], np.float32(2 ** (len(blobs) - 1)))
        if turn % 50 == 0:
            time.sleep(0.05)  # long enough that the others fall asleep


def test_a_team_ends_with_its_owner():
    others = set(threading.enumerate())  # those of other teams may end at any moment
    team = schedule.Team(3)
    helpers = set(threading.enumerate()) - others
    assert len(helpers) == 2
    del team
    gc.collect()
    for helper in helpers:
        helper.join(timeout=60)
    assert not any(helper.is_alive() for helper in helpers)


def test_threads_do_not_change_a_bit():
    graph = lower(models.small_network())
    inputs = models.random_inputs(graph, 1)[0]
    alone = Executor(graph).run(inputs)
    for threads in (2, 3):
        together = Executor(graph, threads)
        for _ in range(20):
            found = together.run(inputs)
            for name, array in alone.items():
                np.testing.assert_array_equal(found[name], array)

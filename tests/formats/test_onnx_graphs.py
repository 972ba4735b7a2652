"""Random small graphs: our float executor against onnxruntime.

QUANTJIT_ONNX_GRAPHS sets how many there are.
"""

import os

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, assume, given, settings
from onnx_graphs import inputs_of, models

from quantjit import formats
from quantjit.executor import Executor

COUNT = int(os.environ.get("QUANTJIT_ONNX_GRAPHS", "200"))


def reference(model, feeds):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        names = [value.name for value in session.get_outputs()]
        return dict(zip(names, session.run(None, feeds), strict=True))
    except Exception as error:  # its errors have no common type
        assume("NOT_IMPLEMENTED" not in str(error))
        raise


@pytest.mark.jit
@pytest.mark.slow
@settings(
    max_examples=COUNT,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, *HealthCheck],
)
@given(model=models())
def test_random_graphs(model, tmp_path):
    assume(model.graph.output)
    path = tmp_path / "random.onnx"
    onnx.save(model, path)
    feeds = inputs_of(model)
    expected = reference(model, feeds)
    graph = formats.load(path)
    found = Executor(graph).run({blob.name: feeds[blob.name] for blob in graph.inputs})
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        assert found[name].shape == wanted.shape
        size = max(float(np.abs(wanted).max(initial=0)), 1.0)
        np.testing.assert_allclose(found[name], wanted, rtol=1e-4, atol=1e-4 * size)

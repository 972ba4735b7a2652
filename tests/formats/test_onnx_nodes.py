"""The official node tests of every operator that is read."""

import pytest
from onnx_nodes import OPERATORS, cases, check, why_skipped


@pytest.mark.jit
@pytest.mark.parametrize("operator", OPERATORS)
def test_node_tests(operator):
    run = [case for case in cases()[operator] if not why_skipped(case)]
    failed = {}
    for case in run:
        try:
            check(case, operator)
        except Exception as error:  # noqa: BLE001  # all of them are wanted, not the first
            failed[case.name] = f"{type(error).__name__}: {error}"
    assert not failed
    assert run

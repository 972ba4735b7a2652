"""The four questions: each is answered in one sentence with its number."""

import re

import numpy as np
import pytest

from quantjit import verdict
from quantjit.convergence import Convergence
from quantjit.metrics import BlobError, Comparison, NodeError
from quantjit.quantizer import PASSES, Settings

SETTINGS = Settings("mse", "mse", "mix", target="onnx")


def node(name, before, after, is_int8=True):
    error = BlobError(name, after, 0.99, 1.0)
    return NodeError(name, "inner_product", is_int8, 10, error, before - after)


def comparison(sqnr=30.0, nodes=(), images=1000, **shares):
    return Comparison(tuple(nodes), (), sqnr, images, **shares)


def convergence(*rows, inputs=(16, 32, 64)):
    return Convergence(
        inputs, {f"b{i}": np.array(row, np.float32)[:, None] for i, row in enumerate(rows)}
    )


def asked(*args):
    return dict(zip(("safe", "worst", "try", "images"), verdict.answers(*args), strict=True))


@pytest.mark.parametrize(
    ("found", "grade", "number"),
    [
        (comparison(30.04, images=16, agreement=0.5), 0, "30.0 dB"),
        (comparison(20.0, images=16), 1, "20.0 dB"),
        (comparison(9.0, images=16), 2, "9.0 dB"),
        (comparison(9.0, agreement=0.98), 0, "98.0%"),
        (comparison(40.0, agreement=0.95), 1, "95.0%"),
        (comparison(40.0, agreement=0.98, float_top1=0.8, int8_top1=0.79), 0, "79.00%"),
        (comparison(40.0, agreement=0.98, float_top1=0.8, int8_top1=0.76), 2, "76.00%"),
        (comparison(40.0, agreement=0.92, images=100, float_top1=0.6, int8_top1=0.62), 1, "92.0%"),
        (comparison(40.0, agreement=0.92, images=100, float_top1=0.6, int8_top1=0.5), 2, "50.00%"),
        (comparison(40.0, agreement=0.95, images=900, float_top1=0.6, int8_top1=0.6), 0, "60.00%"),
    ],
)
def test_safe_to_ship(found, grade, number):
    answer = asked(found, SETTINGS, 100, None)["safe"]
    assert answer.grade == grade == verdict.grade(found)
    assert number in answer.text
    assert answer.short.split()[0].strip(":") == ("Yes", "Perhaps", "No")[grade]
    assert verdict.GRADES[grade] in verdict.verdict(found)


def test_the_worst_layer_adds_the_most_noise():
    first = node("first", 96, 50)  # loses most, but next to nothing was wrong
    late = node("late", 30, 20)
    floating = node("floating", 30, 5, is_int8=False)
    answer = asked(comparison(20, [first, late, floating]), SETTINGS, 100, None)["worst"]
    assert answer.short == "late"
    assert answer.grade == 1
    assert "from 30.0 to 20.0 dB" in answer.text
    assert "9.5%" in answer.text
    assert asked(comparison(20, [first]), SETTINGS, 100, None)["worst"].grade == 0
    assert asked(comparison(20, [node("a", 20, 8)]), SETTINGS, 100, None)["worst"].grade == 2
    assert asked(comparison(20, [floating]), SETTINGS, 100, None)["worst"].grade is None


def test_what_to_try_is_the_first_remedy():
    found = asked(comparison(20.0, images=16), SETTINGS, 100, None)["try"]
    assert "--passes all" in found.text
    assert found.grade == 1
    assert "1 more idea" in found.text
    good = asked(comparison(30.0, images=16), SETTINGS, 100, None)["try"]
    assert (good.grade, good.short) == (0, "Nothing more")
    few = asked(comparison(30.0, images=16), SETTINGS, 10, None)["try"]
    assert "10 are few" in few.text
    heavy = verdict.remedies(
        comparison(20.0, [node("a", 30, 20), node("b", 96, 60)]), None, 100, None
    )
    assert any("--exclude a (50.0% of the MACs)" in line for line in heavy)
    assert not any("--passes" in line for line in heavy), "nothing is known of the settings"
    tried = Settings("mse", "mse", "mix", target="onnx", passes=PASSES)
    assert "tune" in verdict.remedies(comparison(20.0), tried, 100)[0]


def test_a_tuned_network_is_not_to_be_tuned():
    heavy = comparison(20.0, [node("a", 30, 20)], images=16)
    advice = verdict.remedies(heavy, SETTINGS, 100, is_tuned=True)
    assert [line.partition(":")[0] for line in advice] == ["keep the worst layers in float"]
    best = verdict.answers(comparison(20.0, images=16), SETTINGS, 100, None, is_tuned=True)[2]
    assert best.short == "Nothing more"
    assert "usable, at 20.0 dB" in best.text


def test_enough_images():
    still = convergence([1, 1.0, 1.0], [2, 2.0, 2.001])
    answer = verdict.enough_images(still, 64)
    assert (answer.grade, answer.short) == (0, "32 are")
    assert "2 of 2 blobs" in answer.text
    moving = convergence([1, 1.1, 1.3], [2, 2, 2])
    answer = verdict.enough_images(moving, 64)
    assert (answer.grade, answer.short) == (1, "More than 64")
    assert "b0 by 15.4 %" in answer.text
    assert "try 128" in answer.text
    assert verdict.enough_images(None, 100).grade is None
    few = verdict.enough_images(convergence([1, 1], inputs=(16, 20)), 20)
    assert (few.grade, few.short) == (1, "More than 20")
    tries = verdict.remedies(comparison(20.0), SETTINGS, 64, moving)
    assert any("try 128" in line for line in tries)


def test_every_answer_is_one_sentence_with_a_number():
    cases = [
        (None, None, 10, None),
        (comparison(20.0, [node("a", 30, 20)], agreement=0.9), SETTINGS, 100, None),
        (comparison(35.0, [node("a", 40, 35)], images=10), SETTINGS, 64, convergence([1, 1, 1])),
    ]
    for case in cases:
        for answer in verdict.answers(*case):
            assert answer.question.endswith("?")
            assert answer.text.endswith(".")
            if case[0] is not None:
                assert re.search(r"\d", answer.text), answer

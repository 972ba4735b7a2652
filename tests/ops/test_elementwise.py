import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ops_runner import codes, infer, normal, run

from quantjit import ops
from quantjit.errors import GraphError
from quantjit.ops.elementwise import BinaryAttrs
from quantjit.quant import QuantParams

FUNCTIONS = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
}


@st.composite
def shapes(draw, count=2):
    """Shapes of operands that can be broadcast, some of lower rank."""
    full = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    found = []
    for _ in range(count):
        kept = [draw(st.booleans()) for _ in full]
        shape = [size if keep else 1 for size, keep in zip(full, kept, strict=True)]
        found.append(tuple(shape[draw(st.integers(0, len(full))) :]))
    return found


@given(shapes(), st.sampled_from(sorted(FUNCTIONS)), st.integers(0, 99))
def test_broadcast_like_numpy(operand_shapes, op, seed):
    arrays = [normal(*shape, seed=seed + i) for i, shape in enumerate(operand_shapes)]
    found = run(op, arrays, BinaryAttrs())
    np.testing.assert_array_equal(found, FUNCTIONS[op](*arrays))
    assert found.shape == np.broadcast_shapes(*operand_shapes)


@given(shapes(3), st.sampled_from(sorted(FUNCTIONS)))
def test_three_operands_from_left_to_right(operand_shapes, op):
    arrays = [normal(*shape, seed=i) for i, shape in enumerate(operand_shapes)]
    expected = FUNCTIONS[op](FUNCTIONS[op](arrays[0], arrays[1]), arrays[2])
    np.testing.assert_array_equal(run(op, arrays, BinaryAttrs()), expected)


@pytest.mark.parametrize("op", sorted(FUNCTIONS))
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(
    ("constant_shape", "aligned"),
    [
        ((1,), (1, 1, 1)),
        ((), ()),
        ((3,), (3, 1, 1)),  # one a channel
        ((60,), (3, 4, 5)),  # one an element
        ((5,), (1, 1, 5)),  # one a column
        ((20,), (1, 4, 5)),  # one a pixel
        ((3, 1, 1), (3, 1, 1)),
        ((1, 3, 1, 5), (3, 1, 5)),
    ],
)
def test_constants(op, index, constant_shape, aligned):
    x, constant = normal(2, 3, 4, 5), normal(*constant_shape, seed=1)
    operands = [x, constant.reshape(aligned)]
    if index == 0:
        operands.reverse()
    weights = {"constant": constant}
    found = run(op, [x], BinaryAttrs(index), weights)
    np.testing.assert_array_equal(found, FUNCTIONS[op](*operands))


def test_a_half_precision_constant_is_widened():
    constant = np.float16([0.1])
    found = run("mul", [normal(2, 3)], BinaryAttrs(1), {"constant": constant})
    np.testing.assert_array_equal(found, normal(2, 3) * np.float32(constant))


def test_a_constant_of_a_vector():
    x = normal(4)
    constant = {"constant": normal(4, seed=1)}
    np.testing.assert_array_equal(run("add", [x], BinaryAttrs(1), constant), x + normal(4, seed=1))


def test_the_default_constant_index_is_ignored_with_two_inputs():
    x, y = normal(2, 3), normal(2, 3, seed=1)
    np.testing.assert_array_equal(run("add", [x, y], BinaryAttrs(1)), x + y)


def test_a_structure_without_its_constant_keeps_the_shape():
    assert infer("mul", [(1, 2, 3, 4)], BinaryAttrs(1)) == ((1, 2, 3, 4),)
    assert ops.get("mul").required_weights(BinaryAttrs(1)) == ("constant",)
    assert ops.get("mul").required_weights(BinaryAttrs()) == ()


@pytest.mark.parametrize(
    ("given_shapes", "attrs", "weights", "reason"),
    [
        ([(2, 3), (2, 4)], BinaryAttrs(), {}, "cannot be broadcast"),
        ([(2, 3, 4)], BinaryAttrs(1), {"constant": np.zeros(7)}, "cannot be broadcast"),
        ([(2, 3)], BinaryAttrs(), {}, "two operands"),
    ],
)
def test_faults_name_the_node(given_shapes, attrs, weights, reason):
    with pytest.raises(GraphError, match=reason):
        infer("add", given_shapes, attrs, weights=weights)


# ------------------------------------------------------------------ int8 add

STEPS = st.floats(2.0**-10, 4.0, width=32)


def add_codes(arrays, sources, target, ndim):
    total = np.float32(0)
    for i, (x, params) in enumerate(zip(arrays, sources, strict=True)):
        scale, zero = (oracle.by_channel(v, ndim) for v in (params.scale, params.zero_point))
        real = oracle.to_reals(x, scale, zero)
        total = real if i == 0 else total + real
    return oracle.to_codes(
        total, oracle.by_channel(target.scale, ndim), oracle.by_channel(target.zero_point, ndim)
    )


@given(st.data())
def test_int8_add_is_exact(data):
    count = data.draw(st.integers(2, 4))
    shape = data.draw(st.sampled_from([(2, 3), (1, 3, 2), (2, 3, 2, 5)]))
    per_channel = data.draw(st.booleans())
    size = shape[1] if per_channel else 1
    params = [
        QuantParams(
            data.draw(st.lists(STEPS, min_size=size, max_size=size)),
            data.draw(st.lists(st.integers(-128, 127), min_size=size, max_size=size)),
        )
        for _ in range(count + 1)
    ]
    arrays = [codes(*shape, seed=i) for i in range(count)]
    quant = (tuple(params[:-1]), (params[-1],))
    found = run("add", arrays, BinaryAttrs(), quant=quant)
    np.testing.assert_array_equal(found, add_codes(arrays, params[:-1], params[-1], len(shape)))


@pytest.mark.parametrize("count", [2, 3])
def test_the_first_input_decides_between_channels_and_tensor(count):
    arrays = [codes(1, 3, 4, seed=i) for i in range(count)]
    channels, tensor = QuantParams([0.5, 0.25, 2.0]), QuantParams(0.125)
    first = QuantParams(channels.scale[:1])
    for left, others, target, used in (
        (tensor, channels, channels, (tensor, first, first)),
        (channels, tensor, tensor, (channels, tensor, tensor)),
    ):
        quant = ((left, *[others] * (count - 1)), (target,))
        expected = add_codes(arrays, [used[0], *[used[1]] * (count - 1)], used[2], 3)
        np.testing.assert_array_equal(run("add", arrays, BinaryAttrs(), quant=quant), expected)


@pytest.mark.parametrize("count", [2, 3])
def test_a_dead_output_channel_saturates_as_in_tnn(count):
    arrays = [np.int8([[[-5, 0, 5]], [[-5, 0, 5]]]).reshape(1, 2, 3)] * count
    quant = ((QuantParams([1.0, 1.0]),) * count, (QuantParams([0.0, float(count)]),))
    found = run("add", arrays, BinaryAttrs(), quant=quant)
    np.testing.assert_array_equal(found, [[[-128, 127, 127], [-5, 0, 5]]])


def test_int8_add_does_not_broadcast():
    quant = ((QuantParams(1.0),) * 2, (QuantParams(1.0),))
    with pytest.raises(GraphError, match="one shape"):
        run("add", [codes(1, 2, 3), codes(1, 1, 3)], BinaryAttrs(), quant=quant)

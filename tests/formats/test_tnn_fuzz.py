"""Whatever the bytes, reading gives a network or a FormatError, soon and in little memory."""

import struct
import time
import tracemalloc

import pytest
import tnn_files as files
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from quantjit.errors import FormatError, GraphError
from quantjit.formats import tnn

MEMORY = 100 * 2**20
SECONDS = 10.0
FIXTURES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
PAIRS = {
    "float": files.float_pair(),
    "int8": files.int8_pair(),
    "headerless": (
        files.proto([files.CONVOLUTION], inputs="data 1 3 4 4 ", magic=files.V1),
        files.model([files.convolution("conv", files.WEIGHT, files.BIAS, version=files.V1)], None),
    ),
}
HUGE = (0, -1, 2**31 - 1, -(2**31), 2**30, 10_000, 9_999, 0x1FFFFFFF, 255)
WORDS = ("0", "-1", "2147483647", "99999999999999999999", "nan", "1e308", "x", ":", ",", '"', "\n")


def read(folder, proto, model):
    """Read the pair within the limits; None: refused by a FormatError."""
    paths = files.pair(folder, proto, model)
    tracemalloc.start()
    start = time.perf_counter()
    try:
        graph = tnn.read(paths)
    except FormatError:
        graph = None
    finally:
        seconds = time.perf_counter() - start
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak - len(proto) - len(model) < MEMORY
    assert seconds < SECONDS
    return graph


def check(folder, proto, model):
    """What was read can be written and read again, or is refused by the writer."""
    graph = read(folder, proto, model)
    if graph is None:
        return
    target = (folder / "again.tnnproto", folder / "again.tnnmodel")
    try:
        tnn.write(graph, target)
    except GraphError:
        return
    assert tnn.read(target) == graph


def flipped(data, bits):
    changed = bytearray(data)
    for bit in bits:
        changed[bit // 8 % len(data)] ^= 1 << bit % 8
    return bytes(changed)


pairs = st.sampled_from(sorted(PAIRS))
bits = st.lists(st.integers(0, 2**16), min_size=1, max_size=8)


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_untouched(tmp_path, name):
    assert read(tmp_path, *PAIRS[name]) is not None


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_every_truncation_of_a_model_is_refused(tmp_path, name):
    proto, model = PAIRS[name]
    for size in range(len(model)):
        assert read(tmp_path, proto, model[:size]) is None, size


@FIXTURES
@given(pairs, st.integers(0, 2**16))
def test_truncated_structure(tmp_path, name, size):
    proto, model = PAIRS[name]
    check(tmp_path, proto[: size % len(proto)], model)


@FIXTURES
@given(pairs, bits, bits)
def test_flipped_bits(tmp_path, name, in_proto, in_model):
    proto, model = PAIRS[name]
    check(tmp_path, flipped(proto, in_proto), model)
    check(tmp_path, proto, flipped(model, in_model))


@FIXTURES
@given(pairs, st.integers(0, 2**16), st.sampled_from(HUGE))
def test_numbers_of_a_model_replaced(tmp_path, name, place, value):
    proto, model = PAIRS[name]
    place %= len(model) - 4
    check(tmp_path, proto, model[:place] + struct.pack("<i", value) + model[place + 4 :])


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_each_number_of_a_model_replaced_by_the_largest(tmp_path, name):
    proto, model = PAIRS[name]
    for place in range(len(model) - 4):
        check(tmp_path, proto, model[:place] + b"\xff\xff\xff\x7f" + model[place + 4 :])


@FIXTURES
@given(pairs, st.integers(0, 2**16), st.sampled_from(WORDS))
@example("float", 3, "2147483647")
def test_words_of_a_structure_replaced(tmp_path, name, place, word):
    proto, model = PAIRS[name]
    words = proto.decode().split(" ")
    words[place % len(words)] = word
    check(tmp_path, " ".join(words).encode(), model)


@FIXTURES
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_bytes(tmp_path, proto, model):
    check(tmp_path, proto, PAIRS["float"][1])
    check(tmp_path, PAIRS["float"][0], model)


@pytest.mark.shared
@settings(FIXTURES, max_examples=25)
@given(st.integers(0, 2**24), st.lists(st.integers(0, 2**24), max_size=3))
def test_golden_pair(shared, tmp_path, size, positions):
    path = shared / "golden" / "rfb320" / "b2w1t1" / "rfb320.quantized.tnnproto"
    proto, model = path.read_bytes(), path.with_suffix(".tnnmodel").read_bytes()
    read(tmp_path, proto, flipped(model, positions)[: size % (2 * len(model))])
    read(tmp_path, flipped(proto, positions), model)
    read(tmp_path, proto[: size % len(proto)], model)

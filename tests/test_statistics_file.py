"""The statistics file: the same bytes for the same statistics, refused where it is not ours."""

import contextlib
from dataclasses import replace

import models
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantjit.errors import DataError
from quantjit.statistics_file import (
    VERSION,
    InputRecord,
    Origin,
    StatisticsFile,
    fingerprint,
    merge,
    seal,
)
from quantjit.stats import BlobStats

ORIGIN = Origin("a" * 64, {"bias": [1.0], "resize": "stretch", "resize_shorter": None}, "bytes")
ROWS = {"data": 1, "conv": 3}


def gathered(inputs, bins=64, origin=ORIGIN):
    """The file of some inputs, each a number that seeds its blobs."""
    stats = {blob: BlobStats(rows, bins) for blob, rows in ROWS.items()}
    for number in inputs:
        rng = np.random.default_rng(number)
        blob = rng.normal(0, 10.0 ** rng.integers(-3, 4), (1, 3, 5)).astype(np.float32)
        blob[blob > 2] = 0
        for seen in stats.values():
            seen.update(blob)
    records = sorted(InputRecord(f"{n}.png", f"sha256:{n:064x}", 1) for n in inputs)
    return StatisticsFile(stats, tuple(records), origin)


@given(st.permutations(range(9)), st.integers(1, 9), st.randoms(use_true_random=False))
def test_shards_merged_in_any_order_are_one_pass(order, count, random):
    shards = [gathered(order[start::count]) for start in range(count)]
    while len(shards) > 1:  # any two of them, in any grouping
        first = shards.pop(random.randrange(len(shards)))
        second = shards.pop(random.randrange(len(shards)))
        shards.append(first.merged(second))
    assert shards[0].encode() == gathered(range(9)).encode()


def test_a_file_comes_back(tmp_path):
    file = gathered([5, 1, 3])
    file.save(tmp_path / "a.qjs")
    back = StatisticsFile.load(tmp_path / "a.qjs")
    assert back == file
    assert back.encode() == (tmp_path / "a.qjs").read_bytes()
    assert back.images == 3
    assert [path.name for path in tmp_path.iterdir()] == ["a.qjs"]


def test_nothing_seen_yet_comes_back(tmp_path):
    gathered([]).save(tmp_path / "a.qjs")
    assert StatisticsFile.load(tmp_path / "a.qjs") == gathered([])


def test_more_than_uint32_counts_come_back(tmp_path):
    file = gathered([1, 2])
    for blob, seen in file.stats.items():
        state = seen.state()
        state["counts"] = state["counts"].astype(np.int64) << 33
        state["tallies"] = state["tallies"] << 33
        file.stats[blob] = BlobStats.from_state(state)
    file.save(tmp_path / "a.qjs")
    assert pl.read_parquet(tmp_path / "a.qjs")["histogram"].dtype.inner == pl.Int64
    back = StatisticsFile.load(tmp_path / "a.qjs")
    assert back == file
    assert back.encode() == file.encode()


def test_the_table_says_what_numpy_says(tmp_path):
    stats = {blob: BlobStats(rows, 64) for blob, rows in ROWS.items()}
    x = np.random.default_rng(0).normal(0, 3, (4, 3, 50)).astype(np.float32)
    x[np.abs(x) < 1] = 0
    for seen in stats.values():
        seen.update(x)
    StatisticsFile(stats, (InputRecord("x.npy", "stat:1:2", 4),), ORIGIN).save(tmp_path / "a.qjs")
    frame = pl.read_parquet(tmp_path / "a.qjs")
    assert frame["blob"].to_list() == ["data", "conv", "conv", "conv"]
    assert frame["channel"].to_list() == [None, 0, 1, 2]
    for row, values in zip(frame.iter_rows(named=True), [x, *x.transpose(1, 0, 2)], strict=True):
        wide = values.astype(np.float64)
        assert row["minimum"] == values.min()
        assert row["maximum"] == values.max()
        assert row["count"] == values.size
        assert row["zero_share"] == (values == 0).mean()
        assert np.isclose(row["mean"], wide.mean(), rtol=1e-12, atol=1e-15)
        assert np.isclose(row["mean_abs"], np.abs(wide).mean(), rtol=1e-12)
        assert np.isclose(row["std"], wide.std(), rtol=1e-12)
        edges = np.arange(65) * row["bin_width"]
        expected = np.histogram(np.abs(wide[wide != 0]), edges)[0]
        assert row["histogram"] == expected.tolist()


def test_fewer_bins_merge_with_more():
    fine, coarse = gathered([1, 2], bins=64), gathered([3], bins=16)
    assert fine.merged(coarse).encode() == gathered([1, 2, 3], bins=16).encode()
    assert coarse.merged(fine).encode() == gathered([1, 2, 3], bins=16).encode()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Origin("b" * 64, ORIGIN.preprocess, "bytes"), "another network"),
        (
            replace(ORIGIN, preprocess=dict(ORIGIN.preprocess) | {"bias": [104.0, 117.0, 123.0]}),
            r"another preprocessing \(bias 104,117,123, not 1\)",
        ),
        (
            replace(ORIGIN, preprocess=dict(ORIGIN.preprocess) | {"resize": "crop"}),
            "resize crop, not stretch",
        ),
        (replace(ORIGIN, marks="stat"), "inputs marked by stat, not by bytes"),
    ],
)
def test_files_of_another_origin_are_refused(other, words, tmp_path):
    first, second = tmp_path / "a.qjs", tmp_path / "b.qjs"
    gathered([1]).save(first)
    gathered([2], origin=other).save(second)
    with pytest.raises(DataError, match=rf"b\.qjs: was gathered with .*{words}"):
        merge([first, second])


def test_inputs_do_not_count_twice():
    words = r"b\.qjs: has 1 inputs that are in already, 2\.png among them"
    with pytest.raises(DataError, match=words):
        gathered([1, 2]).merged(gathered([2, 3]), "b.qjs")


def test_other_rows_are_refused():
    other = StatisticsFile({"data": BlobStats(1, 64), "conv": BlobStats(1, 64)}, (), ORIGIN)
    with pytest.raises(DataError, match="'conv' has 1 rows of statistics, not 3"):
        gathered([1]).merged(other)


def test_what_is_no_statistics_file(tmp_path):
    path = tmp_path / "a.qjs"
    with pytest.raises(DataError, match=r"a\.qjs: cannot be read: No such file"):
        StatisticsFile.load(path)
    for content in (b"", b"PAR1", b"\xff" * 1000):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.qjs: is no statistics file"):
            StatisticsFile.load(path)
    pl.DataFrame({"a": [1]}).write_parquet(path)
    with pytest.raises(DataError, match=r"a\.qjs: is no statistics file"):
        StatisticsFile.load(path)


def test_another_version_is_refused(tmp_path):
    path = tmp_path / "a.qjs"
    gathered([1]).save(path)
    metadata = {
        key: value.replace(f'"version":{VERSION}', f'"version":{VERSION + 1}')
        for key, value in pl.read_parquet_metadata(path).items()
        if key.startswith("quantjit")
    }
    pl.read_parquet(path).write_parquet(path, metadata=metadata)
    with pytest.raises(DataError, match="is a damaged statistics file: its checksum"):
        StatisticsFile.load(path)
    path.write_bytes(seal(path.read_bytes()))
    with pytest.raises(DataError, match=f"format version {VERSION + 1}, this quantjit reads"):
        StatisticsFile.load(path)


def test_an_input_may_have_the_name_of_the_checksum(tmp_path):
    name = "quantjit.sha256--" + "ab" * 32 + ".png"
    file = replace(gathered([]), inputs=(InputRecord(name, "stat:1:1", 0),))
    file.save(tmp_path / "a.qjs")
    assert StatisticsFile.load(tmp_path / "a.qjs") == file


WHOLE = gathered([1, 2])


@given(place=st.integers(0, len(WHOLE.encode()) - 1), flip=st.integers(0, 255))
def test_damage_is_found_or_does_no_harm(place, flip, tmp_path_factory):
    """flip: of the bits of a byte; 0 cuts the file off there."""
    content = bytearray(WHOLE.encode())
    content[place] ^= flip
    path = tmp_path_factory.getbasetemp() / "damaged.qjs"
    path.write_bytes(content if flip else content[:place])
    found = None
    with contextlib.suppress(DataError):
        found = StatisticsFile.load(path)
    assert found in (None, WHOLE)


def test_the_fingerprint_is_of_what_a_network_computes():
    graph = models.small_network()
    same = fingerprint(graph)
    assert fingerprint(models.small_network()) == same
    assert fingerprint(models.small_network(size=8)) != same
    first, *rest = graph.nodes
    for changed in (
        replace(first, attrs=replace(first.attrs, activation="relu")),
        replace(first, weights=dict(first.weights) | {"bias": first.weights["bias"] + 1}),
        replace(first, name="other"),
    ):
        assert fingerprint(graph.with_nodes((changed, *rest))) != same

"""Statistics of a data set: the same bytes for any batch, threads, shards and interruptions."""

import random
from pathlib import Path

import models
import numpy as np
import pytest
from PIL import Image

from quantjit import calibration, formats, pipeline, quantizer, statistics_file
from quantjit.dataset import ArraySamples, Dataset
from quantjit.errors import CalibrationError, DataError, Interrupted, UsageError
from quantjit.executor import infer_shapes
from quantjit.graph import Blob, Graph, Node
from quantjit.images import Preprocess
from quantjit.ops.shape import ReshapeAttrs
from quantjit.pipeline import Inputs
from quantjit.plan import plan
from quantjit.quantizer import Settings
from quantjit.statistics_file import StatisticsFile

DATA = Path(__file__).resolve().parents[1] / "data"
IMAGES = 12
INPUTS = Inputs(Preprocess((127.0,), (1 / 64,)))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny network and images for it, one of them a stack of three in an array."""
    root = tmp_path_factory.mktemp("place")
    formats.save(models.small_network(size=6), root / "net.tnnproto")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    for index in range(IMAGES):
        pixels = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{index:02}.png")
    stack = rng.normal(0, 1, (3, 3, 6, 6)).astype(np.float32)
    np.save(root / "images" / "05b.npy", stack)
    return root


def gather(place, output, **options):
    defaults = {"inputs": INPUTS, "merge": "channel", "jobs": 1}
    images = options.pop("images", place / "images")
    return pipeline.calibrate_files(
        place / "net.tnnproto", None, images, output, **(defaults | options)
    )


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    """The file of one pass, its bytes."""
    path = tmp_path_factory.mktemp("whole") / "whole.qjs"
    result = gather(place, path)
    assert result.file.images == result.calibration.new_images == IMAGES + 3
    assert [each.name for each in path.parent.iterdir()] == ["whole.qjs"]
    return path.read_bytes()


# ------------------------------------------------------------------ the same bytes


@pytest.mark.parametrize(("jobs", "batch"), [(1, 2), (2, 1), (2, 8), (3, 32)])
def test_threads_and_batches_are_not_seen(place, whole, tmp_path, jobs, batch):
    result = gather(place, tmp_path / "a.qjs", jobs=jobs, batch=batch)
    assert (result.calibration.work.threads, result.calibration.work.batch) == (jobs, batch)
    assert (tmp_path / "a.qjs").read_bytes() == whole


@pytest.mark.jit
@pytest.mark.parametrize("merge", ["channel", "mix"])
def test_batches_and_threads_on_the_embedded_network(tmp_path, merge):
    graph = pipeline.load(DATA / "demo.tnnproto")
    how = Preprocess((127.5,), (1 / 127.5,))
    channels = calibration.blobs_to_gather(graph, merge)
    origin = calibration.origin_of(graph, how)
    found = set()
    for jobs, batch in ((1, 1), (1, 8), (1, 32), (2, 1), (2, 8), (2, 32)):
        dataset = Dataset.open(DATA / "calib", pipeline.input_shapes(graph), how, limit=40)
        planned = plan(graph, channels, jobs=jobs, batch=batch)
        assert planned.resources.batch == batch
        gathering = calibration.Gathering(graph, dataset, channels, planned, origin)
        gathering.run()
        found.add(gathering.file().encode())
    assert len(found) == 1


def test_seven_shards_in_random_order_are_one(place, whole, tmp_path):
    shards = [tmp_path / f"{number}.qjs" for number in range(1, 8)]
    for number, path in enumerate(shards, 1):
        gather(place, path, shard=(number, 7), batch=number, jobs=1 + number % 2)
    for seed in range(3):
        random.Random(seed).shuffle(shards)
        result = pipeline.merge_files(shards, tmp_path / "merged.qjs")
        assert (tmp_path / "merged.qjs").read_bytes() == whole
    assert result.file.images == IMAGES + 3
    with pytest.raises(DataError, match="shard 14/99 is empty: there are 13 files"):
        gather(place, tmp_path / "x.qjs", shard=(14, 99))


@pytest.mark.parametrize("marks", ["bytes", "stat"])
def test_appending_is_one_pass_and_takes_no_file_twice(place, whole, tmp_path, marks):
    gather(place, tmp_path / "whole.qjs", marks=marks)
    path = tmp_path / "a.qjs"
    gather(place, path, shard=(2, 3), marks=marks)
    result = gather(place, path, append=True, marks=marks)
    assert result.known == 4
    assert (result.calibration.new_images, result.calibration.images) == (11, 15)
    assert path.read_bytes() == (tmp_path / "whole.qjs").read_bytes()
    assert (path.read_bytes() == whole) == (marks == "bytes")
    again = gather(place, path, append=True, marks=marks)
    assert (again.known, again.calibration.new_images) == (13, 0)
    assert path.read_bytes() == (tmp_path / "whole.qjs").read_bytes()


def test_appending_needs_a_file_of_the_same_origin(place, tmp_path):
    path = tmp_path / "a.qjs"
    with pytest.raises(DataError, match=r"a\.qjs: cannot be read"):
        gather(place, path, append=True)
    gather(place, path, shard=(1, 5))
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"a\.qjs: was gathered with another preprocessing \(bias"):
        gather(place, path, append=True, inputs=Inputs())
    with pytest.raises(DataError, match="inputs marked by bytes, not by stat"):
        gather(place, path, append=True, marks="stat")
    with pytest.raises(DataError, match="another --merge-type"):
        gather(place, path, append=True, merge="mix")
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["a.qjs"]


# ------------------------------------------------------------------ interrupted and resumed


def stop_after(asked):
    """What says stop when it has been asked so often."""
    left = iter([False] * asked)
    return lambda: next(left, True)


@pytest.mark.parametrize(("jobs", "batch"), [(1, 1), (2, 4)])
def test_interrupted_at_any_point_and_resumed(place, whole, tmp_path, jobs, batch):
    seen = set()
    for asked in range(1, 12) if jobs == 1 else (1, 5, 9):
        path = tmp_path / f"{asked}.qjs"
        checkpoint = tmp_path / f"{asked}.qjs.checkpoint"
        with pytest.raises(Interrupted, match=f"--resume continues from {checkpoint}$"):
            gather(place, path, jobs=jobs, batch=batch, stop=stop_after(asked))
        assert not path.exists()
        seen.add(StatisticsFile.load(checkpoint).images)
        result = gather(place, path, jobs=jobs, resume=True)
        assert result.known > 0
        assert path.read_bytes() == whole
        assert not checkpoint.exists()
    assert len(seen) >= 2


def test_interrupted_again_and_again(place, whole, tmp_path):
    path, stops = tmp_path / "a.qjs", 0
    for _ in range(40):
        try:
            gather(place, path, resume=True, every=(1, None), stop=stop_after(8 + stops))
        except Interrupted:
            stops += 1
        else:
            break
    assert stops >= 2
    assert path.read_bytes() == whole


def test_interrupted_before_anything_was_seen(place, tmp_path):
    with pytest.raises(Interrupted, match=r"interrupted after 0 of 13 files$"):
        gather(place, tmp_path / "a.qjs", stop=lambda: True)
    assert list(tmp_path.iterdir()) == []


def test_resuming_what_is_complete_does_nothing(place, whole, tmp_path):
    path = tmp_path / "a.qjs"
    gather(place, path, resume=True)  # there is nothing to resume: it starts
    result = gather(place, path, resume=True)
    assert (result.known, result.calibration.new_images) == (13, 0)
    assert path.read_bytes() == whole


def test_an_interrupted_append_is_resumed(place, whole, tmp_path):
    path = tmp_path / "a.qjs"
    gather(place, path, shard=(2, 2))
    before = path.read_bytes()
    with pytest.raises(Interrupted):
        gather(place, path, append=True, stop=stop_after(9))
    assert path.read_bytes() == before
    gather(place, path, append=True, resume=True)
    assert path.read_bytes() == whole


def interrupted(place, folder):
    path = folder / "a.qjs"
    with pytest.raises(Interrupted):
        gather(place, path, stop=stop_after(4))
    return path


def copied(place, folder):
    """A copy of the images that may be changed."""
    images = folder / "images"
    images.mkdir()
    for file in (place / "images").iterdir():
        (images / file.name).write_bytes(file.read_bytes())
    return images


def test_a_checkpoint_is_not_overwritten_unasked(place, tmp_path):
    path = interrupted(place, tmp_path)
    with pytest.raises(UsageError, match=r"a\.qjs\.checkpoint is of a run that did not end"):
        gather(place, path)


def test_files_that_are_gone_or_changed_since_the_checkpoint(place, tmp_path):
    path = interrupted(place, tmp_path)
    images = copied(place, tmp_path)
    (images / "00.png").write_bytes((images / "11.png").read_bytes())
    with pytest.raises(UsageError, match=r"00\.png is another file now"):
        gather(place, path, images=images, resume=True)
    (images / "00.png").unlink()
    with pytest.raises(UsageError, match=r"1 inputs that are not among the files, 00\.png"):
        gather(place, path, images=images, resume=True)


def test_checkpoints_come_when_they_are_due(place, tmp_path, monkeypatch):
    written = []
    save = StatisticsFile.save

    def note(file, path):
        written.append((path.name, file.images))
        save(file, path)

    monkeypatch.setattr(StatisticsFile, "save", note)
    gather(place, tmp_path / "a.qjs", every=(4, None))
    assert written == [("a.qjs.checkpoint", n) for n in (4, 9, 13)] + [("a.qjs", 15)]
    written.clear()
    gather(place, tmp_path / "b.qjs", every=(None, 1e-9))
    assert len(written) > 3
    written.clear()
    gather(place, tmp_path / "c.qjs", every=(None, None))
    assert written == [("c.qjs", 15)]


def test_too_many_bad_files_leave_a_checkpoint(place, whole, tmp_path):
    images = copied(place, tmp_path)
    (images / "06.png").write_bytes(b"")
    path = tmp_path / "a.qjs"
    with pytest.raises(DataError, match=r"1 of 13 files cannot be used.*06\.png"):
        gather(place, path, images=images)
    assert not path.exists()
    assert StatisticsFile.load(tmp_path / "a.qjs.checkpoint").images == 9
    (images / "06.png").write_bytes((place / "images" / "06.png").read_bytes())
    gather(place, path, images=images, resume=True)
    assert path.read_bytes() == whole


# ------------------------------------------------------------------ what is solved from it


@pytest.mark.parametrize("merge", ["channel", "mix", "tensor"])
@pytest.mark.parametrize("method", ["mse", "kl", "asymmetric"])
def test_a_file_solves_as_the_data_do(place, tmp_path, merge, method):
    (tmp_path / "whole.qjs").write_bytes(b"")
    gather(place, tmp_path / "whole.qjs")
    settings = Settings(method, "minmax", merge)
    made = [
        pipeline.run(
            place / "net.tnnproto",
            None,
            place / "images" if statistics is None else None,
            settings,
            inputs=INPUTS if statistics is None else None,
            output=tmp_path / f"{name}.tnnproto",
            verify_inputs=0,
            statistics=statistics,
        )
        for name, statistics in (("data", None), ("file", tmp_path / "whole.qjs"))
    ]
    for suffix in ("tnnproto", "tnnmodel"):
        data, file = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in ("data", "file"))
        assert data == file
    assert made[0].calibration.images == made[1].calibration.images == IMAGES + 3


def test_a_file_that_does_not_fit_is_refused(place, tmp_path):
    path, graph = tmp_path / "a.qjs", pipeline.load(place / "net.tnnproto")
    gather(place, path, merge="mix", shard=(1, 6))
    calibration.from_file(path, graph, Settings(), INPUTS.preprocess)
    calibration.from_file(path, graph, Settings(), None)
    with pytest.raises(DataError, match="no statistics per channel of blob 'data': calibrate with"):
        calibration.from_file(path, graph, Settings(merge="channel"), None)
    with pytest.raises(DataError, match="another preprocessing"):
        calibration.from_file(path, graph, Settings(), Preprocess())
    other = pipeline.fuse_activation(models.small_network(size=8))
    with pytest.raises(DataError, match="another network"):
        calibration.from_file(path, other, Settings(), None)
    with pytest.raises(UsageError, match="--compat tnn needs the data"):
        calibration.from_file(path, graph, Settings(compat=True), None)


def test_one_bias_for_all_channels_is_that_of_each(place):
    graph = pipeline.load(place / "net.tnnproto")
    one = calibration.origin_of(graph, Preprocess((127.0,), (0.5,)))
    assert one == calibration.origin_of(graph, Preprocess((127.0,) * 3, (0.5,) * 3))
    assert one != calibration.origin_of(graph, Preprocess((127.0, 127.0, 126.0), (0.5,)))


# ------------------------------------------------------------------ NaN, snapshots, memory


def nonfinite_samples(graph):
    arrays = models.random_inputs(graph, 5)
    arrays[1]["data"][0, 0, 0, 0] = np.nan
    arrays[3]["data"][0, 1, 1, 1] = np.inf
    return ArraySamples(arrays)


@pytest.mark.jit  # max pooling makes -FLT_MAX of NaN, which overflows: NumPy warns, Numba not
def test_nan_is_named_with_its_input_in_any_batch():
    graph = pipeline.fuse_activation(models.small_network())
    samples = nonfinite_samples(graph)
    found = set()
    for batch in (1, 4):
        with pytest.raises(CalibrationError, match=r"blob 'data': 1 NaN .* with input 1; --nonf"):
            calibration.calibrate(graph, samples, Settings(), jobs=1, batch=batch)
        result = calibration.calibrate(
            graph, samples, Settings(), jobs=1, batch=batch, nonfinite="skip"
        )
        found.add(result.nonfinite)
        assert result.stats["data"].nonfinite.tolist() == [2]
        assert result.stats["data"].count.tolist() == [5 * 3 * 36 - 2]
    assert len(found) == 1
    assert {(item.file, item.values) for item in found.pop() if item.blob == "data"} == {
        ("input 1", 1),
        ("input 3", 1),
    }


def test_snapshots_hold_the_first_inputs(place):
    graph = pipeline.load(place / "net.tnnproto")

    def dataset(limit=None):
        return Dataset.open(
            place / "images", pipeline.input_shapes(graph), INPUTS.preprocess, limit=limit
        )

    seen = {}

    def note(images, stats):
        seen[images] = stats["data"].state()
        return images >= 9

    result = calibration.calibrate(graph, dataset(), Settings(), jobs=2, batch=4, on_snapshot=note)
    # the sixth file has three inputs
    assert list(seen) == [1, 2, 4, 9]
    assert result.images == 9
    for files, images in ((1, 1), (2, 2), (4, 4), (7, 9)):
        expected = calibration.calibrate(graph, dataset(files), Settings(), jobs=1)
        for name, array in expected.stats["data"].state().items():
            assert np.array_equal(seen[images][name], array)


def test_a_network_for_one_input_is_run_with_one():
    graph = pipeline.fuse_activation(models.small_network())
    channels = quantizer.observed_blobs(graph, infer_shapes(graph), Settings())
    assert plan(graph, channels, batch=8).resources.batch == 8
    two = graph.with_input_shapes({"data": (2, 3, 6, 6)})
    assert plan(two, channels, batch=8).resources.batch == 1


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("first", [2, -1])
def test_a_blob_need_not_begin_with_the_batch(first, batch):
    """A reshape makes two of one input: it is all seen, one input at a time."""
    nodes = (
        Node("split", "reshape", ("data",), ("split",), ReshapeAttrs((first, 2, 3, 3))),
        models.conv("conv", "split", 2, 3),
    )
    graph = Graph(nodes, (Blob("data", (1, 4, 3, 3)),), ("conv",))
    arrays = models.random_inputs(graph, 5)
    result = calibration.calibrate(
        graph, ArraySamples(arrays), Settings(), jobs=1, batch=batch, nonfinite="skip"
    )
    assert result.work.batch == 1
    assert result.stats["split"].count.tolist() == [5 * 36]
    everything = np.concatenate([each["data"].ravel() for each in arrays])
    assert result.stats["split"].minimum == everything.min()
    assert result.stats["split"].maximum == everything.max()
    arrays[4]["data"][0, 3, 2, 2] = np.nan
    with pytest.raises(CalibrationError, match=r"blob 'split': 1 NaN .* with input 4"):
        calibration.calibrate(graph, ArraySamples(arrays), Settings(), jobs=1, batch=batch)


def test_the_plan_keeps_to_its_budget():
    graph = pipeline.fuse_activation(models.small_network())
    channels = {"data": 3000, "conv1": 5000}
    rich = plan(graph, channels, jobs=8, batch=16)
    assert (rich.bins, rich.rows) == (4096, 8000)
    assert (
        rich.resources
        == plan(graph, channels, jobs=8, batch=16, memory=rich.total_bytes * 2).resources
    )
    bins = []
    for memory in range(330, 1260, 20):
        planned = plan(graph, channels, jobs=8, batch=16, memory=memory * 10**6)
        assert planned.total_bytes <= memory * 10**6
        bins.append(planned.bins)
        alone = plan(graph, channels, jobs=1, memory=memory * 10**6)
        assert alone.bins == planned.bins, "the machine is not seen by the result"
    assert bins == sorted(bins)
    assert bins[0] == 256
    assert bins[-1] == 4096
    with pytest.raises(UsageError, match=r"--memory 100M is too little .* it takes [23]\d\dM with"):
        plan(graph, channels, memory=100 * 10**6)


def test_fewer_bins_are_the_same_statistics_coarser(place, whole, tmp_path):
    graph = pipeline.load(place / "net.tnnproto")
    channels = calibration.blobs_to_gather(graph, "channel")
    least = plan(graph, channels, jobs=1).total_bytes
    few = plan(graph, channels, jobs=1, memory=least - 2_200_000)
    assert few.bins < 4096
    gather(place, tmp_path / "a.qjs", memory=least - 2_200_000)
    (tmp_path / "whole.qjs").write_bytes(whole)
    fine, coarse = (StatisticsFile.load(tmp_path / f"{name}.qjs") for name in ("whole", "a"))
    assert coarse.bins == few.bins
    for blob, seen in fine.stats.items():
        assert seen.coarsened(few.bins) == coarse.stats[blob]
    assert statistics_file.merge([tmp_path / "a.qjs"]).encode() == coarse.encode()


@pytest.mark.parametrize("merge", ["channel", "mix"])
def test_a_statistics_file_serves_both_targets(merge):
    """More layers run in int8 in an ONNX file than in TNN: the average pooling of this network."""
    graph = models.small_network()
    gathered = calibration.blobs_to_gather(graph, merge)
    merges = {"tnn": ("channel", "mix", "tensor"), "onnx": ("mix", "tensor")}
    for target, known in merges.items():
        for each in known if merge == "channel" else set(known) - {"channel"}:
            settings = Settings(merge=each, target=target)
            needed = quantizer.observed_blobs(graph, infer_shapes(graph), settings)
            assert set(needed) <= set(gathered)
            assert all(rows in {1, gathered[blob]} for blob, rows in needed.items())

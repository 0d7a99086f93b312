"""The data sets, their split between workers, and the input pipeline."""

import dataclasses
import hashlib
import io
import itertools
import tarfile

import numpy as np
import pytest

import cocod_jax as cj
from experiments import data
from experiments.data import cifar
from experiments.data.dataset import augmented, make_dataset

# ---------------------------------------------------------------- built-in data sets


@pytest.fixture(scope="module")
def mnist5k():
    return data.load("mnist5k")


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def test_mnist5k_has_4000_images_to_train_and_100_of_each_digit_to_test(mnist5k):
    assert mnist5k.train_images.shape == (4000, 32, 32, 1)
    assert mnist5k.test_images.shape == (1000, 32, 32, 1)
    assert mnist5k.train_images.dtype == mnist5k.test_images.dtype == np.uint8
    assert mnist5k.train_labels.dtype == mnist5k.test_labels.dtype == np.int32
    np.testing.assert_array_equal(np.bincount(mnist5k.train_labels), [400] * 10)
    np.testing.assert_array_equal(np.bincount(mnist5k.test_labels), [100] * 10)
    assert mnist5k.num_classes == 10
    assert (mnist5k.crop, mnist5k.flip) == (2, False)


def test_mnist5k_is_padded_by_two_pixels(mnist5k):
    inside = mnist5k.train_images[:, 2:-2, 2:-2]
    assert inside.max() == 255
    assert mnist5k.train_images.sum(dtype=int) == inside.sum(dtype=int)


def test_digits_draws_each_pixel_4_by_4(digits):
    assert digits.train_images.shape == (1437, 32, 32, 1)
    assert digits.test_images.shape == (360, 32, 32, 1)
    assert digits.train_images.dtype == np.uint8
    assert digits.train_images.max() == 255
    small = digits.train_images[:, ::4, ::4]
    np.testing.assert_array_equal(
        digits.train_images, small.repeat(4, axis=1).repeat(4, axis=2)
    )
    assert digits.num_classes == 10


@pytest.mark.parametrize("name", ["mnist5k", "digits"])
def test_the_split_is_the_same_every_time_and_has_no_leak(name, request):
    first = request.getfixturevalue(name)
    for one, other in zip(first, data.load(name), strict=True):
        np.testing.assert_array_equal(one, other)
    halves = (first.train_images, first.test_images)
    train, test = ({image.tobytes() for image in half} for half in halves)
    assert not train & test


@pytest.mark.parametrize("name", ["mnist5k", "digits"])
def test_shapes_are_known_without_loading(name, request):
    dataset = request.getfixturevalue(name)
    shape = dataset.train_images.shape[1:]
    assert data.SHAPES[name] == (shape, dataset.num_classes)


def test_an_unknown_data_set_is_an_error():
    with pytest.raises(ValueError, match=r"data='svhn' must be one of \['cifar10', "):
        data.load("svhn")


# ------------------------------------------------------- from uint8 to network inputs


def tiny(n=50, channels=3, crop=0, flip=False, height=5, width=4):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, height, width, channels), dtype=np.uint8)
    images[..., 0] //= 3  # channels with statistics of their own
    half = images, np.arange(n) % 7
    return make_dataset(half, half, crop=crop, flip=flip)


def test_statistics_are_those_of_numpy():
    dataset = tiny()
    pixels = dataset.train_images / 255
    # float32 of a float64 sum over a histogram.
    np.testing.assert_allclose(dataset.mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(dataset.std, pixels.std(axis=(0, 1, 2)), rtol=1e-6)
    assert dataset.num_classes == 7


def test_normalised_images_have_mean_0_and_deviation_1_in_each_channel(mnist5k):
    for dataset in (tiny(), mnist5k):
        images = data.normalised(dataset, dataset.train_images)
        assert images.dtype == np.float32
        axes = (0, 1, 2)
        # A mean of up to 4 million float32 numbers of size 1.
        np.testing.assert_allclose(images.mean(axes, np.float64), 0, atol=1e-5)
        np.testing.assert_allclose(images.std(axes, np.float64), 1, rtol=1e-5)


def crops(image, pad):
    """Every crop of the padded image by (top, left), pixel by pixel."""
    height, width, channels = image.shape
    found = {}
    for top, left in itertools.product(range(2 * pad + 1), repeat=2):
        crop = np.zeros((height, width, channels), np.uint8)
        for row, column in itertools.product(range(height), range(width)):
            y, x = row + top - pad, column + left - pad
            if 0 <= y < height and 0 <= x < width:
                crop[row, column] = image[y, x]
        found[top, left] = crop
    return found


@pytest.mark.parametrize("flip", [False, True])
def test_augmented_images_are_all_crops_of_the_padded_image(flip):
    dataset = tiny(crop=2, flip=flip)
    image = dataset.train_images[0]
    views = {(p, 1): crop.tobytes() for p, crop in crops(image, 2).items()}
    if flip:
        mirrored = crops(image, 2).items()
        views |= {(p, -1): crop[:, ::-1].tobytes() for p, crop in mirrored}
    batch = np.stack([image] * 1000)
    got = augmented(dataset, batch, np.random.default_rng(0))
    assert got.shape == batch.shape
    assert got.dtype == np.uint8
    # Nothing but these views; and of 25 or 50 equally likely ones 1,000 draws miss
    # one with a probability below 1e-6.
    assert {view.tobytes() for view in got} == set(views.values())


def test_the_channels_of_an_image_move_together():
    dataset = tiny(crop=3, flip=True)
    grey = np.repeat(dataset.train_images[..., :1], 3, axis=-1)
    got = augmented(dataset, grey, np.random.default_rng(0))
    np.testing.assert_array_equal(got[..., 0], got[..., 1])
    np.testing.assert_array_equal(got[..., 0], got[..., 2])


def test_augmentation_is_drawn_from_the_generator_alone():
    dataset = tiny(crop=2, flip=True)
    draw = lambda seed: augmented(
        dataset, dataset.train_images, np.random.default_rng(seed)
    )
    np.testing.assert_array_equal(draw(1), draw(1))
    assert (draw(1) != draw(2)).any()
    assert (draw(1) != dataset.train_images).any()


def test_without_crop_and_flip_images_stay_as_they_are():
    dataset = tiny()
    got = augmented(dataset, dataset.train_images, np.random.default_rng(0))
    np.testing.assert_array_equal(got, dataset.train_images)


# ------------------------------------------------------------ split between workers

LABELS = np.random.default_rng(3).integers(0, 10, 1003)


@pytest.mark.parametrize(
    "scheme", ["iid", "by_class", "dirichlet:100", "dirichlet:0.1"]
)
@pytest.mark.parametrize("workers", [1, 4, 13])
def test_every_example_is_in_one_shard(scheme, workers):
    shards = data.partition(LABELS, workers, scheme, seed=0)
    assert len(shards) == workers
    np.testing.assert_array_equal(np.sort(np.concatenate(shards)), np.arange(1003))


def test_iid_shards_are_equal_to_within_one():
    sizes = [len(shard) for shard in data.partition(LABELS, 4, "iid", seed=0)]
    assert sorted(sizes) == [250, 251, 251, 251]


@pytest.mark.parametrize(
    ("workers", "classes"), [(4, [3, 3, 2, 2]), (10, [1] * 10), (13, [1] * 13)]
)
def test_a_class_is_shared_by_as_few_workers_as_there_have_to_be(workers, classes):
    shards = data.partition(LABELS, workers, "by_class", seed=0)
    labels = [set(LABELS[shard]) for shard in shards]
    assert [len(own) for own in labels] == classes
    owners = [sum(label in own for own in labels) for label in range(10)]
    assert max(owners) == -(-workers // 10)


def skew(scheme):
    """How far the workers' label frequencies are from all workers': 0 to 1."""
    shards = data.partition(LABELS, 4, scheme, seed=0)
    counts = np.array([np.bincount(LABELS[shard], minlength=10) for shard in shards])
    frequencies = counts / counts.sum(axis=1, keepdims=True)
    everyone = np.bincount(LABELS) / len(LABELS)
    return np.abs(frequencies - everyone).sum(axis=1).mean() / 2


def test_a_smaller_alpha_skews_the_labels_more():
    # 250 draws of 10 labels: 0.07 by chance alone.
    assert skew("iid") < 0.12
    assert skew("dirichlet:1000") < 0.12
    assert 0.2 < skew("dirichlet:1") < 0.5
    assert skew("dirichlet:0.05") > 0.5


@pytest.mark.parametrize("scheme", ["iid", "by_class", "dirichlet:0.5"])
def test_the_seed_decides_the_shards(scheme):
    first, again, other = (
        np.concatenate(data.partition(LABELS, 4, scheme, seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(
    "scheme",
    ["", "IID", "iid:1", "zipf:1", "dirichlet", "dirichlet:"]
    + [f"dirichlet:{alpha}" for alpha in ("0", "-1", "nan", "inf", "x")],
)
def test_an_unknown_scheme_is_an_error(scheme):
    with pytest.raises(
        ValueError, match=r"must be 'iid', 'by_class' or 'dirichlet:ALPHA'"
    ):
        data.partition(LABELS, 4, scheme, seed=0)


# ------------------------------------------------------------------------- pipeline


def marked(n, crop=0, flip=False):
    """Images of 1 x 1 whose two channels spell their index, and it as the label."""
    index = np.arange(n)
    images = np.stack([index % 256, index // 256], axis=-1).astype(np.uint8)
    half = images.reshape(n, 1, 1, 2), index
    return make_dataset(half, half, crop=crop, flip=flip)


N_EXAMPLES, WORKERS, BATCH = 300, 3, 7
STEPS = 14  # 100 examples a worker in batches of 7; 2 examples are left over


def pipeline(seed=0, **options):
    dataset = marked(N_EXAMPLES, **options)
    shards = data.partition(dataset.train_labels, WORKERS, "iid", 0)
    return data.Pipeline(dataset, shards, batch_size=BATCH, seed=seed), shards


def stream(source, first_step=0, period=1, steps=2 * STEPS):
    """(images, labels), the rounds one after another: [N, steps, batch, ...]."""
    rounds = list(
        source.rounds(first_step=first_step, period=period, count=steps // period)
    )
    assert len(rounds) == steps // period
    return tuple(
        np.concatenate([round_[name] for round_ in rounds], axis=1)
        for name in ("image", "label")
    )


def test_each_worker_sees_its_own_shard_once_an_epoch():
    source, shards = pipeline()
    assert source.steps_per_epoch == STEPS
    _, labels = stream(source)
    for shard, seen in zip(shards, labels, strict=True):
        for epoch in (seen[:STEPS], seen[STEPS:]):
            assert len(np.unique(epoch)) == STEPS * BATCH
            assert set(epoch.flat) <= set(shard)


def test_images_and_labels_stay_together():
    source, _ = pipeline()
    images, labels = stream(source)
    dataset = marked(N_EXAMPLES)
    expected = data.normalised(dataset, dataset.train_images[labels])
    np.testing.assert_array_equal(images, expected)


def test_orders_differ_between_epochs_workers_and_seeds():
    source, shards = pipeline()
    _, labels = stream(source)
    positions = [
        np.argsort(shard)[np.searchsorted(np.sort(shard), seen)].reshape(2, -1)
        for shard, seen in zip(shards, labels, strict=True)
    ]
    # Six orders of the same 100 positions (three workers, two epochs), all others.
    orders = np.concatenate(positions)
    assert len(np.unique(orders, axis=0)) == 6
    for order in orders:
        assert (np.diff(order) < 0).any(), "not shuffled"
    _, other = stream(pipeline(seed=1)[0])
    assert (labels != other).any()


def test_the_stream_does_not_depend_on_the_period_or_the_start():
    source, _ = pipeline(crop=1, flip=True)
    whole = stream(source)
    for first_step, period, steps in [(0, 4, 28), (5, 1, 23), (9, 4, 16), (13, 2, 2)]:
        part = stream(source, first_step, period, steps)
        for got, all_steps in zip(part, whole, strict=True):
            expected = all_steps[:, first_step : first_step + steps]
            np.testing.assert_array_equal(got, expected)


def test_a_round_may_cross_into_the_next_epoch():
    source, _ = pipeline()
    (round_,) = source.rounds(first_step=STEPS - 2, period=4, count=1)
    _, labels = stream(source)
    np.testing.assert_array_equal(round_["label"], labels[:, STEPS - 2 : STEPS + 2])


def test_augmentation_differs_between_epochs():
    dataset = tiny(n=2, crop=2)
    source = data.Pipeline(dataset, [np.array([0])], batch_size=1, seed=0)
    images, _ = stream(source, steps=8)
    assert len(np.unique(images[0], axis=0)) > 1


def test_shapes_and_dtypes():
    source = data.Pipeline(tiny(), [np.arange(20)] * 2, batch_size=4, seed=0)
    (round_,) = source.rounds(first_step=0, period=3, count=1)
    assert round_["image"].shape == (2, 3, 4, 5, 4, 3)
    assert round_["image"].dtype == np.float32
    assert round_["label"].shape == (2, 3, 4)
    assert round_["label"].dtype == np.int32


def test_the_smallest_shard_decides_the_length_of_an_epoch():
    shards = [np.arange(20), np.arange(20, 29)]
    source = data.Pipeline(tiny(), shards, batch_size=4, seed=0)
    assert source.steps_per_epoch == 2


def test_a_shard_smaller_than_a_batch_is_an_error():
    shards = [np.arange(20), np.arange(20, 23)]
    with pytest.raises(ValueError, match=r"more than the 3 examples of worker 1 .*20"):
        data.Pipeline(tiny(), shards, batch_size=4, seed=0)


def test_unequal_workers_end_their_epochs_together():
    """Shards and batches in one proportion; what is beyond a count is padding."""
    shares = (3, 2, 1)
    dataset = marked(N_EXAMPLES)
    shards = data.partition(dataset.train_labels, WORKERS, "iid", 0, shares)
    assert [len(shard) for shard in shards] == [150, 100, 50]
    source = data.Pipeline(dataset, shards, batch_size=5, seed=0, micro_batches=shares)
    assert source.steps_per_epoch == 10
    assert source.examples_per_step == 30
    (round_,) = source.rounds(first_step=0, period=10, count=1)
    assert isinstance(round_, cj.MicroBatches)
    assert round_.data["image"].shape[:4] == (WORKERS, 10, 3, 5)
    np.testing.assert_array_equal(round_.count, np.tile([[3], [2], [1]], 10))
    for shard, labels, share in zip(shards, round_.data["label"], shares, strict=True):
        assert sorted(labels[:, :share].flat) == sorted(shard)


def test_equal_shares_are_the_shards_without_shares():
    labels = np.zeros(10, int)
    for same, other in zip(
        data.partition(labels, 3, "iid", 0),
        data.partition(labels, 3, "iid", 0, (2, 2, 2)),
        strict=True,
    ):
        np.testing.assert_array_equal(same, other)


def test_shares_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="has its own sizes"):
        data.partition(np.zeros(10, int), 2, "dirichlet:1", 0, (1, 2))
    for wrong in ((1,), (1, 0)):
        with pytest.raises(ValueError, match=r"micro_batches=.* each of 2 workers"):
            data.Pipeline(
                tiny(),
                [np.arange(20)] * 2,
                batch_size=4,
                seed=0,
                micro_batches=wrong,
            )


# ---------------------------------------------------------------------------- CIFAR


class Cifar:
    """A small archive in the official format, and what is in it."""

    def __init__(self, archive: cifar.Archive, folder, records=(2, 3)):
        rng = np.random.default_rng(0)
        self.folder = folder
        self.files: dict[str, bytes] = {}
        self.images, self.labels = {}, {}
        counts = [records[0]] * len(archive.train) + [records[1]]
        for name, count in zip((*archive.train, archive.test), counts, strict=True):
            images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
            # The coarse label of CIFAR-100 comes first, and is not the one.
            labels = rng.integers(0, 10, (count, archive.label_bytes), dtype=np.uint8)
            labels[:, -1] += 10 * (archive.label_bytes - 1)
            self.images[name], self.labels[name] = images, labels[:, -1]
            self.files[name] = b"".join(
                label.tobytes()
                + b"".join(image[:, :, channel].tobytes() for channel in range(3))
                for image, label in zip(images, labels, strict=True)
            )
        self.packed = folder / archive.url.rsplit("/", 1)[-1]
        with tarfile.open(self.packed, "w:gz") as tar:
            for name, content in self.files.items():
                info = tarfile.TarInfo(f"{archive.folder}/{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        content = self.packed.read_bytes()
        self.archive = dataclasses.replace(
            archive,
            size=len(content),
            md5=hashlib.md5(content).hexdigest(),
            records=records,
        )

    def unpack(self):
        self.packed.unlink()
        unpacked = self.folder / self.archive.folder
        unpacked.mkdir()
        for name, content in self.files.items():
            (unpacked / name).write_bytes(content)
        return unpacked

    def read(self):
        return cifar.read_cifar(self.archive, self.folder)


@pytest.fixture
def cifar10(tmp_path):
    return Cifar(cifar.CIFAR10, tmp_path)


@pytest.mark.parametrize("archive", [cifar.CIFAR10, cifar.CIFAR100])
@pytest.mark.parametrize("unpacked", [False, True])
def test_cifar_is_read_packed_and_unpacked(archive, unpacked, tmp_path):
    source = Cifar(archive, tmp_path)
    if unpacked:
        source.unpack()
    dataset = source.read()
    train = list(archive.train)
    for name, got in [
        ("images", dataset.train_images),
        ("labels", dataset.train_labels),
    ]:
        wanted = getattr(source, name)
        np.testing.assert_array_equal(got, np.concatenate([wanted[f] for f in train]))
    np.testing.assert_array_equal(dataset.test_images, source.images[archive.test])
    np.testing.assert_array_equal(dataset.test_labels, source.labels[archive.test])
    assert dataset.train_images.dtype == np.uint8
    assert dataset.train_labels.dtype == np.int32
    assert (dataset.crop, dataset.flip) == (4, True)


def test_the_official_archives_have_50000_and_10000_records():
    for archive in (cifar.CIFAR10, cifar.CIFAR100):
        assert len(archive.train) * archive.records[0] == 50_000
        assert archive.records[1] == 10_000


def test_an_incomplete_download_is_an_error(cifar10):
    content = cifar10.packed.read_bytes()
    cifar10.packed.write_bytes(content[:-10])
    with pytest.raises(ValueError, match=r"bytes instead of .*download is incomplete"):
        cifar10.read()


def test_a_damaged_archive_is_an_error(cifar10):
    content = bytearray(cifar10.packed.read_bytes())
    content[len(content) // 2] ^= 1
    cifar10.packed.write_bytes(content)
    with pytest.raises(ValueError, match=r"MD5 checksum .* it is damaged"):
        cifar10.read()


def test_a_truncated_record_file_is_an_error(cifar10):
    file = cifar10.unpack() / "data_batch_3.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(
        ValueError, match=r"data_batch_3.bin has 6,145 bytes instead of"
    ):
        cifar10.read()


def test_a_file_missing_from_the_folder_is_an_error(cifar10):
    (cifar10.unpack() / "test_batch.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"test_batch\.bin"):
        cifar10.read()


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_missing_archives_say_what_to_download_and_where_to_put_it(name, tmp_path):
    for data_dir in (None, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"--data-dir .* Download https://"):
            data.load(name, data_dir)


def test_each_seed_worker_and_step_draws_its_own_augmentation():
    # Equal images: whatever differs between two batches was drawn by augmentation.
    image = np.random.default_rng(0).integers(0, 256, (1, 5, 4, 3), dtype=np.uint8)
    half = image.repeat(64, axis=0), np.arange(64) % 2
    dataset = make_dataset(half, half, crop=2, flip=True)
    shards = np.split(np.arange(64), 2)

    def batches(seed):
        source = data.Pipeline(dataset, shards, batch_size=8, seed=seed)
        (round_,) = source.rounds(first_step=0, period=8, count=1)
        return round_["image"].reshape(16, -1)

    # Two seeds, two workers, two epochs of four steps; 50 views of each of 8 images.
    assert len(np.unique(np.concatenate([batches(0), batches(1)]), axis=0)) == 32


@pytest.mark.parametrize("workers", [0, -1, 2.5, True])
def test_a_bad_number_of_workers_is_refused(workers):
    with pytest.raises(ValueError, match="workers="):
        data.partition(np.zeros(10, int), workers, "iid", 0)

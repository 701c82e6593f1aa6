"""kdnb.data.synthetic: noise that the readers of the published formats take for the data set."""

import pytest

from kdnb.data import DATASETS, load
from kdnb.data.check import check_files
from kdnb.data.synthetic import _PICTURES, write_synthetic
from kdnb.errors import InputError

SIZES = {"fashion_mnist": (60_000, 10_000), "cifar10": (50_000, 10_000), "cifar100": (50_000, 10_000)}


@pytest.mark.parametrize("name", [name for name, spec in DATASETS.items() if not spec.embedded])
def test_noise_is_read_as_the_data_set_itself(name, tmp_path, monkeypatch):
    monkeypatch.setattr("kdnb.data.locate.data_roots", lambda: [tmp_path])
    if name in _PICTURES:
        monkeypatch.setitem(_PICTURES, name, (2, 1, (32, 32)))
    with pytest.raises(InputError, match="no complete copy"):
        check_files(name)
    folder = write_synthetic(name, tmp_path)
    check_files(name)
    data = load(name)
    classes = DATASETS[name].num_classes
    assert (len(data.train), len(data.test)) == SIZES.get(name, (2 * classes, classes))
    assert len(data.test.labels.unique()) == classes
    stamp = (folder / "complete").stat().st_mtime_ns
    assert write_synthetic(name, tmp_path) == folder and (folder / "complete").stat().st_mtime_ns == stamp


def test_an_ordinary_run_never_finds_it(tmp_path, monkeypatch):
    from kdnb.storage.paths import data_roots

    monkeypatch.delenv("KDNB_STAND_IN", raising=False)
    assert tmp_path not in data_roots()
    monkeypatch.setenv("KDNB_STAND_IN", str(tmp_path))
    assert data_roots()[-1] == tmp_path

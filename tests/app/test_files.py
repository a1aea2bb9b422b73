"""Files of many visitors: what is old goes, and the oldest where all is too much."""

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ddpm_hf.app.files import KEPT, Shelf, writing
from ddpm_hf.errors import UserError


def filled(shelf, size, age):
    place = shelf.place()
    (place / "x.png").write_bytes(bytes(size))
    os.utime(place, (time.time() - age,) * 2)
    return place


def test_old_files_go(tmp_path):
    shelf = Shelf(tmp_path)
    old, young = filled(shelf, 10, KEPT + 60), filled(shelf, 10, 60)
    shelf.place()
    assert not old.exists()
    assert young.exists()


def test_the_oldest_go_where_all_is_too_much(tmp_path):
    shelf = Shelf(tmp_path, largest=250)
    shelf.cards.mkdir()
    (shelf.cards / "0.png").write_bytes(bytes(1000))
    oldest, middle, newest = (filled(shelf, 100, age) for age in (30, 20, 10))
    shelf.place()
    assert [place.exists() for place in (oldest, middle, newest)] == [False, True, True]
    assert (shelf.cards / "0.png").exists()


def test_several_make_room_at_once(tmp_path):
    shelf = Shelf(tmp_path / "later")
    places = [shelf.folder / str(i) for i in range(200)]
    for place in places:
        place.mkdir(parents=True)
        os.utime(place, (0, 0))
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: shelf.place(), range(8)))
    assert all(place.is_dir() for place in made)
    assert not any(place.exists() for place in places)


def test_a_full_disk_is_told_in_a_line():
    with pytest.raises(UserError, match="disk is full"), writing():
        raise OSError(errno.ENOSPC, "No space left on device")

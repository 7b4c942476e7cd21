import numpy as np

from zsqbench.statistics import resamples


def test_each_image_is_left_out_alone_where_there_are_few():
    assert sorted(map(tuple, 1 - resamples(6))) == sorted(map(tuple, np.eye(6, dtype=int)))


def test_many_images_are_left_out_in_500_groups_of_about_equal_size():
    left_out = 1 - resamples(1234)
    assert left_out.shape == (500, 1234)
    assert (left_out.sum(axis=0) == 1).all()
    assert set(left_out.sum(axis=1)) == {2, 3}


def test_resamples_are_the_same_on_all_machines():
    assert resamples(6).argmin(axis=1).tolist() == [5, 2, 1, 3, 0, 4]
    assert np.flatnonzero(resamples(1234)[0] == 0).tolist() == [357, 485, 665]

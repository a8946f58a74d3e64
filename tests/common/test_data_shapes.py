import numpy as np
import pytest

from common.errors import EncoreError
from common.worlds import shapes


def test_unseen_combinations_are_a_fifth_and_every_word_is_still_seen():
    seen, unseen = shapes.split_combinations()
    assert (len(seen), len(unseen)) == (154, 38)
    assert not {tuple(c) for c in seen} & {tuple(c) for c in unseen}
    assert [len(set(seen[:, axis])) for axis in range(3)] == [8, 8, 3]


def test_a_split_that_hides_a_whole_word_is_an_error():
    with pytest.raises(EncoreError, match="never seen"):
        shapes.split_combinations(unseen=0.97)


def test_scenes_images_and_captions_are_a_function_of_the_seed():
    seen, _ = shapes.split_combinations()
    made = []
    for seed in (1, 1, 2):
        scenes = shapes.sample_scenes(20, seen, seed=seed)
        made.append((shapes.render(scenes, seed=seed), shapes.captions(scenes, seed=seed)))
    assert np.array_equal(made[0][0], made[1][0])
    assert made[0][1] == made[1][1]
    assert not np.array_equal(made[0][0], made[2][0])
    assert made[0][1] != made[2][1]


@pytest.mark.parametrize("relation", range(4))
def test_objects_of_a_pair_stand_in_their_relation_and_do_not_touch(relation):
    scenes = shapes.sample_scenes(400, shapes.all_combinations(), seed=3, two_objects=1.0)
    rows = scenes.relation == relation
    assert rows.sum() > 50
    axis = 0 if relation < 2 else 1
    radius = np.array(list(shapes.SIZES.values()))[scenes.objects[rows, :, 2]]
    first, second = scenes.centres[rows, 0, axis], scenes.centres[rows, 1, axis]
    low, high = (first, second) if relation in (0, 2) else (second, first)
    order = (0, 1) if relation in (0, 2) else (1, 0)
    assert (low + radius[:, order[0]] <= high - radius[:, order[1]] + 1e-9).all()
    assert (scenes.centres[rows] >= radius[..., None] - 1e-9).all()


def test_the_object_is_painted_where_and_as_large_as_its_scene_says():
    for size, name in enumerate(shapes.SIZES):
        circle = np.array([[0, 2, size]])  # a blue circle
        scenes = shapes.sample_scenes(8, circle, seed=4, two_objects=0)
        images = shapes.render(scenes, 64, seed=4, noise=0.0).astype(float)
        blue = images[..., 2] - images[..., 0] > 60
        area = np.pi * (shapes.SIZES[name] * 64) ** 2
        assert blue.sum(axis=(1, 2)) == pytest.approx(area, rel=0.12)
        rows, columns = np.nonzero(blue[0])
        assert (columns.mean() + 0.5) / 64 == pytest.approx(scenes.centres[0, 0, 0], abs=0.02)
        assert (rows.mean() + 0.5) / 64 == pytest.approx(scenes.centres[0, 0, 1], abs=0.02)


def test_all_shapes_look_different():
    combinations = np.array([[shape, 0, 2] for shape in range(len(shapes.SHAPES))])
    scenes = shapes.sample_scenes(8, combinations, seed=0, two_objects=0)
    scenes.centres[:] = 0.5
    images = shapes.render(scenes, seed=0, noise=0.0).astype(float)
    red = images[..., 0] - images[..., 2] > 80
    for i in range(8):
        for j in range(i):
            assert (red[i] != red[j]).mean() > 0.015, (shapes.SHAPES[i], shapes.SHAPES[j])


def test_captions_name_the_first_object_and_half_of_the_pairs_both():
    scenes = shapes.sample_scenes(300, shapes.all_combinations(), seed=5, two_objects=1.0)
    texts = shapes.captions(scenes, seed=5, synonyms=False, leave_out=0.0)
    both = 0
    for objects, relation, text in zip(scenes.objects, scenes.relation, texts):
        assert shapes.describe(objects[0]) in text
        related = f"{shapes.RELATIONS[relation]} a {shapes.describe(objects[1])}"
        both += related in text
    assert 0.4 < both / 300 < 0.6


def test_words_are_left_out_and_replaced_by_synonyms_of_their_own():
    scenes = shapes.sample_scenes(2000, np.array([[0, 0, 0]]), seed=6, two_objects=0)
    words = [set(text.split()) for text in shapes.captions(scenes, seed=6, leave_out=0.25)]
    sized = sum(bool(w & set(shapes.SYNONYMS["small"])) for w in words)
    assert 0.7 < sized / 2000 < 0.8
    for synonym in shapes.SYNONYMS["circle"]:
        assert 0.28 < sum(synonym in w for w in words) / 2000 < 0.39
    assert all(len(set(s)) == 3 for s in shapes.SYNONYMS.values())
    everything = [w for options in shapes.SYNONYMS.values() for w in options]
    assert len(everything) == len(set(everything))  # no word means two things

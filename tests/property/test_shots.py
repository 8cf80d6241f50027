"""No shot ever shows the query or its image, and a draw depends on the query alone."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm1_pipeline.config.evaluation import ShotDraw
from mm1_pipeline.evaluation.prompts.shots import ShotPool

keys = st.text("abcde0123", min_size=1, max_size=4)
pools = st.dictionaries(keys, st.lists(st.sampled_from("ABCDEF"), max_size=2), max_size=30)


@settings(max_examples=300, deadline=None)
@given(pools, st.integers(0, 5), st.integers(0, 2**32), st.sampled_from(ShotDraw))
def test_a_draw_never_leaks_the_query(images, num_shots, seed, shot_draw):
    pool = ShotPool("task", images, seed, shot_draw)
    for key, hashes in images.items():
        open_to = {
            other
            for other, others in images.items()
            if other != key and not set(others) & set(hashes)
        }
        if len(open_to) < num_shots:
            with pytest.raises(ValueError, match=f"only {len(open_to)} examples"):
                pool.draw(key, hashes, num_shots)
            continue
        shots = pool.draw(key, hashes, num_shots)
        assert len(set(shots)) == len(shots) == num_shots
        assert set(shots) <= open_to


@pytest.mark.parametrize("shot_draw", ShotDraw)
@pytest.mark.parametrize("lazily", [False, True], ids=["ingested", "out of files"])
def test_ten_thousand_draws_of_a_pool_like_vqa_leak_nothing(shot_draw, lazily):
    # Ten questions an image, as in the sample: the query's image has nine other questions. Few
    # examples, so that many queries are among the first of their task's order.
    images = {f"question {number}": [f"image {number // 10}"] for number in range(250)}
    image_of = {key: hashes[0] for key, hashes in images.items()}
    known = dict.fromkeys(images, ()) if lazily else images
    content = images.get if lazily else None
    draws, replaced = 0, 0
    for num_shots in (4, 8):
        for seed in range(10):
            pool = ShotPool("vqa", known, seed, shot_draw, content)
            order = pool.draw("no item", [], num_shots)
            for draw in range(2):
                for key, hashes in images.items():
                    shots = pool.draw(key, hashes, num_shots, draw)
                    draws += 1
                    replaced += draw == 0 and shots != order
                    assert key not in shots
                    assert image_of[key] not in {image_of[shot] for shot in shots}
                    assert len(set(shots)) == num_shots
    assert draws == 10_000
    # Per task, at most ten queries a shot see another order: 10 x (10 x 4 + 10 x 8) = 1,200.
    assert replaced > 4_990 if shot_draw == ShotDraw.PER_QUERY else 400 < replaced < 1_200


def test_a_draw_depends_on_neither_order_nor_other_queries():
    images = {str(number): [f"image {number // 3}"] for number in range(60)}
    alone = {
        key: ShotPool("t", images, 1, ShotDraw.PER_QUERY).draw(key, images[key], 4)
        for key in images
    }
    shuffled = random.Random(0).sample(sorted(images), len(images))
    pool = ShotPool("t", {key: images[key] for key in shuffled}, 1, ShotDraw.PER_QUERY)
    assert {key: pool.draw(key, images[key], 4) for key in shuffled} == alone


def test_seed_task_key_and_shots_each_change_the_draw():
    images = {str(number): [] for number in range(1000)}
    pool = ShotPool("t", images, 1, ShotDraw.PER_QUERY)
    draw = pool.draw("0", [], 4)
    assert draw != ShotPool("t", images, 2, ShotDraw.PER_QUERY).draw("0", [], 4)
    assert draw != ShotPool("u", images, 1, ShotDraw.PER_QUERY).draw("0", [], 4)
    assert draw != pool.draw("1", [], 4)
    assert draw != pool.draw("0", [], 8)[:4]


@pytest.mark.parametrize("shot_draw", ShotDraw)
def test_sets_of_shots_differ_and_the_first_is_that_of_one_set(shot_draw):
    images = {str(number): [] for number in range(1000)}
    pool = ShotPool("t", images, 1, shot_draw)
    assert pool.draw("0", [], 4, draw=0) == pool.draw("0", [], 4)
    assert len({pool.draw("0", [], 4, draw) for draw in range(20)}) == 20


def test_every_example_is_drawn_about_equally_often():
    images = {str(number): [] for number in range(20)}
    counts = dict.fromkeys(images, 0)
    for query in range(3000):
        for shot in ShotPool("t", images, 0, ShotDraw.PER_QUERY).draw(f"query {query}", [], 4):
            counts[shot] += 1
    # 600 expected each, standard deviation 22; measured 558 to 634.
    assert all(500 < count < 700 for count in counts.values())


def test_shots_of_a_task_continue_each_other():
    images = {str(number): [str(number)] for number in range(20)}
    pool = ShotPool("task", images, 0, ShotDraw.PER_TASK)
    eight = pool.draw("0", ["0"], 8)
    assert pool.draw("0", ["0"], 4) == eight[:4]
    other = next(key for key in images if key not in (*eight, "0"))
    assert pool.draw(other, [other], 8) == eight
    assert pool.draw(eight[2], [eight[2]], 7) == (*eight[:2], *eight[3:])

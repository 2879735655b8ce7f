"""The sentences that the bundled policy knows, and their hashed numbers."""

from __future__ import annotations

import hashlib
import math
from collections import Counter

import numpy as np
import pytest

from mvla_daemon.errors import DaemonError
from mvla_daemon.sim.instructions import SENTENCES, embedding, side_of
from mvla_daemon.sim.room import Side


def test_each_side_has_at_least_four_sentences_and_the_two_of_the_manual() -> None:
    assert min(Counter(SENTENCES.values())[side] for side in Side) >= 4
    assert side_of("go to the cup, pass the box on its left") is Side.LEFT
    assert side_of("go to the cup, pass the box on its right") is Side.RIGHT


def test_a_sentence_with_left_and_right_swapped_asks_for_the_other_side() -> None:
    for sentence, side in SENTENCES.items():
        swapped = sentence.replace("left", "LEFT").replace("right", "left").replace("LEFT", "right")
        assert side_of(swapped) is not side


def test_an_unknown_sentence_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(DaemonError, match="make me a sandwich") as caught:
        side_of("make me a sandwich")
    assert caught.value.exit_code == 78
    assert all(sentence in str(caught.value) for sentence in SENTENCES)


@pytest.mark.parametrize("sentence", SENTENCES)
def test_an_embedding_is_512_float32_numbers_of_length_1(sentence: str) -> None:
    numbers = embedding(sentence)
    assert numbers.shape == (512,)
    assert numbers.dtype == np.float32
    assert float(np.linalg.norm(numbers)) == pytest.approx(1.0, abs=1e-6)


def test_no_two_sentences_have_nearly_the_same_numbers() -> None:
    rows = np.stack([embedding(sentence) for sentence in SENTENCES])
    alike = rows @ rows.T - np.eye(len(rows))
    assert alike.max() < 0.95


def test_one_word_is_one_signed_place_and_two_are_three() -> None:
    def place(feature: str) -> tuple[int, float]:
        digest = hashlib.sha256(feature.encode()).digest()
        return int.from_bytes(digest[:4], "little") % 512, 1.0 if digest[4] % 2 else -1.0

    at, sign = place("left")
    assert embedding("left")[at] == sign
    assert np.count_nonzero(embedding("left")) == 1

    expected = np.zeros(512)
    for feature in ("go", "left", "go left"):
        at, sign = place(feature)
        expected[at] += sign / math.sqrt(3)
    np.testing.assert_allclose(embedding("go left"), expected, atol=1e-7)


def test_case_and_punctuation_do_not_count_but_order_does() -> None:
    assert np.array_equal(embedding("Pass  it, LEFT!"), embedding("pass it left"))
    assert not np.array_equal(embedding("left it pass"), embedding("pass it left"))


@pytest.mark.parametrize("sentence", ["", "  ", "?!"])
def test_a_sentence_without_a_word_has_no_numbers(sentence: str) -> None:
    with pytest.raises(ValueError, match="at least one word"):
        embedding(sentence)

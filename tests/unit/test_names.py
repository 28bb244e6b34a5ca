"""Names of classes keep their letters in every script, and different names stay different."""

import pytest

from medssl_cli.base.errors import InputError
from medssl_cli.base.names import MAX_NAME, is_safe_name, safe_name, unique_names


@pytest.mark.parametrize("name", ["right lung", "右肺", "Ösophagus", "Лёгкое", "हृदय", "GTV_1.5+/-x", "الرئة"])
def test_letters_of_every_script_are_kept(name):
    assert safe_name(name) == name
    assert is_safe_name(name)


def test_one_letter_written_in_two_ways_is_one_name():
    assert safe_name("O\u0308sophagus") == "\u00d6sophagus"


@pytest.mark.parametrize(
    ("name", "stored"), [("a\nb", "ab"), ("<b>x</b>", "bx/b"), ("\u202egnul", "gnul"), ("()", "unnamed")]
)
def test_what_could_deceive_a_reader_is_left_out(name, stored):
    assert safe_name(name) == stored


def test_length_is_counted_in_characters():
    assert len(safe_name("肺" * 100)) == MAX_NAME


def test_a_name_given_twice_gets_a_number_that_nobody_else_has():
    assert unique_names(["Lesion", "Lesion", "Lesion_2"]) == ["Lesion", "Lesion_3", "Lesion_2"]


@pytest.mark.parametrize(("one", "other"), [("lung(left)", "lung[left]"), ("x" * 64 + "1", "x" * 64 + "2")])
def test_names_that_would_become_equal_are_refused(one, other):
    with pytest.raises(InputError, match="E_NAME_COLLISION"):
        unique_names([one, other])

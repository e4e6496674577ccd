from bebygan.differences import differences


def test_equal_mappings_have_no_differences() -> None:
    assert differences({"a": 1, "b": None}, {"b": None, "a": 1}) == []
    assert differences({}, {}, limit=2) == []


def test_names_are_sorted_and_a_missing_value_is_unset() -> None:
    assert differences({"b": 2, "a": 1}, {"b": 3, "c": "x"}) == ["a 1 -> unset", "b 2 -> 3", "c unset -> x"]


def test_more_than_the_limit_are_counted() -> None:
    now = dict.fromkeys("abcde", 1)
    assert differences({}, now, limit=4)[3:] == ["d unset -> 1", "and 1 more"]
    assert len(differences({}, now, limit=5)) == 5


def test_digests_and_long_texts_are_shortened_after_they_are_compared() -> None:
    assert differences({"code": "a" * 64}, {"code": "a" * 63 + "b"}) == ["code aaaaaaaaaaaa -> aaaaaaaaaaaa"]
    [text] = differences({"path": "x" * 500}, {"path": "y" * 500})
    assert text == f"path {'x' * 80} -> {'y' * 80}"

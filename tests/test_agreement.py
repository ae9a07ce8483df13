"""What differs between hosts is found and named."""

import json

import jax
import pytest

from alibi_jax.run import agreement
from alibi_jax.run.agreement import check_same, differences, software


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 2}}, []),
        ({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}}, ["b.c: 2 -> 3"]),
        ({"a": float("nan")}, {"a": float("nan")}, []),
        ({"a": [1, float("nan")]}, {"a": [1, float("nan")]}, []),
        ({"a": float("nan")}, {"a": 1.0}, ["a: nan -> 1.0"]),
        ({"a": 1}, {"a": 1.0}, []),
        ({"a": None}, {"a": 0}, ["a: None -> 0"]),
        ({"a": 1}, {"b": 1}, ["a: 1 -> none", "b: none -> 1"]),
        ({"a": {"b": 1}}, {"a": [1]}, ["a: {'b': 1} -> [1]"]),
    ],
    ids=str,
)
def test_differences_are_named(one, other, expected):
    assert differences(json.loads(json.dumps(one)), json.loads(json.dumps(other))) == expected


def test_software_says_what_programs_depend_on(monkeypatch):
    before = software()
    assert before["versions"]["jax"] == jax.__version__ and differences(before, software()) == []
    monkeypatch.setenv("XLA_FLAGS", "--xla_b=1 --xla_force_host_platform_device_count=4 --xla_dump_to=x --xla_a=2")
    assert software()["XLA_FLAGS"] == "--xla_a=2 --xla_b=1"
    with jax.enable_x64(True):
        assert "settings.jax_enable_x64: False -> True" in differences(before, software())


def test_the_whole_package_is_compared_without_the_recipes_that_a_wheel_has_inside(tmp_path, monkeypatch):
    assert (agreement.PACKAGE / "train.py").exists()
    monkeypatch.setattr(agreement, "PACKAGE", tmp_path)
    for folder in ("model", "configs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "model" / "one.py").write_text("1")
    before = software()["alibi_jax"]
    (tmp_path / "configs" / "recipe.py").write_text("1")
    assert software()["alibi_jax"] == before
    (tmp_path / "model" / "one.py").write_text("2")
    assert software()["alibi_jax"] != before


def test_one_host_asks_nobody():
    check_same(config={"a": object()})

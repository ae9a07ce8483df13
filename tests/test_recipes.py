"""Recipes and JSON files that are wrong: one ConfigError with the file, the line and what to do."""

import os

import pytest

from alibi_jax.config import Config, from_json, load_config, recipes, to_json
from alibi_jax.errors import ConfigError

IMPORT = b"from alibi_jax.config import *\n"
RECIPES = {
    "empty": (b"", r"recipe\.py: got no get_config, expected a function get_config\(\) -> Config\. Define it\."),
    "raises": (b"\n1 / 0\n", r"recipe\.py, line 2: got ZeroDivisionError: division by zero, expected a recipe"),
    "raises inside": (b"def get_config():\n    return {}['x']\n", r"recipe\.py, line 2: got KeyError: 'x'"),
    "syntax": (b"\n\ndef get_config(:\n", r"recipe\.py, line 3: got invalid syntax, expected Python in UTF-8"),
    "indentation": (b"def f():\nx = 1\n", r"recipe\.py, line 2: got expected an indented block"),
    "not UTF-8": (b"x = '\xff'\n", r"recipe\.py, line 1: got .*, expected Python in UTF-8"),
    "null byte": (b"x = 1\x00\n", r"recipe\.py.*: got .*null byte"),
    "not callable": (b"get_config = 3\n", r"recipe\.py: got get_config as int, expected a function"),
    "wants arguments": (
        b"def get_config(size):\n    pass\n",
        r"without arguments \(missing a required argument: 'size'\)",
    ),
    "unknown keyword": (
        IMPORT + b"def get_config():\n    return Config(model=ModelConfig(widht=3))\n",
        r"recipe\.py, line 3: got TypeError: .*'widht'.*Did you mean 'width'\?",
    ),
    "bad value": (
        IMPORT + b"def get_config():\n    return Config(model=ModelConfig(width=-3))\n",
        r"recipe\.py, line 3: model\.width: got -3, expected 1 to 1048576\. Raise it\.",
    ),
    "dict": (b"def get_config():\n    return {}\n", r"recipe\.py: got dict from get_config\(\), expected a Config"),
    "nothing": (b"def get_config():\n    pass\n", r"recipe\.py: got NoneType from get_config\(\), expected a Config"),
    "exits": (b"import sys\nsys.exit(0)\n", r"recipe\.py, line 2: got SystemExit: 0"),
    "import": (
        b"import nothing_of_this_name\n",
        r"line 1: got ModuleNotFoundError: No module named 'nothing_of_this_name'",
    ),
    "recursion": (b"def get_config():\n    return get_config()\n", r"recipe\.py, line 2: got RecursionError"),
    "long message": (b"raise ValueError('x' * 10**6)\n", r"got ValueError: x{500}\.\.\., expected"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_that_is_wrong_is_one_message(tmp_path, name):
    text, message = RECIPES[name]
    (tmp_path / "recipe.py").write_bytes(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(tmp_path / "recipe.py")
    assert len(str(caught.value)) < 1000 + len(str(tmp_path))


def test_interrupt_in_a_recipe_is_an_interrupt(tmp_path):
    (tmp_path / "recipe.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_config(tmp_path / "recipe.py")


FILES = {
    "empty": (b"", r"config: got text that is not JSON \(Expecting value: line 1 column 1"),
    "cut": (b'{"model": {\n', r"not JSON \(.*line 2"),
    "list": (b"[]", r"config: got list, expected a JSON object"),
    "null": (b"null", r"config: got NoneType, expected a JSON object"),
    "null section": (b'{"model": null}', r"model: got NoneType, expected a JSON object"),
    "twice": (b'{"train": {"seed": 1, "seed": 2}}', r"got the key 'seed' 2 times in one object, expected it once"),
    "nan": (b'{"model": {"norm_epsilon": NaN}}', r"got NaN, which is not JSON, expected a finite number"),
    "infinity": (b'{"optimizer": {"clip_norm": -Infinity}}', r"got -Infinity, which is not JSON"),
    "overflow": (b'{"optimizer": {"clip_norm": 1e400}}', r"optimizer\.clip_norm: got inf, expected 1e-12 to 1e\+09"),
    "huge integer": (b'{"train": {"steps": ' + b"9" * 5000 + b"}}", r"got a number of 5,000 digits"),
    "too deep": (b"[" * 100_000, r"got JSON nested too deep"),
    "nested value": (b'{"train": {"validate_lengths": [[1]]}}', r"train\.validate_lengths: got \(\[1\],\)"),
    "object value": (b'{"train": {"seed": {}}}', r"train\.seed: got \{\}, expected int"),
    "not UTF-8": (b'{"model": "\xff"}', r"got 'utf-8' codec can't decode byte 0xff in position 11"),
    "binary": (b"\x7fELF\x00\x01\x80", r"config\.json: got "),
    "null byte": (b'{"data": {"directory": "a\\u0000b"}}', r"data\.directory: got 'a\\x00b', expected a path"),
    "no name": (b'{"data": {"directory": ""}}', r"data\.directory: got '', expected a folder"),
}


@pytest.mark.parametrize("name", FILES)
def test_json_that_is_wrong_is_one_message(tmp_path, name):
    content, message = FILES[name]
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf" + to_json(Config()).encode())
    assert load_config(tmp_path) == Config()


def test_paths_that_name_no_config_are_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_text("model:\n  width: 3\n")
    os.mkfifo(tmp_path / "pipe")
    for path, message in [
        (tmp_path / "none.py", r"none\.py, which does not exist, expected a \.py recipe, a \.json, or a run's folder"),
        (tmp_path, r", a folder without config\.json, expected"),
        (tmp_path / "pipe", r"pipe, which is no file"),
        (
            tmp_path / "recipe.yaml",
            r"recipe\.yaml: config: got text that is not JSON .*recipes in Python are named \.py",
        ),
        (tmp_path / ("x" * 10_000), r"x\.\.\. \([\d,]+ characters\), expected names of at most 255 bytes"),
    ]:
        with pytest.raises(ConfigError, match=message):
            load_config(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_that_may_not_be_read_is_refused(tmp_path):
    (tmp_path / "recipe.py").write_text("")
    (tmp_path / "recipe.py").chmod(0)
    with pytest.raises(ConfigError, match=r"Permission denied"):
        load_config(tmp_path / "recipe.py")


def test_json_of_a_config_reads_back():
    assert from_json(to_json(Config())) == Config()


def test_recipes_are_called_by_name_and_a_path_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("quickstart") == load_config(recipes.recipes_folder() / "quickstart.py")
    (tmp_path / "quickstart").mkdir()
    with pytest.raises(ConfigError, match=r"got quickstart, a folder without config\.json"):
        load_config("quickstart")
    (tmp_path / "quickstart" / "config.json").write_text('{"train": {"steps": 123}}')
    assert load_config("quickstart").train.steps == 123
    with pytest.raises(ConfigError, match=r"got 'book', .* or one of books, books_small, .* Did you mean 'books'\?"):
        load_config("book")
    with pytest.raises(ConfigError, match=r"got quickstart\.py, which does not exist"):
        load_config("quickstart.py")


def test_recipes_stand_inside_the_package_or_beside_it_in_a_checkout_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "__file__", str(tmp_path / "alibi_jax" / "config" / "recipes.py"))
    for folder in ("alibi_jax", "configs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "configs" / "other.py").touch()
    assert recipes.recipe_names() == []  # site-packages, with the configs of another project
    with pytest.raises(ConfigError, match=r"or one of \. Check the path"):
        load_config("other")
    (tmp_path / "pyproject.toml").touch()
    assert recipes.recipe_names() == ["other"]
    (tmp_path / "alibi_jax" / "configs").mkdir()
    assert recipes.recipe_names() == []

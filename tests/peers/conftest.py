"""Keeps `make test` free of PyTorch: what imports it is collected only where `peers` is not deselected."""


def pytest_ignore_collect(collection_path, config):
    return True if "not peers" in config.getoption("markexpr") else None

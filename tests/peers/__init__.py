"""Tests against PyTorch and transformers; `make test-peers` runs them."""

"""A run on its machines: hosts, folder, checkpoints, metrics, progress, signals, and the command line."""

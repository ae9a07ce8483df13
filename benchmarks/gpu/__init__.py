"""What `make gpu` runs on a machine with a GPU: parts that run alone, each within its minutes, and one report."""

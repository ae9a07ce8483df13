"""Foreign checkpoints in and out: one file a family, which says where a foreign tensor holds our parameters."""

"""Frozen checkpoints in, records and leaderboards out."""

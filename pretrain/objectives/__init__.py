"""Objectives, one file each: pure loss functions first, then the class that the training loop calls (see `base`)."""

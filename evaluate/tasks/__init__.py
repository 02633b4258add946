"""Benchmark tasks: objects (MaskCut), video (label propagation), dense_retrieval (in-context segmentation)."""

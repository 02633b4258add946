"""Self-supervised pre-training through a binary channel, and the objectives it is compared with.

Foundation (the only modules `evaluate` may import): distributed, backbones, datasets, shapeworld, checkpoint, messages.
Private: views, heads, teacher, ops, schedules, optim, diagnostics, objectives/, train.
"""

"""Self-supervised pre-training through a binary channel, and the objectives it is compared with.

Foundation (the only modules `evaluate` may import): distributed, backbones, datasets, shapeworld, checkpoint, messages,
and for command lines cli, arguments, trainings.
Private: views, heads, teacher, ops, schedules, optim, diagnostics, objectives/, train.
"""

"""Self-supervised pre-training through a binary channel, and the objectives it is compared with.

Foundation (the only modules `evaluate` may import): distributed, backbones, datasets, shapeworld, checkpoint, messages,
and for command lines cli, arguments, trainings.
Private: views, heads, teacher, ops, schedules, optim, diagnostics, objectives/, train.
"""

import os

# Threads of torch and the loader's workers share the processors: a thread that waits for others gives way after as many
# turns as libgomp grants where it knows of more threads than processors, in place of milliseconds.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

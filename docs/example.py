"""Two checkpoints side by side: python docs/example.py RUN_A RUN_B [DATASET] [DATA_ROOT]"""

import sys

from evaluate.api import compare, evaluate, extract, load

a, b, data, root = [*sys.argv[1:], *("shapeworld", "data")[len(sys.argv) - 3 :]]

model = load(a)
features = extract(model, data, data_root=root).cls()
scores = evaluate([a, b], suite=data, data_root=root)
differences = compare(a, b)

print(f"{model.record['name']}: {tuple(features.shape)} features of {data}")
print(scores[["checkpoint", "task", "dataset", "metric", "value", "low", "high"]].to_string(index=False))
print(differences[["task", "dataset", "difference", "low", "high", "p", "verdict"]].to_string(index=False))

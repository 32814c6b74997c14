"""Makes row_optimizers.json: row optimizers where every row is hit at every step.

sgd, adagrad, adam, adamw: torch.optim in float32 on CPU, rows as one dense parameter, learning rate set anew each step.
adamw: decoupled decay. rowwise_adagrad, partial_rowwise_adam: torch has none; the formulas of FBGEMM's table-batched
embeddings (EXACT_ROWWISE_ADAGRAD, PARTIAL_ROWWISE_ADAM) in numpy float64, rounded to float32 at the end.
Run: python row_optimizers.py > row_optimizers.json
"""
import json

import numpy as np
import torch

SEED, ROWS, COLUMNS, STEPS = 20, 3, 12, 20
LOOKS = [1, 10, 20]  # weights are noted after that many steps
BETAS, EPS, DECAY = (0.9, 0.999), 1e-8, 0.1

random = np.random.default_rng(SEED)
# Short binary fractions: exact in any format, and short as text. Row 2's gradients are small.
WEIGHTS = np.round(random.standard_normal((ROWS, COLUMNS)) * 64) / 256
GRADIENTS = np.round(random.standard_normal((STEPS, ROWS, COLUMNS)) * 64) / 64 * np.array([1, 1, 2.0**-10])[None, :, None]
RATES = [2.0**-6 * (1 + step % 3) for step in range(STEPS)]


def of_torch(make):
    """Weights of a torch optimizer at LOOKS."""
    weights = torch.nn.Parameter(torch.tensor(WEIGHTS, dtype=torch.float32))
    optimizer = make([weights])
    looks = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATES[step]
        weights.grad = torch.tensor(GRADIENTS[step], dtype=torch.float32)
        optimizer.step()
        if step + 1 in LOOKS:
            looks.append(weights.detach().numpy().copy())
    return looks


def rowwise_adagrad():
    weights, sums, looks = WEIGHTS.copy(), np.zeros((ROWS, 1)), []
    for step in range(STEPS):
        g = GRADIENTS[step]
        sums += (g * g).mean(axis=1, keepdims=True)
        weights -= RATES[step] * g / (np.sqrt(sums) + EPS)
        if step + 1 in LOOKS:
            looks.append(weights.astype(np.float32))
    return looks


def partial_rowwise_adam():
    weights, m, v, looks = WEIGHTS.copy(), np.zeros((ROWS, COLUMNS)), np.zeros((ROWS, 1)), []
    for step in range(STEPS):
        g, n = GRADIENTS[step], step + 1
        m = BETAS[0] * m + (1 - BETAS[0]) * g
        v = BETAS[1] * v + (1 - BETAS[1]) * (g * g).mean(axis=1, keepdims=True)
        weights -= RATES[step] * (m / (1 - BETAS[0] ** n)) / (np.sqrt(v / (1 - BETAS[1] ** n)) + EPS)
        if n in LOOKS:
            looks.append(weights.astype(np.float32))
    return looks


torch.set_num_threads(1)
results = {
    "sgd": of_torch(lambda p: torch.optim.SGD(p, lr=1.0, foreach=False)),
    "adagrad": of_torch(lambda p: torch.optim.Adagrad(p, lr=1.0, eps=EPS, foreach=False)),
    "adam": of_torch(lambda p: torch.optim.Adam(p, lr=1.0, betas=BETAS, eps=EPS, foreach=False)),
    "adamw": of_torch(lambda p: torch.optim.AdamW(p, lr=1.0, betas=BETAS, eps=EPS, weight_decay=DECAY, foreach=False)),
    "rowwise_adagrad": rowwise_adagrad(),
    "partial_rowwise_adam": partial_rowwise_adam(),
}


def short(values):
    """Nested lists of the shortest decimals that are the float32 values."""
    return [short(v) for v in values] if isinstance(values, (list, np.ndarray)) else float(str(np.float32(values)))


members = {
    "origin": f"row_optimizers.py, torch {torch.__version__}, numpy {np.__version__}, seed {SEED}",
    "columns": COLUMNS, "betas": BETAS, "eps": EPS, "weight_decay_of_adamw": DECAY, "looks": LOOKS, "rates": RATES,
    "weights": short(WEIGHTS), "gradients": short(GRADIENTS),
}
lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in members.items()]
lines += ['"results": {\n' + ",\n".join(f"{json.dumps(n)}: {json.dumps(short(r))}" for n, r in results.items()) + "\n}"]
print("{\n" + ",\n".join(lines) + "\n}")

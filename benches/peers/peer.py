"""One step at a time of another library's embedding tables, for run.py: forward, backward and update of every id.

Reads lines from standard input, runs one step for each, and answers with its seconds as JSON.
"""

import argparse
import gc
import json
import mmap
import sys
import time

import numpy as np
import torch


def sizes_of(args):
    """Rows of each table: each has two more than the one before, as polygram's have."""
    return [args.rows + 2 * table for table in range(args.tables)]


class Fbgemm:
    """FBGEMM's table-batched embedding on the CPU: every id is a bag of its own, row-wise Adagrad fused into backward."""

    def __init__(self, args):
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
            ComputeDevice,
            SplitTableBatchedEmbeddingBagsCodegen,
        )

        # Without pooling the CPU kernel sums gradients in hash maps and is slower; a bag of one id is the same row.
        self.tables = SplitTableBatchedEmbeddingBagsCodegen(
            [(rows, args.width, EmbeddingLocation.HOST, ComputeDevice.CPU) for rows in sizes_of(args)],
            optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=1e-3,
            eps=1e-8,
            pooling_mode=PoolingMode.SUM,
        )
        self.tables.init_embedding_weights_uniform(-0.01, 0.01)
        self.offsets = torch.arange(0, args.tables * args.tokens + 1)
        self.gradient = torch.randn(args.tokens, args.tables * args.width) * 1e-3

    def prepare(self, ids):
        return torch.from_numpy(ids.reshape(-1).astype(np.int64))

    def forward(self, ids):
        return self.tables(ids, self.offsets)

    def backward(self, rows):
        rows.backward(self.gradient)


def untouched(rows, width):
    """Zeros [rows, width] that cost memory as their pages are written: pages of 4 KiB, as few rows share one."""
    memory = mmap.mmap(-1, 4 * rows * width)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32).view(rows, width)


class Torch:
    """torch.nn.Embedding(sparse=True) and torch.optim.SparseAdam."""

    def __init__(self, args):
        made = lambda rows: torch.empty(rows, args.width).uniform_(-0.01, 0.01)
        weights = [
            untouched(rows, args.width) if args.untouched else made(rows) for rows in sizes_of(args)
        ]
        self.tables = [torch.nn.Embedding.from_pretrained(w, freeze=False, sparse=True) for w in weights]
        self.optimizer = torch.optim.SparseAdam([table.weight for table in self.tables], lr=1e-3)
        if args.untouched:
            for table in self.tables:
                moments = {name: untouched(*table.weight.shape) for name in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[table.weight] = {"step": 0, **moments}
        self.gradients = [torch.randn(args.tokens, args.width) * 1e-3 for _ in self.tables]

    def prepare(self, ids):
        return [torch.from_numpy(column.astype(np.int64)) for column in ids]

    def forward(self, ids):
        return [table(column) for table, column in zip(self.tables, ids)]

    def backward(self, rows):
        torch.autograd.backward(rows, self.gradients)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=["fbgemm", "torch"])
    parser.add_argument("--ids", required=True, help="little-endian u32 [steps, tables, tokens]")
    for name in ("rows", "tables", "tokens", "width", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--untouched", action="store_true", help="torch: memory only for rows that are used")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    peer = {"fbgemm": Fbgemm, "torch": Torch}[args.library](args)
    steps = np.fromfile(args.ids, dtype="<u4").reshape(-1, args.tables, args.tokens)
    steps = [peer.prepare(step) for step in steps]
    # The collector of Python is not what is measured.
    gc.collect()
    gc.freeze()
    gc.disable()
    print(json.dumps({"ready": True, "torch": torch.__version__}), flush=True)
    for number, _ in enumerate(sys.stdin):
        start = time.perf_counter()
        rows = peer.forward(steps[number % len(steps)])
        half = time.perf_counter()
        peer.backward(rows)
        end = time.perf_counter()
        del rows
        print(json.dumps({"forward": half - start, "backward": end - half}), flush=True)


if __name__ == "__main__":
    main()

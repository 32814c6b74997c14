#!/usr/bin/env python3
"""Whole steps of embedding tables, ours and other libraries', on the same ids, in turns, on this machine.

A step is forward (the row of every id), backward, and the update of every distinct row. Peers are installed by pip into a
virtual environment of their own: FBGEMM's table-batched embedding with fused row-wise Adagrad, and PyTorch's
Embedding(sparse=True) with SparseAdam. Both processes live at once and run their steps in turns, so that what disturbs the
machine disturbs both; a ratio is the median over pairs of steps.

    cargo build --release -p polygram-embedding-shard
    benches/peers/run.py [-o json]
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from environment import CACHE, PACKAGES, TARGET, TUNABLES, Process, environment

TABLES, WIDTH, TOKENS = 12, 256, 8192
OPTIMIZERS = {"fbgemm": "rowwise_adagrad", "torch": "adam"}
# Values beside each weight that a peer keeps for every row, used or not.
STATE = {"fbgemm": 1 / WIDTH, "torch": 2}


def write_ids(path, rows, distribution, args):
    """Ids [steps, tables, tokens]; Zipf's frequent rows lie scattered over each table."""
    import numpy as np

    random = np.random.default_rng(args.seed)
    columns = []
    for table in range(TABLES):
        count = rows + 2 * table
        if distribution == "uniform":
            ids = random.integers(0, count, size=(args.steps, TOKENS))
        else:
            weights = np.cumsum(np.arange(1, count + 1, dtype=np.float64) ** -args.exponent)
            ranks = np.searchsorted(weights, random.random((args.steps, TOKENS)) * weights[-1])
            ids = random.permutation(count)[np.minimum(ranks, count - 1)]
        columns.append(ids.astype("<u4"))
    np.stack(columns, axis=1).tofile(path)


def available_bytes():
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def compare(args, python, ids, rows, library, threads):
    """Steps of both in turns. None where the machine has not the memory."""
    total = sum(rows + 2 * table for table in range(TABLES))
    row_bytes = 4 * WIDTH * (1 + STATE[library])
    used = min(total, args.steps * TABLES * TOKENS)
    peer_bytes = total * row_bytes
    spare = 2 << 30
    # A page of 4 KiB for each row of weights and of state.
    paged_bytes = 4096 * used * (1 + STATE[library])
    options = []
    if peer_bytes + 1.07 * total * row_bytes + spare < available_bytes():
        written = "all"
    elif peer_bytes + 1.07 * used * row_bytes + spare < available_bytes():
        written = "used"
    elif library == "torch" and paged_bytes + 1.07 * used * row_bytes + spare < available_bytes():
        written, options = "used, of the peer too", ["--untouched"]
    else:
        return {"skipped": f"needs {(peer_bytes + used * row_bytes + spare) / 2**30:.0f} GiB of free memory"}
    common = ["--rows", rows, "--tokens", TOKENS, "--width", WIDTH]
    peer = Process(
        [python, Path(__file__).with_name("peer.py"), library, "--ids", ids, "--tables", TABLES]
        + [*common, "--threads", threads, *options],
        TUNABLES if args.peer_allocator == "tuned" else None,
    )
    ours = Process(
        [args.program, "bench", "step", "--id-file", ids, "--on-request", "--written", written.partition(",")[0]]
        + [*common, "--lanes", threads, "--set", f'embedding.optimizer="{OPTIMIZERS[library]}"']
    )
    # One round of all steps first: caches, allocators and first touches.
    for _ in range(args.steps):
        ours.step(), peer.step()
    pairs = [(ours.step(), peer.step()) for _ in range(args.repetitions)]
    ours.end()
    peer.end()
    result = {"written": written, "repetitions": len(pairs)}
    whole = lambda answer: answer["forward"] + answer["backward"]
    for name, side in (("ours", 0), ("peer", 1)):
        rates = [TABLES * TOKENS / whole(pair[side]) for pair in pairs]
        result[name] = {
            "rows_per_second": {"median": statistics.median(rates), "minimum": min(rates), "maximum": max(rates)},
            "forward_seconds": statistics.median(pair[side]["forward"] for pair in pairs),
            "backward_seconds": statistics.median(pair[side]["backward"] for pair in pairs),
        }
    result["ratio"] = statistics.median(whole(peer) / whole(ours) for ours, peer in pairs)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=CACHE, help="folder of the peers' virtual environment")
    parser.add_argument("--program", type=Path, default=TARGET / "release" / "polygram-embedding-shard")
    parser.add_argument("--rows", default="4000000,10000000", help="rows of all tables together, one after another")
    parser.add_argument("--ids", default="zipf,uniform")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--peers", default="fbgemm,torch")
    parser.add_argument("--peer-allocator", choices=["tuned", "default"], default="tuned", help="tuned: as ours is")
    parser.add_argument("--exponent", type=float, default=1.0, help="Zipf's")
    parser.add_argument("--steps", type=int, default=8, help="steps whose ids are made; repetitions go round them")
    parser.add_argument("--repetitions", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--output-format", choices=["human", "json"], default="human")
    args = parser.parse_args()
    if not args.program.is_file():
        raise SystemExit(f"{args.program} is missing: cargo build --release -p polygram-embedding-shard")
    python = environment(args.venv)
    if Path(sys.prefix).resolve() != args.venv.resolve():
        os.execv(python, [str(python), *sys.argv])
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for total in map(int, args.rows.split(",")):
            for distribution in args.ids.split(","):
                ids = Path(folder) / f"{total}-{distribution}"
                # The first table's, so that all together have about the number asked for.
                rows = total // TABLES - TABLES + 1
                write_ids(ids, rows, distribution, args)
                for library in args.peers.split(","):
                    for threads in map(int, args.threads.split(",")):
                        name = f"{library} {total / 1e6:g}M {distribution} {threads}"
                        result = results[name] = compare(args, python, ids, rows, library, threads)
                        if args.output_format == "human":
                            print(line_of(name, result), flush=True)
    if args.output_format == "json":
        ratios = {name: result["ratio"] for name, result in results.items() if "ratio" in result}
        print(json.dumps({"packages": PACKAGES, "ratios": ratios, "results": results}, indent=2))


def line_of(name, result):
    if "skipped" in result:
        return f"{name:<28} skipped: {result['skipped']}"
    rates = [
        "{median:6.2f} ({minimum:.2f} to {maximum:.2f})".format(
            **{key: value / 1e6 for key, value in result[side]["rows_per_second"].items()}
        )
        for side in ("ours", "peer")
    ]
    rows = f"rows written: {result['written']}"
    return f"{name:<28} ours {rates[0]:<24} peer {rates[1]:<24} M rows/s, ratio {result['ratio']:.2f} ({rows})"


if __name__ == "__main__":
    main()

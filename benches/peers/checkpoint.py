#!/usr/bin/env python3
"""A state of 2 GiB saved durably and loaded cold: ours, PyTorch's distributed checkpoint, safetensors, cp, and the disk.

A save is over when every byte and every name is on the disk (fsync). A load is cold: the files' pages were dropped from
the page cache before, the other parties have written their states since the party's own save where the order has it so
(below the page cache a virtual disk has caches that nobody can drop), and the values land in memory that was there
already. In every round all parties save and then all load, each round begins with the next party, so that what disturbs
the machine disturbs all; a ratio is the median over rounds of the peer's seconds by ours. "disk" only reads the files
that ours has written, past the page cache, into the same few buffers again and again: about what the disk can give.

    cargo build --release -p polygram-cli
    benches/peers/checkpoint.py [-o json] [--folder DIR]
"""

import argparse
import json
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from environment import CACHE, PACKAGES, TARGET, TUNABLES, environment

PEER = r"""
import json, os, sys, time
import torch
work, party, folder, tensors = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
torch.set_num_threads(2)
ELEMENTS = 8 << 20

def state():
    if work == "load":
        return {f"model.bench.{i:04}": torch.ones(ELEMENTS) for i in range(tensors)}
    ramp = torch.arange(ELEMENTS, dtype=torch.float32)
    return {f"model.bench.{i:04}": ramp + i for i in range(tensors)}

def sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)

values = state()
if party == "dcp":
    import torch.distributed.checkpoint as dcp
    start = time.perf_counter()
    if work == "save":
        writer = dcp.FileSystemWriter(folder, thread_count=2, sync_files=True)
        dcp.save(values, storage_writer=writer, no_dist=True)
        sync(folder)
    else:
        dcp.load(values, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
else:
    from safetensors.torch import save_file, safe_open
    path = os.path.join(folder, "state.safetensors")
    start = time.perf_counter()
    if work == "save":
        save_file(values, path)
        sync(path)
        sync(folder)
    else:
        with safe_open(path, "pt") as file:
            for name, value in values.items():
                value.copy_(file.get_tensor(name))
seconds = time.perf_counter() - start
for i in range(tensors):
    if work == "load":
        assert values[f"model.bench.{i:04}"][-1].item() == float(ELEMENTS - 1 + i), i
print(json.dumps({"seconds": seconds}))
"""

PARTIES = {"save": ["ours", "dcp", "safetensors", "cp"], "load": ["ours", "dcp", "safetensors", "disk"]}


def files(folder):
    return [path for path in Path(folder).rglob("*") if path.is_file()]


def evict(folder):
    """Drops the files' pages from the page cache; they are clean, for every save has synced them."""
    for path in files(folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def answer(command, tunables=None):
    variables = {**os.environ, **({"GLIBC_TUNABLES": tunables} if tunables else {})}
    done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, env=variables)
    return json.loads(done.stdout)["seconds"]


def copy(folder, source):
    """cp with fsync, of a file of the same size that is in the page cache."""
    target = Path(folder) / "copy"
    start = time.perf_counter()
    subprocess.run(["cp", source, target], check=True)
    for path in (target, folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return time.perf_counter() - start


def read_directly(folder, threads=4, piece=2 << 20):
    """Reads every byte of the files, several requests at a time, and keeps none."""
    pieces = [(path, at) for path in files(folder) for at in range(0, path.stat().st_size, piece)]

    def read(mine):
        with mmap.mmap(-1, piece) as buffer:
            descriptors = {path: os.open(path, os.O_RDONLY | os.O_DIRECT) for path, _ in mine}
            for path, at in mine:
                os.preadv(descriptors[path], [buffer], at)
            for descriptor in descriptors.values():
                os.close(descriptor)

    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, (pieces[thread::threads] for thread in range(threads))))
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=CACHE, help="folder of the peers' virtual environment")
    parser.add_argument("--program", type=Path, default=TARGET / "release" / "polygram")
    parser.add_argument("--folder", type=Path, help="where to write [default: the system's temporary folder]")
    parser.add_argument("--mebibytes", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output-format", choices=["human", "json"], default="human")
    args = parser.parse_args()
    if not args.program.is_file():
        raise SystemExit(f"{args.program} is missing: cargo build --release -p polygram-cli")
    python = environment(args.venv)
    tensors = -(-args.mebibytes // 32)
    seconds = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as base:
        source = Path(base) / "source"
        with open(source, "wb") as file:
            for _ in range(tensors):
                file.write(os.urandom(32 << 20))
            os.fsync(file.fileno())
        # The first round warms caches of code, and is not counted.
        for turn in range(args.rounds + 1):
            for work, parties in PARTIES.items():
                for place in range(len(parties)):
                    party = parties[(turn + place) % len(parties)]
                    folder = Path(base) / ("ours" if party == "disk" else party)
                    if work == "save":
                        shutil.rmtree(folder, ignore_errors=True)
                        folder.mkdir()
                    os.sync()
                    if work == "load":
                        evict(folder)
                    if party == "cp":
                        took = copy(folder, source)
                    elif party == "disk":
                        took = read_directly(folder)
                    elif party == "ours":
                        command = [args.program, "bench", "checkpoint", work, "--root", folder]
                        took = answer([*command, "--mebibytes", args.mebibytes, "-o", "json"], TUNABLES)
                    else:
                        took = answer([python, "-W", "ignore", "-c", PEER, work, party, folder, tensors], TUNABLES)
                    if turn:
                        seconds.setdefault((work, party), []).append(took)
                        print(f"{work} {party}: {took:.2f} s", file=sys.stderr)
    size = tensors * (32 << 20)
    results = []
    for (work, party), took in sorted(seconds.items()):
        ours = seconds[(work, "ours")]
        ratio = statistics.median(theirs / our for theirs, our in zip(took, ours))
        median = statistics.median(took)
        results.append(
            {
                "work": work,
                "party": party,
                "seconds": {"median": median, "minimum": min(took), "maximum": max(took)},
                "gigabytes_per_second": size / median / 1e9,
                "seconds_by_ours": ratio,
            }
        )
    if args.output_format == "json":
        print(json.dumps({"bytes": size, "rounds": args.rounds, "packages": PACKAGES, "results": results}, indent=2))
        return
    print(f"{'work':<6}{'party':<14}{'GB/s':>6}{'seconds (min-max)':>24}{'by ours':>9}")
    for result in results:
        took = result["seconds"]
        span = f"{took['median']:.2f} ({took['minimum']:.2f}-{took['maximum']:.2f})"
        speed = f"{result['gigabytes_per_second']:.2f}"
        print(f"{result['work']:<6}{result['party']:<14}{speed:>6}{span:>24}{result['seconds_by_ours']:>9.2f}")


if __name__ == "__main__":
    main()

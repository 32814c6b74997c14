"""Collectives of torch.distributed's Gloo for collective.py: starts its ranks and measures one order for each line.

Orders are as `polygram-collective bench --on-request` takes them; the answer is the seconds of a call on the slowest rank.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time


def rank_of(args):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{args.store}", rank=args.rank, world_size=args.procs
    )
    tensors = {}

    def kept(name, size, kind):
        if name not in tensors or tensors[name].numel() != size:
            tensors[name] = torch.ones(size, dtype=kind)
        return tensors[name]

    def splits(order):
        first = order["bytes"] * 7 // 10 if order["split"] == "skewed" else order["bytes"] // args.procs
        ends = [first + (order["bytes"] - first) * i // (args.procs - 1) for i in range(args.procs)]
        return [end - begin for begin, end in zip([0] + ends, ends)]

    dist.barrier()
    print(json.dumps({"torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if order["op"] == "all_reduce":
            values = kept("values", -(-order["bytes"] // 4), torch.float32).fill_(1)
            call = lambda: dist.all_reduce(values)
        else:
            parts = splits(order)
            own = parts[args.rank]
            sent = kept("sent", order["bytes"], torch.uint8)
            received = kept("received", own * args.procs, torch.uint8)
            call = lambda: dist.all_to_all_single(received, sent, [own] * args.procs, parts)
        dist.barrier()
        begun = time.perf_counter()
        for _ in range(order["calls"]):
            call()
        print(json.dumps((time.perf_counter() - begun) / order["calls"]), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--procs", type=int, required=True)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--store")
    args = parser.parse_args()
    if args.rank is not None:
        return rank_of(args)
    # The ranks meet in a file; all their traffic is on the loopback device.
    env = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            subprocess.Popen(
                [sys.executable, __file__, "--procs", str(args.procs), "--rank", str(rank)]
                + ["--store", f"{folder}/store"],
                env=env,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for rank in range(args.procs)
        ]
        print([rank.stdout.readline() for rank in ranks][0], end="", flush=True)
        for line in sys.stdin:
            for rank in ranks:
                rank.stdin.write(line)
                rank.stdin.flush()
            print(json.dumps({"seconds": max(float(rank.stdout.readline()) for rank in ranks)}), flush=True)
        for rank in ranks:
            rank.stdin.close()
        for rank in ranks:
            rank.wait()


if __name__ == "__main__":
    main()

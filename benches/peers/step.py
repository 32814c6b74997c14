#!/usr/bin/env python3
"""Training steps of one worker, ours and the Hugging Face longcat_flash module's, in turns, on this machine.

Both have the dimensions of configs/bench-step.toml; ours also looks up and updates n-gram tables that two shards serve.
The peer runs eagerly and through torch.compile, in f32 and with bf16 autocast, and updates with fused AdamW.

    make build
    benches/peers/step.py [-o json]
"""

import argparse
import json
import os
import statistics
import subprocess
from pathlib import Path

from environment import CACHE, PACKAGES, REPOSITORY, TARGET, TUNABLES, Process, environment

RUN_FILE = REPOSITORY / "configs" / "bench-step.toml"


def ours(args, compute):
    """Tokens per second and all that `polygram bench step` says."""
    command = [TARGET / "release" / "polygram", "bench", "step", RUN_FILE, "--steps", args.steps, "--warmup", args.warmup]
    command += ["--set", f"device.threads={args.threads}", "--set", f'training.compute="{compute}"', "-o", "json"]
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=CACHE, help="folder of the peers' virtual environment")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--compute", default="f32,bf16")
    parser.add_argument("--ways", default="eager,compile")
    parser.add_argument("--steps", type=int, default=6, help="steps of one turn")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("-o", "--output-format", choices=["human", "json"], default="human")
    args = parser.parse_args()
    python = environment(args.venv)
    results = {}
    for compute in args.compute.split(","):
        for way in args.ways.split(","):
            script = Path(__file__).with_name("longcat_flash.py")
            peer = Process([python, script, "--compute", compute, "--way", way, "--threads", args.threads], TUNABLES)
            for _ in range(args.warmup):
                peer.step()
            mine, theirs, last = [], [], None
            for _ in range(args.turns):
                last = ours(args, compute)
                mine.append(last["tokens_per_second"])
                seconds = [peer.step()["seconds"] for _ in range(args.steps)]
                theirs.append(peer.ready["tokens"] * args.steps / sum(seconds))
            peer.end()
            name = f"{compute} {way}"
            results[name] = {
                "ours_tokens_per_second": mine,
                "peer_tokens_per_second": theirs,
                "ratio": statistics.median(a / b for a, b in zip(mine, theirs)),
                "embedding_wait_ratio": last["embedding_wait_ratio"],
            }
            if args.output_format == "human":
                rate = lambda rates: f"{statistics.median(rates):6.0f} ({min(rates):.0f} to {max(rates):.0f})"
                wait = 100 * last["embedding_wait_ratio"]
                line = f"{name:<14} ours {rate(mine):<22} peer {rate(theirs):<22} tokens/s, ratio {results[name]['ratio']:.2f}"
                print(f"{line}; ours waited for rows {wait:.2f} % of the time", flush=True)
    if args.output_format == "json":
        print(json.dumps({"packages": PACKAGES, "results": results}, indent=2))


if __name__ == "__main__":
    main()

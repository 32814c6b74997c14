#!/usr/bin/env python3
"""What competitors cost: training steps, collectives and row exchanges beside busy loops, ours and the peers'.

A competitor is a process that computes without end. With one on each core a fair share is half of the machine, so what takes
more than twice its time loses it to its own waits: to threads that spin, or that give away whole time slices. Everything is
measured with 0, 1, 2, ... competitors in turns; the same competitors live all the time and are stopped while they are not
wanted. A ratio is the median over turns of the seconds with competitors by the seconds without.

    make build
    benches/peers/busy.py [-o json]
    benches/peers/busy.py --cases step,collective --peers gloo,mpi
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from collective import Mpi, gloo
from environment import CACHE, REPOSITORY, TARGET, TUNABLES, Process, environment

RUN_FILE = REPOSITORY / "configs" / "bench-step.toml"
# What GNU's OpenMP runtime does where nobody says anything: about 3 ms of spinning.
SPINNING = {"GOMP_SPINCOUNT": "300000"}


class Competitors:
    """Busy loops that run only while they are wanted."""

    def __init__(self, most):
        self.children = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(most)]
        self.signal(signal.SIGSTOP, self.children)

    @staticmethod
    def signal(number, children):
        for child in children:
            child.send_signal(number)

    @contextlib.contextmanager
    def running(self, count):
        wanted = self.children[:count]
        self.signal(signal.SIGCONT, wanted)
        try:
            yield
        finally:
            self.signal(signal.SIGSTOP, wanted)

    def end(self):
        for child in self.children:
            child.kill()
            child.wait()


def answer_of(command, variables=None):
    """The JSON that a program prints."""
    command = [str(part) for part in command]
    env = {**os.environ, **(variables or {})}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout)


def step_of(args, workers, threads, variables=None):
    """Seconds of a training step of a whole run: mean, for a step is not much longer than a time slice."""
    sets = {
        "topology.workers": workers,
        "device.threads": threads,
        "training.cells": workers,
        "training.micro_batch_size": max(1, args.samples // workers),
    }
    command = [TARGET / "release" / "polygram", "bench", "step", RUN_FILE, "--steps", args.steps, "--warmup", 2]
    for key, value in sets.items():
        command += ["--set", f"{key}={value}"]
    answer = answer_of([*command, "-o", "json"], variables)
    return answer["tokens_per_step"] / answer["tokens_per_second"]


def exchange_of(args):
    """Seconds of a step's rows between a worker and two shards."""
    command = [TARGET / "release" / "polygram", "bench", "shard", "exchange", "--ids", "zipf", "-o", "json"]
    answer = answer_of([*command, "--tokens", 4096, "--steps", 4, "--repetitions", args.exchanges])
    figures = {figure["name"]: figure for figure in answer["figures"]}
    return figures["exchange zipf: lookup, push and commit"]["seconds"]["median"]


def collective_of(party, op, size, seconds):
    """Seconds of one call, mean of as many as take about so long: a call alone is shorter than a time slice."""

    def mean_of(calls):
        order = {"op": op, "split": "equal", "bytes": size, "calls": min(max(int(calls), 3), 1_000_000)}
        return max(party.step(json.dumps(order))["seconds"], 1e-7)

    return lambda: mean_of(seconds / mean_of(seconds / 5 / mean_of(3)))


def cases_of(args, stack):
    """Name and measurement of every case; programs that are needed for it live as long as `stack`."""
    wanted = args.cases.split(",")
    if "step" in wanted:
        for shape in args.shapes.split(","):
            workers, threads = map(int, shape.split("x"))
            name = f"step, workers x threads {shape}"
            yield name, lambda w=workers, t=threads: step_of(args, w, t)
            if args.spinning:
                yield f"{name}, OpenMP spins", lambda w=workers, t=threads: step_of(args, w, t, SPINNING)
    if "exchange" in wanted:
        yield "exchange of rows, 2 shards", lambda: exchange_of(args)
    if "collective" in wanted:
        program = TARGET / "release" / "polygram-collective"
        for procs in map(int, args.procs.split(",")):
            for name, party in parties_of(args, program, procs, stack).items():
                for op, size in [("all_reduce", 8), ("all_reduce", 1_000_000), ("all_to_all_v", 16_000_000)]:
                    call = collective_of(party, op, size, args.seconds)
                    yield f"{op} of {size} bytes, {procs} processes, {name}", call


def parties_of(args, program, procs, stack):
    ours = [program, "bench", "--on-request", "--procs", procs]
    parties = {"ours": Process(ours, TUNABLES), "ours over tcp": Process([*ours, "--same-host", "tcp"], TUNABLES)}
    peers = [peer for peer in args.peers.split(",") if peer]
    if "gloo" in peers:
        parties["gloo"] = gloo(args.python or environment(args.venv), procs, "reno")
    if "mpi" in peers:
        mpi = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "mpi"
        source = Path(__file__).with_name("mpi.c")
        subprocess.run([shutil.which("mpicc") or "mpicc", "-O2", "-o", mpi, source], check=True, stdout=sys.stderr)
        parties["mpi"] = Mpi(mpi, procs)
    parties = {name: party for name, party in parties.items() if party}
    for party in parties.values():
        stack.callback(party.end)
    return parties


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="step,exchange,collective")
    parser.add_argument("--peers", default="", help="beside our collectives: gloo, mpi")
    parser.add_argument("--venv", type=Path, default=CACHE, help="folder of the peers' virtual environment")
    parser.add_argument("--python", type=Path, help="a Python with torch, instead of that environment's")
    parser.add_argument("--competitors", default="", help="how many, divided by commas; default: 0 to one per core")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--shapes", default="1x2,2x1,2x2", help="workers x threads of training steps")
    parser.add_argument("--spinning", action="store_true", help="training steps with OpenMP's own waits too")
    parser.add_argument("--steps", type=int, default=6, help="steps of one training run")
    parser.add_argument("--samples", type=int, default=4, help="samples of one training step")
    parser.add_argument("--exchanges", type=int, default=20)
    parser.add_argument("--procs", default="2", help="processes of collectives")
    parser.add_argument("--seconds", type=float, default=0.5, help="of calls that are measured together")
    parser.add_argument("-o", "--output-format", choices=["human", "json"], default="human")
    args = parser.parse_args()
    counts = [int(count) for count in args.competitors.split(",") if count] or list(range(os.cpu_count() + 1))
    if counts[0] != 0:
        raise SystemExit("--competitors must begin with 0: ratios are to a machine without")
    results = {}
    competitors = Competitors(max(counts))
    with contextlib.ExitStack() as stack:
        stack.callback(competitors.end)
        for name, measure in cases_of(args, stack):
            turns = []
            for _ in range(args.turns):
                turn = []
                for count in counts:
                    with competitors.running(count):
                        turn.append(measure())
                turns.append(turn)
            columns = list(zip(*turns))
            results[name] = {
                "seconds": {count: statistics.median(column) for count, column in zip(counts, columns)},
                "turns": turns,
                "ratios": {
                    count: statistics.median(turn[at] / turn[0] for turn in turns)
                    for at, count in enumerate(counts)
                    if at
                },
            }
            if args.output_format == "human":
                print(line_of(name, results[name]), flush=True)
    if args.output_format == "json":
        print(json.dumps({"cores": os.cpu_count(), "results": results}, indent=2))


def line_of(name, result):
    seconds = ", ".join(f"{1e3 * value:.4g}" for value in result["seconds"].values())
    ratios = ", ".join(f"{count}: {ratio:.2f}" for count, ratio in result["ratios"].items())
    return f"{name:<58} {seconds} ms; by competitors {ratios}"


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Collectives between processes of this machine: ours, Gloo's and, where mpicc is, an MPI's, in turns.

All live at once and wait while another measures, so that what disturbs the machine disturbs all; a ratio is the median
over repetitions of the peer's seconds by ours. Gloo is measured twice: with its sockets as the system makes them, and with
reno as congestion control where this user may change the default for a moment (BBR paces the loopback device). All run with
an allocator that keeps freed memory on huge pages, as our workers do.

    cargo build --release -p polygram-collective
    benches/peers/collective.py [-o json]
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from environment import CACHE, PACKAGES, TARGET, TUNABLES, Process, environment

CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")
SHORT = 16 << 10


class Mpi(Process):
    """Takes orders as numbers."""

    def __init__(self, program, procs):
        command = ["mpirun", "-n", procs, "--oversubscribe", "--allow-run-as-root", "--mca", "mpi_yield_when_idle", "1"]
        super().__init__(command + [program], TUNABLES)

    def step(self, order):
        order = json.loads(order)
        op = ["all_reduce", "all_to_all_v"].index(order["op"])
        return super().step(f"{op} {int(order['split'] == 'skewed')} {order['bytes']} {order['calls']}")


def gloo(python, procs, control):
    """Gloo with `control` as congestion control of its sockets; None where it cannot be had."""
    usual = CONGESTION.read_text().strip()
    command = [python, Path(__file__).with_name("gloo.py"), "--procs", procs]
    if control == usual:
        return Process(command, TUNABLES)
    try:
        CONGESTION.write_text(control)
    except OSError as error:
        print(f"gloo with {control}: cannot set {CONGESTION}: {error}", file=sys.stderr)
        return None
    try:
        return Process(command, TUNABLES)
    finally:
        CONGESTION.write_text(usual)


def orders_of(args):
    for size in [8, *map(int, args.bytes.split(","))]:
        calls = 200 if size <= SHORT else 1
        for op, split in (("all_reduce", "equal"), ("all_to_all_v", "equal"), ("all_to_all_v", "skewed")):
            if size > SHORT or op == "all_reduce":
                yield {"op": op, "split": split, "bytes": size, "calls": calls}


def measure(args, order, parties):
    text = json.dumps(order)
    rounds = max(3, min(args.repetitions, args.repetitions * (160 << 20) // order["bytes"]))
    for party in parties.values():
        for _ in range(2):
            party.step(text)
    turns = [{name: party.step(text)["seconds"] for name, party in parties.items()} for _ in range(rounds)]
    seconds = {
        name: {
            "median": statistics.median(turn[name] for turn in turns),
            "minimum": min(turn[name] for turn in turns),
            "maximum": max(turn[name] for turn in turns),
        }
        for name in parties
    }
    ratios = {
        name: statistics.median(turn[name] / turn["ours"] for turn in turns) for name in parties if name != "ours"
    }
    return {**order, "repetitions": rounds, "seconds": seconds, "ratios": ratios}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=CACHE, help="folder of the peers' virtual environment")
    parser.add_argument("--program", type=Path, default=TARGET / "release" / "polygram-collective")
    parser.add_argument("--procs", default="2,4")
    parser.add_argument("--bytes", default="1000000,16000000,256000000")
    parser.add_argument("--repetitions", type=int, default=21, help="fewer of long calls")
    parser.add_argument("--tcp", action="store_true", help="ours over TCP too, as between hosts")
    parser.add_argument("-o", "--output-format", choices=["human", "json"], default="human")
    args = parser.parse_args()
    if not args.program.is_file():
        raise SystemExit(f"{args.program} is missing: cargo build --release -p polygram-collective")
    python = environment(args.venv)
    usual = CONGESTION.read_text().strip()
    results, libraries = [], {"packages": PACKAGES, "congestion": usual}
    with tempfile.TemporaryDirectory() as folder:
        mpi = Path(folder) / "mpi"
        if shutil.which("mpicc"):
            source = Path(__file__).with_name("mpi.c")
            subprocess.run(["mpicc", "-O2", "-o", mpi, source], check=True, stdout=sys.stderr)
        else:
            print("mpicc is not installed (openmpi-bin, libopenmpi-dev): without an MPI", file=sys.stderr)
        for procs in map(int, args.procs.split(",")):
            ours = [args.program, "bench", "--on-request", "--procs", procs]
            parties = {"ours": Process(ours, TUNABLES)}
            if args.tcp:
                parties["ours over tcp"] = Process([*ours, "--same-host", "tcp"], TUNABLES)
            for control in dict.fromkeys([usual, "reno"]):
                parties[f"gloo {control}"] = gloo(python, procs, control)
            if mpi.exists():
                parties["mpi"] = Mpi(mpi, procs)
                libraries.update(parties["mpi"].ready)
            parties = {name: party for name, party in parties.items() if party}
            for order in orders_of(args):
                results.append({"procs": procs, **measure(args, order, parties)})
                if args.output_format == "human":
                    print(line_of(results[-1]), flush=True)
            for party in parties.values():
                party.end()
    if args.output_format == "json":
        print(json.dumps({**libraries, "results": results}, indent=2))


def line_of(result):
    words = [f"{result['op']:<12} {result['split']:<6} {result['procs']} processes {result['bytes']:>9} bytes:"]
    for name, seconds in result["seconds"].items():
        text = f"{name} {1e6 * seconds['median']:.0f} us"
        ratio = result["ratios"].get(name)
        words.append(text if ratio is None else f"{text} ({ratio:.2f})")
    return "  ".join(words)


if __name__ == "__main__":
    main()

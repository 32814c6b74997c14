#!/usr/bin/env python3
"""`polygram data prepare` beside `tokenizers` in Python (encode_batch), on the same files with the same tokenizer, in turns.

Both read one file of JSON lines, or one text file with --single, use the same number of threads and write token files.
Every token is compared. GB/h per core is text (10^9 bytes) by wall time and threads; a ratio is the median over pairs of turns.

    cargo build --release -p polygram-cli
    pip install tokenizers numpy
    benches/peers/prepare.py [--corpus FOLDER] [--mebibytes N] [--threads N] [--tokenizer FILE] [-o json]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TARGET = Path(os.environ.get("CARGO_TARGET_DIR", Path(__file__).resolve().parents[2] / "target"))
TEXT = {".rs", ".py", ".md", ".txt", ".c", ".h", ".toml", ".rst", ".html"}
# Documents that the peer encodes together.
BATCH = 1000


def write_corpus(folder, limit, lines, single):
    """Texts of `folder` up to `limit` bytes, again and again where they are fewer; a text ends with a newline."""
    texts = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in TEXT and path.is_file():
            try:
                # A byte order mark at the start is no text: ours takes it off.
                text = path.read_text(encoding="utf-8-sig")
            except (UnicodeDecodeError, OSError):
                continue
            if text.strip() and "\0" not in text:
                texts.append(text)
    if not texts:
        sys.exit(f"{folder} has no text; name another with --corpus")
    size = 0
    with open(lines, "w", encoding="utf-8") as json_lines, open(single, "w", encoding="utf-8") as text_file:
        while size < limit:
            for text in texts:
                if size >= limit:
                    break
                size += len(text.encode())
                json_lines.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                text_file.write(text)
    return size


def peer(path, tokenizer_path, output, eos):
    """The same work with `tokenizers`: whole documents, EOS after each, 16 bits a token where they do."""
    import numpy as np
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(tokenizer_path)
    tokenizer.encode_special_tokens = True
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.int32

    def documents():
        with open(path, encoding="utf-8", newline="") as file:
            if path.endswith(".txt"):
                yield file.read()
            else:
                for line in file:
                    yield json.loads(line)["text"]

    with open(output, "wb") as file:

        def write(batch):
            for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
                file.write(np.array(encoding.ids + [eos], dtype=dtype).tobytes())

        batch = []
        for document in documents():
            batch.append(document)
            if len(batch) == BATCH:
                write(batch)
                batch = []
        write(batch)


def timed(command, variables=None):
    """Seconds of wall and processor time and peak memory of a command, all its threads included."""
    start = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, **(variables or {})}, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status != 0:
        sys.exit(f"{command[0]} failed with status {os.waitstatus_to_exitcode(status)}")
    return {"seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_bytes": usage.ru_maxrss * 1024}


def compare(ours, theirs):
    """Tokens, and how many differ."""
    import numpy as np

    with open(str(ours) + ".idx", "rb") as file:
        dtype = {4: np.int32, 8: np.uint16}[file.read(18)[17]]
    a, b = np.fromfile(str(ours) + ".bin", dtype=dtype), np.fromfile(theirs, dtype=dtype)
    common = min(len(a), len(b))
    return len(a), int((a[:common] != b[:common]).sum()) + max(len(a), len(b)) - common


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path.home() / ".cargo" / "registry" / "src")
    parser.add_argument("--mebibytes", type=int, default=64, help="size of the text")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--vocab-size", type=int, default=8192, help="of the tokenizer that is trained")
    parser.add_argument("--tokenizer", help="a tokenizer.json, instead of training one")
    parser.add_argument("--eos", help="its token that closes a document")
    parser.add_argument("--single", action="store_true", help="one text file instead of JSON lines")
    parser.add_argument("--scratch", help="folder for the files [default: a temporary one]")
    parser.add_argument("-o", dest="output_format", choices=["human", "json"], default="human")
    args = parser.parse_args()
    polygram = TARGET / "release" / "polygram"

    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        scratch = Path(scratch)
        lines, single = scratch / "corpus.jsonl", scratch / "corpus.txt"
        size = write_corpus(args.corpus, args.mebibytes << 20, lines, single)
        tokenizer = args.tokenizer
        if tokenizer is None:
            train = [polygram, "data", "prepare", lines, "--output", scratch / "trained", "--held-out", "0"]
            timed([*train, "--vocab-size", str(args.vocab_size), "--max-bytes", str(32 << 20)])
            tokenizer = str(scratch / "trained" / "tokenizer.json")
        path = single if args.single else lines
        ours = [polygram, "data", "prepare", path, "--output", scratch / "ours", "--held-out", "0", "--replace"]
        ours += ["--tokenizer", tokenizer, "--threads", str(args.threads), *(["--eos", args.eos] if args.eos else [])]
        turns = []
        for _ in range(args.turns):
            own = timed(ours)
            eos = json.loads((scratch / "ours" / "meta.json").read_text())["eos_token_id"]
            theirs = [sys.executable, __file__, "--peer", path, tokenizer, scratch / "theirs.bin", str(eos)]
            variables = {"RAYON_NUM_THREADS": str(args.threads), "TOKENIZERS_PARALLELISM": "true"}
            turns.append({"ours": own, "peer": timed(theirs, variables)})
        tokens, different = compare(scratch / "ours" / "train", scratch / "theirs.bin")

    def rate(side):
        seconds = statistics.median(turn[side]["seconds"] for turn in turns)
        return size / 1e9 / (seconds / 3600) / args.threads

    result = {
        "bytes": size,
        "threads": args.threads,
        "tokens": tokens,
        "tokens_that_differ": different,
        "ours_gb_per_hour_per_core": rate("ours"),
        "peer_gb_per_hour_per_core": rate("peer"),
        "ratio": statistics.median(turn["peer"]["seconds"] / turn["ours"]["seconds"] for turn in turns),
        "cpu_ratio": statistics.median(turn["peer"]["cpu_seconds"] / turn["ours"]["cpu_seconds"] for turn in turns),
        "ours_peak_bytes": max(turn["ours"]["peak_bytes"] for turn in turns),
        "peer_peak_bytes": max(turn["peer"]["peak_bytes"] for turn in turns),
        "turns": turns,
    }
    if args.output_format == "json":
        print(json.dumps(result, indent=2))
    else:
        print(f"{size / 1e6:.0f} MB of text, {tokens:,} tokens, {different:,} differ, {args.threads} threads")
        for side in ("ours", "peer"):
            gigabytes = result[f"{side}_gb_per_hour_per_core"]
            print(f"{side}: {gigabytes:.1f} GB/h per core, peak {result[f'{side}_peak_bytes'] / 1e6:.0f} MB")
        print(f"ratio {result['ratio']:.2f} by wall time, {result['cpu_ratio']:.2f} by processor time")
    if different:
        sys.exit(1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peer"]:
        peer(*sys.argv[2:5], int(sys.argv[5]))
    else:
        main()

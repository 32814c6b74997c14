"""One training step at a time of the Hugging Face longcat_flash module, for step.py.

Reads lines from standard input, runs one step for each (forward, backward, AdamW), and answers with its seconds as JSON.
Dimensions are those of configs/bench-step.toml.
"""

import argparse
import contextlib
import gc
import json
import sys
import time
import tomllib

import torch
from transformers import LongcatFlashConfig, LongcatFlashForCausalLM

from environment import REPOSITORY


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compute", choices=["f32", "bf16"], required=True)
    parser.add_argument("--way", choices=["eager", "compile"], required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    run = tomllib.loads((REPOSITORY / "configs" / "bench-step.toml").read_text())
    training = run["training"]
    shape = (training["micro_batch_size"] * training["cells"], training["seq_len"])
    model = run["model"]
    config = LongcatFlashConfig(
        **model,
        # What its rotary embedding is made for.
        head_dim=model["qk_rope_head_dim"],
        use_cache=False,
        max_position_embeddings=shape[1],
        attn_implementation="sdpa",
    )
    model = LongcatFlashForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=training["lr"], fused=True)
    step_model = torch.compile(model) if args.way == "compile" else model
    autocast = contextlib.nullcontext
    if args.compute == "bf16":
        autocast = lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    batches = [torch.randint(config.vocab_size, shape) for _ in range(4)]

    def step(tokens):
        with autocast():
            loss = step_model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    # The collector of Python is not what is measured.
    gc.collect()
    gc.freeze()
    gc.disable()
    print(json.dumps({"ready": True, "tokens": shape[0] * shape[1], "torch": torch.__version__}), flush=True)
    for number, _ in enumerate(sys.stdin):
        start = time.perf_counter()
        step(batches[number % len(batches)])
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main()

"""Logits of golden B under many rotary settings, by transformers' own longcat_flash backbone.

usage: rope_vectors.py            (with transformers 4.57.6: writes rope.json and rope.safetensors)
       rope_vectors.py --compare  (with another version: prints the largest difference from them)

The backbone gets B's input embedding (forward.safetensors), since transformers has no n-gram tables. Each setting
is a pair of top-level keys, `rope_theta` and `rope_scaling`; the logits are those of the last positions of B's first
sequence.
Needs torch, transformers, safetensors.
"""
import itertools
import json
import os
import sys
import tempfile

import torch
import transformers
from safetensors.torch import load_file, save_file

HERE = os.path.dirname(os.path.abspath(__file__))
POSITIONS = 8
# With these numbers the borders of the interpolated dimensions are 0.81 and 3.82 of 4: rounding them counts.
THETA, YARN = 100.0, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
MSCALES = {
    "absent": {},
    "null": {"mscale": None, "mscale_all_dim": None},
    "equal": {"mscale": 1.0, "mscale_all_dim": 1.0},
    "ratio": {"mscale": 0.707, "mscale_all_dim": 1.0},
    "mscale_only": {"mscale": 0.707},
    "all_dim_only": {"mscale_all_dim": 0.707},
    "all_dim_0": {"mscale": 0.707, "mscale_all_dim": 0.0},
    "mscale_0": {"mscale": 0.0, "mscale_all_dim": 0.707},
}


def settings():
    yield "plain", {"rope_theta": 10000.0, "rope_scaling": None}
    yield "plain_theta", {"rope_theta": THETA, "rope_scaling": None}
    betas = {"beta_fast": 8.0, "beta_slow": 2.0, "mscale": 1.0}
    yield "betas", {"rope_theta": THETA, "rope_scaling": {**YARN, **betas}}
    for (name, mscales), factor, truncate in itertools.product(MSCALES.items(), [None, 1.3], [None, False]):
        scaling = {**YARN, **mscales}
        if factor is not None:
            scaling["attention_factor"], name = factor, name + "_factor"
        if truncate is not None:
            scaling["truncate"], name = truncate, name + "_exact"
        yield "yarn_" + name, {"rope_theta": THETA, "rope_scaling": scaling}
    # transformers writes both names of the kind; the original length is the model's where it is not given.
    both = {"type": "yarn", "mscale": 1.0, "mscale_all_dim": 1.0}
    yield "both_types", {"rope_theta": THETA, "rope_scaling": {**YARN, **both}}
    yield "no_original", {"rope_theta": THETA, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}
    yield "factor_1", {"rope_theta": THETA, "rope_scaling": {**YARN, "factor": 1.0}}


def logits(keys, config, weights, embedding):
    """Of the backbone with `keys` in place of the configuration's own."""
    with tempfile.TemporaryDirectory() as folder:
        config = {**config, **keys, "model_type": "longcat_flash", "architectures": ["LongcatFlashForCausalLM"]}
        json.dump(config, open(folder + "/config.json", "w"))
        save_file(weights, folder + "/model.safetensors", metadata={"format": "pt"})
        model = transformers.LongcatFlashForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32
        )
    with torch.no_grad():
        return model.eval()(inputs_embeds=embedding).logits[0, -POSITIONS:].contiguous()


def main():
    torch.set_num_threads(1)
    config = json.load(open(HERE + "/B/config.json"))
    weights = {k: v for k, v in load_file(HERE + "/B/model.safetensors").items() if "ngram" not in k}
    if transformers.__version__.startswith("5."):
        # It wants gate and up projections of zero experts, too, and does not use them.
        n, z = config["n_routed_experts"], config["zero_expert_num"]
        shape = (config["expert_ffn_hidden_size"], config["hidden_size"])
        layers, zero_experts = range(config["num_layers"]), range(n, n + z)
        for layer, expert, part in itertools.product(layers, zero_experts, ["gate", "up"]):
            weights[f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight"] = torch.zeros(shape)
    forward = load_file(HERE + "/B/forward.safetensors")
    found = {name: logits(dict(keys), config, weights, forward["embedding"][:1]) for name, keys in settings()}
    worst = (found["plain"] - forward["logits"][0, -POSITIONS:]).abs().max().item()
    print(f"transformers {transformers.__version__}: plain differs from B's own logits by {worst:.1e}")
    assert worst < 2e-5
    if sys.argv[1:] == ["--compare"]:
        wanted = load_file(HERE + "/rope.safetensors")
        worst = max((found[name] - wanted[name]).abs().max().item() for name in wanted)
        print(f"{len(wanted)} settings: largest difference {worst:.1e}")
        assert found.keys() == wanted.keys() and worst < 2e-5
        return
    distinct = {tuple(value.flatten().tolist()) for value in found.values()}
    print(f"{len(found)} settings, {len(distinct)} different results")
    save_file(found, HERE + "/rope.safetensors")
    with open(HERE + "/rope.json", "w") as file:
        lines = [f' "{name}": {json.dumps(keys)}' for name, keys in settings()]
        file.write("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()

"""Makes golden C with reference.py: N = 5, K = 2, YaRN in the spelling of transformers 5, zero experts.

usage: make_c.py     (writes C/; prints how far A and B are from this reference, which must not have changed)
Needs torch and safetensors.
"""
import json
import os

import torch
from safetensors.torch import load_file, save_file

import reference

HERE = os.path.dirname(os.path.abspath(__file__))
CONFIG = {
    "architectures": ["LongcatFlashNgramForCausalLM"],
    "model_type": "longcat_flash_ngram",
    "dtype": "float32",
    "vocab_size": 101,
    "hidden_size": 64,
    "num_layers": 2,
    "num_attention_heads": 2,
    "ffn_hidden_size": 40,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "qk_head_dim": 20,
    "head_dim": 8,
    "v_head_dim": 12,
    "moe_topk": 3,
    "n_routed_experts": 5,
    "zero_expert_num": 3,
    "zero_expert_type": "identity",
    "expert_ffn_hidden_size": 24,
    "routed_scaling_factor": 4.0,
    "emb_neighbor_num": 5,
    "emb_split_num": 2,
    "ngram_vocab_size_ratio": 4.3,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 100.0,
        "factor": 4.0,
        "original_max_position_embeddings": 512,
        "mscale": 0.707,
        "mscale_all_dim": 1.0,
        "truncate": False,
    },
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# EOS in the middle, twice in a row, and last; id 0; a repeated run; the last id of the vocabulary.
IDS = [
    [1, 40, 41, 42, 43, 44, 40, 41, 42, 43, 44, 7, 0, 9]
    + [2, 40, 41, 42, 43, 44, 100, 100, 100, 5, 6, 40, 41, 2],
    [2, 2, 3, 0, 0, 0, 88, 89, 90, 91, 2, 2, 88, 89]
    + [90, 91, 92, 1, 15, 16, 17, 15, 16, 17, 15, 16, 17, 99],
]


def weights(c):
    """Random and well scaled, as A's and B's are (README.md)."""
    generator = torch.Generator().manual_seed(5)
    normal = lambda *shape: torch.randn(*shape, generator=generator)
    linear = lambda out, inner, gain=1.0: normal(out, inner) * gain / inner**0.5
    norm = lambda width: 1 + 0.2 * normal(width)
    d, v, h = c["hidden_size"], c["vocab_size"], c["num_attention_heads"]
    nope, rope, value = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    w = {"model.embed_tokens.weight": normal(v, d)}
    sizes = reference.table_sizes(c)
    for i, rows in enumerate(sizes):
        w[f"model.ngram_embeddings.embedders.{i}.weight"] = normal(rows, d // len(sizes))
        w[f"model.ngram_embeddings.post_projs.{i}.weight"] = linear(d, d // len(sizes))
    for layer in range(c["num_layers"]):
        p = f"model.layers.{layer}."
        for s in range(2):
            w[f"{p}input_layernorm.{s}.weight"] = norm(d)
            w[f"{p}post_attention_layernorm.{s}.weight"] = norm(d)
            a = f"{p}self_attn.{s}."
            w[a + "q_a_proj.weight"] = linear(c["q_lora_rank"], d)
            w[a + "q_a_layernorm.weight"] = norm(c["q_lora_rank"])
            w[a + "q_b_proj.weight"] = linear(h * (nope + rope), c["q_lora_rank"])
            w[a + "kv_a_proj_with_mqa.weight"] = linear(c["kv_lora_rank"] + rope, d)
            w[a + "kv_a_layernorm.weight"] = norm(c["kv_lora_rank"])
            w[a + "kv_b_proj.weight"] = linear(h * (nope + value), c["kv_lora_rank"])
            w[a + "o_proj.weight"] = linear(d, h * value)
        blocks = [(f"{p}mlps.{s}.", c["ffn_hidden_size"]) for s in range(2)]
        experts = [f"{p}mlp.experts.{e}." for e in range(c["n_routed_experts"])]
        blocks += [(expert, c["expert_ffn_hidden_size"]) for expert in experts]
        for block, inner in blocks:
            w[block + "gate_proj.weight"] = linear(inner, d)
            w[block + "up_proj.weight"] = linear(inner, d)
            w[block + "down_proj.weight"] = linear(d, inner)
        routed = c["n_routed_experts"] + c["zero_expert_num"]
        w[p + "mlp.router.classifier.weight"] = linear(routed, d, 1.5)
        w[p + "mlp.router.e_score_correction_bias"] = 0.08 * normal(routed)
    w["model.norm.weight"] = norm(d)
    w["lm_head.weight"] = linear(v, d)
    return w


def main():
    torch.set_num_threads(1)
    for name in "AB":
        config = json.load(open(f"{HERE}/{name}/config.json"))
        wanted = load_file(f"{HERE}/{name}/forward.safetensors")
        w = {key: value.double() for key, value in load_file(f"{HERE}/{name}/model.safetensors").items()}
        logits = reference.forward(wanted["input_ids"], w, config)["logits"]
        print(f"{name}: {(logits - wanted['logits_f64']).abs().max().item():.1e} from its own f64 logits")
    ids, w = torch.tensor(IDS), weights(CONFIG)
    single = reference.forward(ids, w, CONFIG)
    double = reference.forward(ids, {key: value.double() for key, value in w.items()}, CONFIG)
    print(f"C: f32 and f64 logits differ by {(single['logits'] - double['logits']).abs().max().item():.1e}")
    for layer, ((_, _, one, _), (_, _, two, _)) in enumerate(zip(single["router"], double["router"])):
        assert (one.sort(-1).values == two.sort(-1).values).all(), f"layer {layer}: a close choice of experts"
    os.makedirs(HERE + "/C", exist_ok=True)
    with open(HERE + "/C/config.json", "w") as file:
        file.write(json.dumps(CONFIG, indent=2) + "\n")
    save_file(w, HERE + "/C/model.safetensors", metadata={"format": "pt"})
    forward = {
        "input_ids": ids,
        "table_sizes": torch.tensor(reference.table_sizes(CONFIG)),
        "ngram_ids": double["ngram_ids"],
        "embedding": double["embedding"].float(),
        "logits": double["logits"].float(),
        "loss": reference.lm_loss(double["logits"], ids).float().reshape(1),
    }
    save_file({key: value.contiguous() for key, value in forward.items()}, HERE + "/C/forward.safetensors")


if __name__ == "__main__":
    main()

"""The five demo models: config.json in the published form, a module to train, and the published tensor layout.

Four families are transformers' own classes. `deepseek` (DeepSeek-MoE-16B) has no class there: it is
transformers' Llama with the feed-forward of layers >= first_k_dense_replace replaced by transformers'
DeepseekV2Moe, whose greedy softmax routing without renormalisation is the same rule.
"""
import json
import os

import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe

import vocab

FOLDERS = {"mixtral": "demo-mixtral", "deepseek_v3": "demo-deepseek-v3", "deepseek_v2": "demo-deepseek-v2",
           "deepseek": "demo-deepseek-moe", "ernie4_5_moe": "demo-ernie"}

_COMMON = dict(hidden_act="silu", hidden_size=128, initializer_range=0.02, max_position_embeddings=2048,
               num_attention_heads=4, num_hidden_layers=4, torch_dtype="bfloat16", use_cache=True)
_DEEPSEEK = dict(_COMMON, attention_bias=False, attention_dropout=0.0, aux_loss_alpha=0.001, first_k_dense_replace=1,
                 intermediate_size=384, moe_layer_freq=1, norm_topk_prob=False, num_key_value_heads=4, pretraining_tp=1,
                 rms_norm_eps=1e-06, rope_scaling=None, rope_theta=10000, scoring_func="softmax", seq_aux=True,
                 tie_word_embeddings=False)
_MLA = dict(kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32, ep_size=1)

CONFIGS = {
    "mixtral": dict(_COMMON, architectures=["MixtralForCausalLM"], model_type="mixtral", attention_dropout=0.0,
                    intermediate_size=192, num_experts_per_tok=2, num_key_value_heads=2, num_local_experts=8,
                    output_router_logits=False, rms_norm_eps=1e-05, rope_theta=1000000.0, router_aux_loss_coef=0.02,
                    sliding_window=None, tie_word_embeddings=False, transformers_version="4.36.0.dev0"),
    "deepseek_v3": dict(_DEEPSEEK, **_MLA, architectures=["DeepseekV3ForCausalLM"], model_type="deepseek_v3",
                        q_lora_rank=96, n_routed_experts=16, n_shared_experts=1, num_experts_per_tok=3, n_group=4,
                        topk_group=2, moe_intermediate_size=96, norm_topk_prob=True, routed_scaling_factor=2.5,
                        scoring_func="sigmoid", topk_method="noaux_tc", num_nextn_predict_layers=0,
                        rope_scaling={"beta_fast": 32, "beta_slow": 1, "factor": 4, "mscale": 1.0, "mscale_all_dim": 1.0,
                                      "original_max_position_embeddings": 512, "type": "yarn"},
                        transformers_version="4.33.1"),
    "deepseek_v2": dict(_DEEPSEEK, **_MLA, architectures=["DeepseekV2ForCausalLM"], model_type="deepseek_v2",
                        q_lora_rank=None, n_routed_experts=12, n_shared_experts=2, num_experts_per_tok=3, n_group=1,
                        topk_group=1, moe_intermediate_size=112, routed_scaling_factor=1.0, topk_method="greedy",
                        transformers_version="4.33.1"),
    "deepseek": dict(_DEEPSEEK, architectures=["DeepseekForCausalLM"], model_type="deepseek", n_routed_experts=12,
                     n_shared_experts=2, num_experts_per_tok=3, moe_intermediate_size=112,
                     transformers_version="4.36.0"),
    "ernie4_5_moe": dict(_COMMON, architectures=["Ernie4_5_MoeForCausalLM"], model_type="ernie4_5_moe",
                         intermediate_size=384, moe_capacity=[64, 64, 64], moe_gate="topk", moe_intermediate_size=112,
                         moe_k=3, moe_layer_end_index=-1, moe_layer_interval=1, moe_layer_start_index=1,
                         moe_num_experts=12, moe_num_shared_experts=2, moe_use_aux_free=True, num_key_value_heads=2,
                         rms_norm_eps=1e-05, rope_scaling=None, rope_theta=500000, tie_word_embeddings=True,
                         use_bias=False),
}


def make_config(family, encoder):
    """The config.json of a family; the DeepSeek embeddings are padded beyond the tokenizer, as the published ones."""
    c = dict(CONFIGS[family], bos_token_id=encoder.token(encoder.config["bos_token"]), eos_token_id=encoder.eos)
    c["vocab_size"] = encoder.size if family == "mixtral" else -(-encoder.size // 32) * 32
    if family == "ernie4_5_moe":
        c["pad_token_id"] = 0
    return dict(sorted(c.items()))


class _MoeConfig:
    """The few fields that DeepseekV2Moe reads, out of a `deepseek` config."""

    def __init__(self, c):
        self.__dict__.update(c, num_experts=c["n_routed_experts"], mlp_bias=False, topk_method="greedy", n_group=1,
                             topk_group=1, routed_scaling_factor=1.0, _experts_implementation="eager")


def build(c):
    """An fp32 module with random weights for the config dict `c`."""
    if c["model_type"] != "deepseek":
        config = CONFIG_MAPPING[c["model_type"]](**{k: v for k, v in c.items() if k not in ("architectures", "torch_dtype")})
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", experts_implementation="eager",
                                                dtype=torch.float32)
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta", "tie_word_embeddings",
             "bos_token_id", "eos_token_id")
    model = LlamaForCausalLM(LlamaConfig(**{k: c[k] for k in names}, attn_implementation="sdpa"))
    for i in range(c["first_k_dense_replace"], c["num_hidden_layers"]):
        model.model.layers[i].mlp = DeepseekV2Moe(_MoeConfig(c))
    return model


def published(family, state):
    """In-memory state dict (fused experts) -> tensors under their published names and dtypes."""
    out, mixtral = {}, family == "mixtral"
    for name, t in state.items():
        t = t.detach().clone()
        if name == "lm_head.weight" and family == "ernie4_5_moe":
            continue
        if mixtral:
            name = name.replace(".mlp.", ".block_sparse_moe.")
        name = name.replace(".gate.moe_statics.", ".moe_statics.")
        base, _, leaf = name.rpartition(".")
        gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
        if base.endswith(".experts") and leaf == "gate_up_proj":
            for e, w in enumerate(t):
                out[f"{base}.{e}.{gate}.weight"], out[f"{base}.{e}.{up}.weight"] = w.chunk(2)
        elif base.endswith(".experts"):
            for e, w in enumerate(t):
                out[f"{base}.{e}.{down}.weight"] = w
        else:
            out[name] = t
    keep = lambda n: n.endswith("e_score_correction_bias") or (family == "ernie4_5_moe" and n.endswith(".mlp.gate.weight"))
    return {n: t.to(torch.float32 if keep(n) else torch.bfloat16).contiguous() for n, t in out.items()}


def fused(family, tensors):
    """The inverse of `published`, in fp32."""
    state, experts = {}, {}
    for name, t in tensors.items():
        name = name.replace(".block_sparse_moe.", ".mlp.").replace(".mlp.moe_statics.", ".mlp.gate.moe_statics.")
        if ".experts." in name:
            base, _, rest = name.partition(".experts.")
            e, leaf = rest.split(".")[:2]
            leaf = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}.get(leaf, leaf)
            experts.setdefault(base, {}).setdefault(leaf, {})[int(e)] = t.float()
        else:
            state[name] = t.float()
    for base, parts in experts.items():
        n = len(parts["gate_proj"])
        state[f"{base}.experts.gate_up_proj"] = torch.stack(
            [torch.cat((parts["gate_proj"][e], parts["up_proj"][e])) for e in range(n)])
        state[f"{base}.experts.down_proj"] = torch.stack([parts["down_proj"][e] for e in range(n)])
    if family == "ernie4_5_moe":
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    return state


def save(folder, c, model):
    """Writes config.json, generation_config.json and model.safetensors; the tokenizer files are there already."""
    vocab.write_json(folder, "config.json", c)
    ids = {"_from_model_config": True, "bos_token_id": c["bos_token_id"], "eos_token_id": c["eos_token_id"]}
    if "pad_token_id" in c:
        ids["pad_token_id"] = c["pad_token_id"]
    if "transformers_version" in c:
        ids["transformers_version"] = c["transformers_version"]
    vocab.write_json(folder, "generation_config.json", ids)
    path = os.path.join(folder, "model.safetensors")
    save_file(published(c["model_type"], model.state_dict()), path + ".part", metadata={"format": "pt"})
    os.replace(path + ".part", path)


def load(folder):
    """(config dict, fp32 model with the folder's stored weights, encoder)."""
    c = json.load(open(os.path.join(folder, "config.json")))
    model = build(c)
    model.load_state_dict(fused(c["model_type"], load_file(os.path.join(folder, "model.safetensors"))), strict=True)
    return c, model.eval(), vocab.Encoder(c["model_type"], folder)

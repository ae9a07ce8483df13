"""The config.json of released ALiBi models, with all its keys as far as they are known: what an import of them meets.

Read in public copies: BLOOM's (BigScience's inference server writes it out), MPT-7B's, Baichuan2's (of the 7B, with the same
keys). The others have the arguments of their classes in public code and the values of their model cards; their files were not
read: vLLM's classes of Jais and Baichuan, a port of Refact's own class, Cerebras' converter of BTLM, llm-foundry's conversion
of MPT of before June 2023, the first class of Falcon, with GPT-2's keys where a class is derived from it.
"""

COMMON = {"auto_map": {}, "initializer_range": 0.02, "transformers_version": "4.28.1", "use_cache": True}
BLOOM = COMMON | {
    "apply_residual_connection_post_layernorm": False,
    "architectures": ["BloomForCausalLM"],
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_dropout": 0.0,
    "hidden_size": 14336,
    "layer_norm_epsilon": 1e-05,
    "masked_softmax_fusion": True,
    "model_type": "bloom",
    "n_head": 112,
    "n_inner": None,
    "n_layer": 70,
    "offset_alibi": 100,
    "pad_token_id": 3,
    "pretraining_tp": 1,
    "skip_bias_add": True,
    "skip_bias_add_qkv": False,
    "slow_but_exact": False,
    "unk_token_id": 0,
    "vocab_size": 250880,
}
ATTENTION = {
    "alibi": True,
    "alibi_bias_max": 8,
    "attn_impl": "torch",
    "attn_pdrop": 0,
    "attn_type": "multihead_attention",
    "attn_uses_sequence_id": False,
    "clip_qkv": None,
    "prefix_lm": False,
    "qk_ln": False,
    "softmax_scale": None,
}
INITIAL = {
    "emb_init_std": None,
    "emb_init_uniform_lim": None,
    "fan_mode": "fan_in",
    "init_div_is_residual": True,
    "init_gain": 0,
    "init_nonlinearity": "relu",
    "init_std": 0.02,
}
MPT_EVER = COMMON | {
    "d_model": 4096,
    "emb_pdrop": 0,
    "embedding_fraction": 1.0,
    "init_device": "cpu",
    "learned_pos_emb": True,
    "logit_scale": None,
    "max_seq_len": 2048,
    "model_type": "mpt",
    "n_heads": 32,
    "n_layers": 32,
    "no_bias": True,
    "resid_pdrop": 0,
    "tokenizer_name": "EleutherAI/gpt-neox-20b",
    "torch_dtype": "bfloat16",
    "verbose": 0,
    "vocab_size": 50432,
}
MPT = MPT_EVER | {
    "architectures": ["MPTForCausalLM"],
    "attn_config": ATTENTION,
    "expansion_ratio": 4,
    "init_config": INITIAL | {"name": "kaiming_normal_", "verbose": 0},
    "norm_type": "low_precision_layernorm",
}
MPT_FLAT = MPT_EVER | {
    **{
        name: ATTENTION[name]
        for name in ("alibi", "alibi_bias_max", "attn_impl", "attn_pdrop", "attn_uses_sequence_id")
    },
    **{name: ATTENTION[name] for name in ("prefix_lm", "softmax_scale")},
    **INITIAL,
    "architectures": ["MosaicGPT"],
    "attn_clip_qkv": None,
    "attn_qk_ln": True,
    "d_model": 2048,
    "low_precision_layernorm": True,
    "mlp_ratio": 4,
    "model_type": "mosaic_gpt",
    "n_heads": 16,
    "n_layers": 24,
    "param_init_fn": "kaiming_normal_",
    "vocab_size": 50368,
}
FALCON_EVER = COMMON | {
    "alibi": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "bias": True,
    "hidden_dropout": 0.0,
    "layer_norm_epsilon": 1e-05,
    "multi_query": False,
    "parallel_attn": False,
    "torch_dtype": "bfloat16",
}
FALCON = FALCON_EVER | {
    "architectures": ["FalconForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 2048,
    "model_type": "falcon",
    "new_decoder_architecture": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 24,
    "vocab_size": 50304,
}
REFINED_WEB = FALCON_EVER | {
    "architectures": ["RWForCausalLM"],
    "bos_token_id": 11,
    "eos_token_id": 11,
    "hidden_size": 4096,
    "model_type": "RefinedWebModel",
    "n_head": 64,
    "n_layer": 36,
    "vocab_size": 65024,
}
GPT2 = COMMON | {
    "activation_function": "swiglu",
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "layer_norm_epsilon": 1e-05,
    "position_embedding_type": "alibi",
    "reorder_and_upcast_attn": False,
    "resid_pdrop": 0.0,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
}
BTLM = GPT2 | {
    "architectures": ["BTLMLMHeadModel"],
    "bos_token_id": 50256,
    "eos_token_id": 50256,
    "model_type": "btlm",
    "mup_embeddings_scale": 14.6,
    "mup_output_alpha": 2.22,
    "mup_scale_qk_dot_by_d": True,
    "mup_width_scale": 0.1,
    "n_embd": 2560,
    "n_head": 32,
    "n_inner": 6826,
    "n_layer": 32,
    "n_positions": 8192,
    "torch_dtype": "bfloat16",
    "vocab_size": 50257,
}
JAIS = GPT2 | {
    "_name_or_path": "./",
    "architectures": ["JAISLMHeadModel"],
    "bos_token_id": 0,
    "embeddings_scale": 14.6,
    "eos_token_id": 0,
    "model_type": "jais",
    "n_embd": 5120,
    "n_head": 40,
    "n_inner": 13653,
    "n_layer": 40,
    "n_positions": 2048,
    "pad_token_id": 0,
    "scale_qk_dot_by_d": True,
    "torch_dtype": "float32",
    "vocab_size": 84992,
    "width_scale": 0.05,
}
JAIS_30B = BTLM | {
    "alibi_scaling": None,
    "architectures": ["JAISLMHeadModel"],
    "model_type": "jais",
    "mup_embeddings_scale": 9.1705785388303,
    "mup_output_alpha": 1.09518349815769,
    "mup_width_scale": 0.03571428571428571,
    "n_embd": 7168,
    "n_head": 56,
    "n_inner": 19114,
    "n_layer": 48,
    "pad_token_id": 0,
    "vocab_size": 84992,
}
BAICHUAN = COMMON | {
    "architectures": ["BaichuanForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "gradient_checkpointing": [False],
    "hidden_act": "silu",
    "hidden_size": 5120,
    "intermediate_size": 13696,
    "model_max_length": 4096,
    "model_type": "baichuan",
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 64000,
}
BAICHUAN2 = BAICHUAN | {
    "_from_model_config": True,
    "max_position_embeddings": 4096,
    "tokenizer_class": "BaichuanTokenizer",
    "vocab_size": 125696,
    "z_loss_weight": 0,
}
REFACT = COMMON | {
    "architectures": ["GPTRefactForCausalLM"],
    "attention_bias_in_fp32": True,
    "attention_softmax_in_fp32": True,
    "attn_pdrop": 0.1,
    "bos_token_id": -1,
    "do_sample": True,
    "embd_pdrop": 0.1,
    "eos_token_id": 0,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt_refact",
    "multi_query": True,
    "n_embd": 2048,
    "n_head": 32,
    "n_inner": None,
    "n_layer": 32,
    "n_positions": 4096,
    "resid_pdrop": 0.1,
    "scale_attention_softmax_in_fp32": True,
    "scale_attn_weights": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 49216,
}


def older_names(config, **sizes):
    """BLOOM's smaller models have two keys by earlier names, and the length."""
    kept = {name: value for name, value in config.items() if name not in ("hidden_size", "n_head")}
    return kept | {"seq_length": 2048} | sizes


# config, published parameters (all of them where the card has them to the last one), tokens trained on at once, and what of our
# model is not as most are
RELEASED = {
    "bloom": (BLOOM, 176_247_271_424, None, {"embedding_norm": True, "activation": "gelu_tanh"}),
    "bloom-7b1": (older_names(BLOOM, n_embed=4096, num_attention_heads=32, n_layer=30), 7_069_016_064, 2048, {}),
    "bloom-560m": (older_names(BLOOM, n_embed=1024, num_attention_heads=16, n_layer=24), 559_214_592, 2048, {}),
    "mpt-7b": (MPT, 6.7e9, 2048, {"bias_max": 8, "clip_qkv": None, "activation": "gelu_erf"}),
    "mpt-7b-storywriter": (
        MPT | {"attn_config": ATTENTION | {"alibi_bias_max": 16, "clip_qkv": 6}, "max_seq_len": 65536},
        6.7e9,
        65536,
        {"bias_max": 16, "clip_qkv": 6},
    ),
    "mpt-30b": (MPT | {"d_model": 7168, "n_heads": 64, "n_layers": 48, "max_seq_len": 8192}, 30e9, 8192, {}),
    "mpt-1b-redpajama-200b": (MPT_FLAT, 1.3e9, 2048, {"qk_norm": "channels", "norm_biases": False}),
    "falcon-rw-1b": (FALCON, 1.3e9, None, {"slope_rounding": "bfloat16", "slope_divisor": 8.0}),
    "falcon-rw-7b": (REFINED_WEB, 7.5e9, None, {"slope_rounding": "bfloat16", "slope_divisor": 8.0}),
    "btlm-3b-8k-base": (BTLM, 2.6e9, 8192, {"score_multiplier": 80**-0.5, "logit_multiplier": 2.22 * 0.1}),
    "jais-13b": (JAIS, 13e9, 2048, {"embedding_multiplier": 14.6, "logit_multiplier": 0.05}),
    "jais-30b-v3": (JAIS_30B, 30e9, 8192, {"score_multiplier": 128**-0.5, "slope_divisor": 1.0}),
    "baichuan-13b": (BAICHUAN, 13_264_901_120, 4096, {"norm": "rms", "norm_epsilon": 1e-6}),
    "baichuan2-13b": (BAICHUAN2, 13_896_668_160, 4096, {"norm": "rms", "tied_embedding": False}),
    "refact-1_6b-fim": (REFACT, 1.6e9, 4096, {"norm": "layer", "norm_biases": False, "mlp_width": 5632}),
}

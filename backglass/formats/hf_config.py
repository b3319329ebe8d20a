"""config.json of a Hugging Face folder, for GPT-2 and for LLaMA and its kin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backglass.errors import UserError
from backglass.models import gpt2, llama

ARCHITECTURES = {
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}  # fmt: skip


def read(j: Any, path: Path) -> Any:
    """The Config that the parsed text of config.json describes.  Raises UserError for a model we
    cannot run, or for damage."""
    kind = j.get("model_type") if isinstance(j, dict) else type(j).__name__
    if kind != "gpt2" and kind not in ARCHITECTURES:
        known = ", ".join(("gpt2", *ARCHITECTURES))
        raise UserError(f"{path} describes a {kind!r} model; only {known} can be read")
    try:
        return _gpt2(j, path) if kind == "gpt2" else _llama(j, path)
    except KeyError as error:
        raise UserError(f"{path} is damaged: it lacks {error}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def write(c: Any, end_of_text: int | None) -> dict[str, Any]:
    """config.json as transformers reads it."""
    ours = _gpt2_json(c) if isinstance(c, gpt2.Config) else _llama_json(c)
    return ours | {
        "vocab_size": c.vocab_size,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "torch_dtype": "float32",
    }


def _require(path: Path, wants: dict[str, tuple[Any, tuple]]) -> None:
    """Raises UserError for a key that is not one of the values allowed: key -> (found, allowed)."""
    for key, (found, allowed) in wants.items():
        if found not in allowed:
            raise UserError(f"{path}: {key} is {found!r}; this model has {allowed[0]!r}")


# ------------------------------------------------------------------------------ GPT-2
def _gpt2(j: dict[str, Any], path: Path) -> gpt2.Config:
    width = j.get("n_embd")
    _require(
        path,
        {
            "activation_function": (
                j.get("activation_function", "gelu_new"),
                ("gelu_new", "gelu_pytorch_tanh"),
            ),
            "layer_norm_epsilon": (j.get("layer_norm_epsilon", 1e-5), (1e-5,)),
            "tie_word_embeddings": (j.get("tie_word_embeddings", True), (True,)),
            "n_inner": (j.get("n_inner"), (None, 4 * width if isinstance(width, int) else 0)),
            "scale_attn_by_inverse_layer_idx": (
                j.get("scale_attn_by_inverse_layer_idx", False),
                (False,),
            ),
        },
    )
    return gpt2.Config(
        layers=int(j["n_layer"]),
        heads=int(j["n_head"]),
        channels=int(j["n_embd"]),
        vocab_size=int(j["vocab_size"]),
        max_seq_len=int(j["n_positions"]),
    )


def _gpt2_json(c: gpt2.Config) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_positions": c.max_seq_len,
        "n_ctx": c.max_seq_len,
        "n_embd": c.channels,
        "n_layer": c.layers,
        "n_head": c.heads,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "embd_pdrop": c.dropout,
        "resid_pdrop": c.dropout,
        "attn_pdrop": 0.0,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
    }


# ------------------------------------------------------------------------------ LLaMA
def _llama(j: dict[str, Any], path: Path) -> llama.Config:
    """transformers 5 says rope_parameters where earlier ones say rope_theta and rope_scaling."""
    kind = j["model_type"]
    rope = {"rope_theta": j.get("rope_theta", 10000.0), **(j.get("rope_scaling") or {})}
    rope |= j.get("rope_parameters") or {}
    way = rope.get("rope_type", rope.get("type", "default"))
    _require(
        path,
        {
            "hidden_act": (j.get("hidden_act", "silu"), ("silu",)),
            "attention_bias": (j.get("attention_bias", False), (False,)),
            "mlp_bias": (j.get("mlp_bias", False), (False,)),
            "rope_type": (way, ("default", "llama3")),
        },
    )
    return llama.Config(
        layers=int(j["num_hidden_layers"]),
        heads=int(j["num_attention_heads"]),
        kv_heads=int(j.get("num_key_value_heads") or 0),
        head_size=int(j.get("head_dim") or 0),
        channels=int(j["hidden_size"]),
        hidden=int(j["intermediate_size"]),
        vocab_size=int(j["vocab_size"]),
        max_seq_len=int(j["max_position_embeddings"]),
        tied=bool(j.get("tie_word_embeddings", False)),
        rope_theta=float(rope["rope_theta"]),
        rope_scaling=_scaling(rope) if way == "llama3" else "",
        norm_eps=float(j.get("rms_norm_eps", 1e-6)),
        window=_window(j, path),
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
    )


SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def _scaling(rope: dict[str, Any]) -> str:
    return " ".join(f"{float(rope[name]):g}" for name in SCALING)


def _window(j: dict[str, Any], path: Path) -> int:
    """sliding_window, where the family uses it; in Qwen it may begin at some layer."""
    if j["model_type"] == "mistral":
        return int(j.get("sliding_window") or 0)
    if not j.get("use_sliding_window", False):
        return 0
    _require(path, {"max_window_layers": (j.get("max_window_layers", 0), (0,))})
    return int(j.get("sliding_window") or 0)


def family_of(c: llama.Config) -> str:
    """The model_type whose models are like this one.  Raises UserError if there is none."""
    if c.qkv_bias and c.qk_norm:
        raise UserError("no family of Hugging Face's has both qkv_bias and qk_norm; leave one out")
    if c.qkv_bias or c.qk_norm:
        return "qwen2" if c.qkv_bias else "qwen3"
    return "mistral" if c.window else "llama"


def _llama_json(c: llama.Config) -> dict[str, Any]:
    kind = family_of(c)
    rope: dict[str, Any] = {"rope_theta": c.rope_theta, "rope_scaling": None}
    if c.rope_scaling:
        scaling = dict(zip(SCALING, llama.scaling(c), strict=True))
        scaling[SCALING[-1]] = int(scaling[SCALING[-1]])
        rope["rope_scaling"] = {"rope_type": "llama3", **scaling}
    window: dict[str, Any] = {"sliding_window": c.window or None} if kind != "llama" else {}
    if kind in ("qwen2", "qwen3"):
        window |= {"use_sliding_window": bool(c.window), "max_window_layers": 0}
    return {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "max_position_embeddings": c.max_seq_len,
        "hidden_size": c.channels,
        "intermediate_size": c.hidden,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_size,
        "hidden_act": "silu",
        "rms_norm_eps": c.norm_eps,
        "attention_dropout": 0.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": c.tied,
        **rope,
        **window,
    }

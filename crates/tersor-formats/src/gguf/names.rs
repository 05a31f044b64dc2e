//! llama.cpp's tensor names as Hugging Face's.

/// What a GGUF tensor is called elsewhere.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HfTensor {
    /// Its name in Hugging Face's naming.
    pub name: String,
    /// Which heads its rows belong to, where they are stored for interleaved rotary embeddings.
    pub heads: Heads,
}

/// Kinds of heads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Heads {
    /// Rows that belong to none.
    None,
    /// Query or key heads.
    Rotary,
}

/// Tensors outside of layers, here and there.
const ENDS: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// Parts of a layer.
const PARTS: [(&str, &str, Heads); 11] = [
    ("attn_norm", "input_layernorm", Heads::None),
    ("ffn_norm", "post_attention_layernorm", Heads::None),
    ("attn_q", "self_attn.q_proj", Heads::Rotary),
    ("attn_k", "self_attn.k_proj", Heads::Rotary),
    ("attn_v", "self_attn.v_proj", Heads::None),
    ("attn_output", "self_attn.o_proj", Heads::None),
    ("attn_q_norm", "self_attn.q_norm", Heads::None),
    ("attn_k_norm", "self_attn.k_norm", Heads::None),
    ("ffn_gate", "mlp.gate_proj", Heads::None),
    ("ffn_up", "mlp.up_proj", Heads::None),
    ("ffn_down", "mlp.down_proj", Heads::None),
];

/// The Hugging Face name of a tensor of a Llama-family file; none when the name is not known.
pub fn hf_name(gguf: &str) -> Option<HfTensor> {
    if let Some((_, name)) = ENDS.iter().find(|e| e.0 == gguf) {
        return Some(HfTensor { name: name.to_string(), heads: Heads::None });
    }
    let rest = gguf.strip_prefix("blk.")?;
    let (layer, rest) = rest.split_once('.')?;
    let layer: u32 = layer.parse().ok()?;
    let (part, kind) = rest.rsplit_once('.')?;
    if kind != "weight" && kind != "bias" {
        return None;
    }
    let &(_, name, heads) = PARTS.iter().find(|p| p.0 == part)?;
    Some(HfTensor { name: format!("model.layers.{layer}.{name}.{kind}"), heads })
}

/// The name in a GGUF file of a tensor that Hugging Face calls `hf`, and whose rows it has; none when the name is not known.
pub fn gguf_name(hf: &str) -> Option<HfTensor> {
    if let Some((name, _)) = ENDS.iter().find(|e| e.1 == hf) {
        return Some(HfTensor { name: name.to_string(), heads: Heads::None });
    }
    let (layer, rest) = hf.strip_prefix("model.layers.")?.split_once('.')?;
    let layer: u32 = layer.parse().ok()?;
    let (part, kind) = rest.rsplit_once('.')?;
    if kind != "weight" && kind != "bias" {
        return None;
    }
    let &(name, _, heads) = PARTS.iter().find(|p| p.1 == part)?;
    Some(HfTensor { name: format!("blk.{layer}.{name}.{kind}"), heads })
}

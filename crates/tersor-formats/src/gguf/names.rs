//! Translates tensor names between llama.cpp and Hugging Face.

/// A tensor's name translated between llama.cpp's and Hugging Face's naming, and the order in which a GGUF file of the architecture `llama`
/// stores its rows. [`hf_name`] and [`gguf_name`] return it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TensorName {
    /// The tensor's name in the naming that was translated to: Hugging Face's from [`hf_name`], llama.cpp's from [`gguf_name`].
    pub name: String,
    /// Order of the tensor's rows in a GGUF file of the architecture `llama`; files of `qwen2` and `qwen3` store the rows of all tensors in
    /// Hugging Face's order.
    pub rows: RowOrder,
}

/// Order in which a GGUF file of the architecture `llama` stores the rows of a tensor: `Same`, the order of Hugging Face's files, or
/// `Interleaved`, with the two rows of each rotary pair side by side instead of half a head apart (query and key weights). There is no
/// default.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RowOrder {
    /// Rows are in the same order as in Hugging Face's files.
    Same,
    /// Rows belong to query or key heads, and the two rows of each rotary pair are side by side; Hugging Face's files have them half a head
    /// apart. [`GgufRows::unpermuted`](super::GgufRows::unpermuted) undoes this.
    Interleaved,
}

/// Tensors outside of layers: llama.cpp's name and Hugging Face's.
const OUTSIDE_LAYERS: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// Tensors of a layer: llama.cpp's name, Hugging Face's name, order of rows.
const PARTS: [(&str, &str, RowOrder); 11] = [
    ("attn_norm", "input_layernorm", RowOrder::Same),
    ("ffn_norm", "post_attention_layernorm", RowOrder::Same),
    ("attn_q", "self_attn.q_proj", RowOrder::Interleaved),
    ("attn_k", "self_attn.k_proj", RowOrder::Interleaved),
    ("attn_v", "self_attn.v_proj", RowOrder::Same),
    ("attn_output", "self_attn.o_proj", RowOrder::Same),
    ("attn_q_norm", "self_attn.q_norm", RowOrder::Same),
    ("attn_k_norm", "self_attn.k_norm", RowOrder::Same),
    ("ffn_gate", "mlp.gate_proj", RowOrder::Same),
    ("ffn_up", "mlp.up_proj", RowOrder::Same),
    ("ffn_down", "mlp.down_proj", RowOrder::Same),
];

/// Translates llama.cpp's name of a tensor of a Llama, Mistral, Qwen2 or Qwen3 model, such as `blk.3.attn_q.weight`, to Hugging Face's,
/// with the order of its rows. Returns None unless the name is that of the token embedding, the last norm, the output head, or a weight or
/// bias of a layer's norms and linear layers.
///
/// ```
/// use tersor_formats::gguf::{RowOrder, hf_name};
/// let q = hf_name("blk.3.attn_q.weight").unwrap();
/// assert_eq!(q.name, "model.layers.3.self_attn.q_proj.weight");
/// assert_eq!(q.rows, RowOrder::Interleaved);
/// assert!(hf_name("rope_freqs.weight").is_none());
/// ```
pub fn hf_name(gguf: &str) -> Option<TensorName> {
    if let Some((_, name)) = OUTSIDE_LAYERS.iter().find(|e| e.0 == gguf) {
        return Some(TensorName { name: name.to_string(), rows: RowOrder::Same });
    }
    let rest = gguf.strip_prefix("blk.")?;
    let (layer, rest) = rest.split_once('.')?;
    let layer: u32 = layer.parse().ok()?;
    let (part, kind) = rest.rsplit_once('.')?;
    if kind != "weight" && kind != "bias" {
        return None;
    }
    let &(_, name, rows) = PARTS.iter().find(|p| p.0 == part)?;
    Some(TensorName { name: format!("model.layers.{layer}.{name}.{kind}"), rows })
}

/// Translates Hugging Face's name of a tensor of a Llama, Mistral, Qwen2 or Qwen3 model, such as `model.norm.weight`, to llama.cpp's, with
/// the order of its rows in a GGUF file: the inverse of [`hf_name`]. Returns None unless the name is that of the token embedding, the last
/// norm, the output head, or a weight or bias of a layer's norms and linear layers.
///
/// ```
/// let name = tersor_formats::gguf::gguf_name("model.norm.weight").unwrap();
/// assert_eq!(name.name, "output_norm.weight");
/// ```
pub fn gguf_name(hf: &str) -> Option<TensorName> {
    if let Some((name, _)) = OUTSIDE_LAYERS.iter().find(|e| e.1 == hf) {
        return Some(TensorName { name: name.to_string(), rows: RowOrder::Same });
    }
    let (layer, rest) = hf.strip_prefix("model.layers.")?.split_once('.')?;
    let layer: u32 = layer.parse().ok()?;
    let (part, kind) = rest.rsplit_once('.')?;
    if kind != "weight" && kind != "bias" {
        return None;
    }
    let &(name, _, rows) = PARTS.iter().find(|p| p.1 == part)?;
    Some(TensorName { name: format!("blk.{layer}.{name}.{kind}"), rows })
}

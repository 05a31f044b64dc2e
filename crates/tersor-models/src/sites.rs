//! The decoder as an ordered list of sites, and the output of a site's module on stored inputs.

use tersor_core::{
    Consumer, Coupled, Coupling, Error, Exec, Input, KvCache, LinearOp, Producer, Result, Role, Side, Site, Unit,
    bias_name,
};

use crate::layer::{apply, gate};
use crate::{Decoder, DecoderConfig, Layer, SiteKind};

impl SiteKind {
    /// The four sites of a layer (the inputs that its weight matrices read), in the order of execution.
    pub const ALL: [SiteKind; 4] = [SiteKind::Qkv, SiteKind::O, SiteKind::GateUp, SiteKind::Down];

    /// Returns the names of the weight matrices of a decoder layer that read this input, relative to the layer and without `.weight`:
    /// `self_attn.q_proj`, `self_attn.k_proj` and `self_attn.v_proj` for [`SiteKind::Qkv`]; `self_attn.o_proj` for [`SiteKind::O`];
    /// `mlp.gate_proj` and `mlp.up_proj` for [`SiteKind::GateUp`]; `mlp.down_proj` for [`SiteKind::Down`].
    pub fn consumers(self) -> &'static [&'static str] {
        match self {
            SiteKind::Qkv => &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            SiteKind::O => &["self_attn.o_proj"],
            SiteKind::GateUp => &["mlp.gate_proj", "mlp.up_proj"],
            SiteKind::Down => &["mlp.down_proj"],
        }
    }

    /// Returns the role ([`Role::Query`] or [`Role::Down`], for example) of each matrix that reads this input, in the order of
    /// [`SiteKind::consumers`].
    pub fn roles(self) -> &'static [Role] {
        match self {
            SiteKind::Qkv => &[Role::Query, Role::Key, Role::Value],
            SiteKind::O => &[Role::AttentionOutput],
            SiteKind::GateUp => &[Role::Gate, Role::Up],
            SiteKind::Down => &[Role::Down],
        }
    }

    /// Returns the name of the site relative to a decoder layer: `self_attn.qkv`, `self_attn.o`, `mlp.gate_up` or `mlp.down`.
    pub fn name(self) -> &'static str {
        match self {
            SiteKind::Qkv => "self_attn.qkv",
            SiteKind::O => "self_attn.o",
            SiteKind::GateUp => "mlp.gate_up",
            SiteKind::Down => "mlp.down",
        }
    }

    /// Returns the shape `[out_features, in_features]` of each weight matrix that reads this input in a decoder with the configuration `c`,
    /// in the order of [`SiteKind::consumers`].
    pub fn shapes(self, c: &DecoderConfig) -> Vec<[usize; 2]> {
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        match self {
            SiteKind::Qkv => vec![[q, c.hidden], [kv, c.hidden], [kv, c.hidden]],
            SiteKind::O => vec![[c.hidden, q]],
            SiteKind::GateUp => vec![[c.intermediate, c.hidden]; 2],
            SiteKind::Down => vec![[c.hidden, c.intermediate]],
        }
    }
}

impl DecoderConfig {
    /// Returns the network's [sites](Site) in the order of execution: four for each layer, then that of the output head. A site is an input
    /// of the network together with the linear layers that read it, such as q, k and v.
    pub fn sites(&self) -> Vec<Site> {
        let weight = |layer: usize, part: &str| format!("model.layers.{layer}.{part}.weight");
        let mut writers = vec!["model.embed_tokens.weight".to_string()];
        let mut sites = Vec::new();
        for layer in 0..self.layers {
            for kind in SiteKind::ALL {
                let shapes = kind.shapes(self);
                let norm = |part: &str| Producer::Norm { weight: weight(layer, part) };
                let (producer, stream) = match kind {
                    SiteKind::Qkv => (norm("input_layernorm"), true),
                    SiteKind::GateUp => (norm("post_attention_layernorm"), true),
                    SiteKind::O => {
                        let (block, repeat) = (self.head_dim, self.heads / self.kv_heads);
                        (Producer::Linear { weight: weight(layer, "self_attn.v_proj"), block, repeat }, false)
                    }
                    SiteKind::Down => {
                        let block = self.intermediate;
                        (Producer::Linear { weight: weight(layer, "mlp.up_proj"), block, repeat: 1 }, false)
                    }
                };
                let consumers = kind.consumers().iter().zip(&shapes).zip(kind.roles());
                let consumer = |((part, shape), role): ((&&str, &[usize; 2]), &Role)| Consumer {
                    weight: weight(layer, part),
                    shape: *shape,
                    role: *role,
                };
                sites.push(Site {
                    name: format!("model.layers.{layer}.{}", kind.name()),
                    layer: Some(layer),
                    features: shapes[0][1],
                    consumers: consumers.map(consumer).collect(),
                    producer,
                    writers: if stream { writers.clone() } else { Vec::new() },
                });
                match kind {
                    SiteKind::O => writers.push(weight(layer, "self_attn.o_proj")),
                    SiteKind::Down => writers.push(weight(layer, "mlp.down_proj")),
                    _ => {}
                }
            }
        }
        let head = if self.tied { "model.embed_tokens.weight" } else { "lm_head.weight" };
        sites.push(Site {
            name: "lm_head".into(),
            layer: None,
            features: self.hidden,
            consumers: vec![Consumer { weight: head.into(), shape: [self.vocab, self.hidden], role: Role::Head }],
            producer: Producer::Norm { weight: "model.norm.weight".into() },
            writers,
        });
        sites
    }

    /// Returns what structured pruning can remove, two [couplings](Coupling) for each layer: first its key/value heads, each with the query
    /// heads that share it, then its feed-forward neurons. A coupling lists, for each such head or neuron, the rows and columns of all
    /// weights that belong to it. The biases of matrices that lose rows are listed whether the model has them or not.
    pub fn couplings(&self) -> Vec<Coupling> {
        let mut all = Vec::new();
        for layer in 0..self.layers {
            let part = |name: &str, side, width| {
                let weight = format!("model.layers.{layer}.{name}.weight");
                let bias = bias_name(&weight).filter(|_| side == Side::Output);
                let bias = bias.map(|weight| Coupled { weight, side: Side::Input, width });
                std::iter::once(Coupled { weight, side, width }).chain(bias)
            };
            let (dim, group) = (self.head_dim, self.heads / self.kv_heads.max(1));
            let heads = part("self_attn.q_proj", Side::Output, group * dim)
                .chain(part("self_attn.k_proj", Side::Output, dim))
                .chain(part("self_attn.v_proj", Side::Output, dim))
                .chain(part("self_attn.o_proj", Side::Input, group * dim));
            all.push(Coupling {
                name: format!("model.layers.{layer}.self_attn"),
                unit: if group == 1 { Unit::Head } else { Unit::KvHead },
                count: self.kv_heads,
                parts: heads.collect(),
            });
            let neurons = part("mlp.gate_proj", Side::Output, 1)
                .chain(part("mlp.up_proj", Side::Output, 1))
                .chain(part("mlp.down_proj", Side::Input, 1));
            all.push(Coupling {
                name: format!("model.layers.{layer}.mlp"),
                unit: Unit::Neuron,
                count: self.intermediate,
                parts: neurons.collect(),
            });
        }
        all
    }
}

impl Layer {
    /// Returns the output of a site's module for one window, with `weights` in place of the site's own matrices; see [`Decoder::site_output`].
    /// Errors if their number or shapes are wrong.
    pub(crate) fn module(
        &self,
        config: &DecoderConfig,
        kind: SiteKind,
        x: &Input<'_>,
        weights: &[&dyn LinearOp],
        cache: &mut dyn KvCache,
        exec: &Exec,
    ) -> Result<Vec<f32>> {
        let shapes: Vec<_> = weights.iter().map(|w| w.shape()).collect();
        if shapes != kind.shapes(config) {
            return Err(Error::shape("weights of a site", kind.shapes(config), shapes));
        }
        match (kind, weights) {
            (SiteKind::Qkv, &[q, k, v]) => {
                let bias = [&self.q_proj, &self.k_proj, &self.v_proj].map(|l| l.bias.as_deref());
                let run = |op: &dyn LinearOp, b| apply(op, b, x, exec);
                let qkv = [run(q, bias[0])?, run(k, bias[1])?, run(v, bias[2])?];
                let positions: Vec<u32> = (0..x.shape()[0] as u32).collect();
                self.attend(config, qkv, &positions, cache, exec)
            }
            (SiteKind::GateUp, &[g, u]) => {
                let mut gated = apply(g, self.gate_proj.bias.as_deref(), x, exec)?;
                let up = apply(u, self.up_proj.bias.as_deref(), x, exec)?;
                gate(&mut gated, &up, exec);
                Ok(gated)
            }
            (SiteKind::O, &[o]) => apply(o, self.o_proj.bias.as_deref(), x, exec),
            (SiteKind::Down, &[down]) => apply(down, self.down_proj.bias.as_deref(), x, exec),
            _ => Err(Error::shape("weights of a site", kind.consumers().len(), weights.len())),
        }
    }
}

impl Decoder {
    /// Returns the network's [sites](Site) in the order of execution: four for each layer, then that of the output head. A site is an input
    /// of the network together with the linear layers that read it, such as q, k and v.
    pub fn sites(&self) -> Vec<Site> {
        self.config().sites()
    }

    /// Returns the output of one module of layer `layer` (counted from 0) on stored inputs `x`. The module is the matrices that read the
    /// [site](SiteKind) `kind` (one of the four inputs of a layer) and what follows up to the next site. The operators `weights` take the
    /// place of the module's own matrices, in the order of [`SiteKind::consumers`]; biases are kept. `x` is `[tokens, features]`,
    /// row-major, and consists of whole windows of `window` tokens, each of which attends only to itself, from position 0.
    ///
    /// The output is row-major: for q, k and v the attention output, `[tokens, heads * head_dim]`; for gate and up the gated product,
    /// `[tokens, intermediate]`; for o and down the product without the residual, `[tokens, hidden]`. It is empty if `x` is. Errors if the
    /// shapes of `weights` are not those of [`SiteKind::shapes`], `window` is 0, the length of `x` is not a multiple of
    /// `window * features`, or a value of `x` is not finite. Errors also if layer `layer` does not exist or cannot be read.
    pub fn site_output(
        &self,
        layer: usize,
        kind: SiteKind,
        x: &[f32],
        window: usize,
        weights: &[&dyn LinearOp],
        exec: &Exec,
    ) -> Result<Vec<f32>> {
        let config = self.config();
        let shapes: Vec<_> = weights.iter().map(|w| w.shape()).collect();
        if shapes != kind.shapes(config) {
            return Err(Error::shape("weights of a site", kind.shapes(config), shapes));
        }
        let features = shapes[0][1];
        let step = window.checked_mul(features).filter(|n| *n > 0 && x.len().is_multiple_of(*n));
        let Some(step) = step else {
            return Err(Error::shape("sample of a site", format!("windows of {window} by {features}"), x.len()));
        };
        self.with_layer(layer, |own| {
            let mut out = Vec::new();
            for x in x.chunks_exact(step) {
                let x = Input::new(x, [window, features])?;
                out.extend(own.module(config, kind, &x, weights, &mut self.cache()?, exec)?);
            }
            Ok(out)
        })
    }
}

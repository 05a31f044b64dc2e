//! The whole network.

use std::sync::Arc;

use tersor_core::{CacheSet, Error, Exec, Heads, Input, KvCache, LayerCache, LinearOp, MatViewMut, Result, Write};
use tersor_kernels::par;
use tersor_operators::DenseCaches;

use crate::layer::{apply, rms_norm};
use crate::{Checkpoint, DecoderConfig, Layer, SiteKind};

/// Tokens that run through the layers at once.
const BLOCK: usize = 512;

enum Layers {
    Resident(Vec<Layer>),
    Streamed(Box<Checkpoint>),
}

/// A decoder over operators. Shared by threads; what changes lies in a [`State`].
pub struct Decoder {
    config: DecoderConfig,
    embed: Arc<dyn LinearOp>,
    head: Arc<dyn LinearOp>,
    norm: Vec<f32>,
    layers: Layers,
    heads: Heads,
    caches: Arc<dyn CacheSet>,
}

/// The caches of one text.
pub struct State {
    caches: Vec<Box<dyn KvCache>>,
    len: usize,
}

impl State {
    /// Tokens seen.
    pub fn len(&self) -> usize {
        self.len
    }
    /// Whether none were.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Forgets the text.
    pub fn clear(&mut self) {
        self.caches.iter_mut().for_each(|c| c.clear());
        self.len = 0;
    }
    /// Ends the prompt: caches that evict tokens do so here and after every later token. Errors if one cannot.
    pub fn seal(&mut self, exec: &Exec) -> Result<()> {
        self.caches.iter_mut().try_for_each(|c| c.score_prompt(exec))?;
        self.caches.iter_mut().try_for_each(|c| c.seal(exec))
    }
    /// Bytes of all caches.
    pub fn bytes(&self) -> usize {
        self.caches.iter().map(|c| c.bytes()).sum()
    }
}

impl Decoder {
    /// Loads everything. Error when a tensor is missing, misshapen or not finite.
    pub fn load(checkpoint: &Checkpoint) -> Result<Self> {
        let config = checkpoint.architecture().decoder()?;
        let layers = (0..config.layers).map(|i| Layer::read(checkpoint, config, i)).collect::<Result<_>>()?;
        Self::with_layers(checkpoint, Layers::Resident(layers))
    }

    /// Keeps embedding, head and norms; each layer is read when it runs and dropped after.
    pub fn load_streamed(checkpoint: Checkpoint) -> Result<Self> {
        // A resident frame around no layers; then the checkpoint moves in.
        let mut decoder = Self::with_layers(&checkpoint, Layers::Resident(Vec::new()))?;
        decoder.layers = Layers::Streamed(Box::new(checkpoint));
        Ok(decoder)
    }

    fn with_layers(checkpoint: &Checkpoint, layers: Layers) -> Result<Self> {
        let config = checkpoint.architecture().decoder()?.clone();
        let shape = [config.vocab, config.hidden];
        let embed: Arc<dyn LinearOp> = checkpoint.matrix("model.embed_tokens.weight", shape)?.into();
        let separate = checkpoint.has("lm_head.weight");
        if !separate && !config.tied {
            return Err(Error::Missing {
                name: "lm_head.weight".into(),
                place: "a model whose head is not tied".into(),
            });
        }
        let head =
            if separate && !config.tied { checkpoint.matrix("lm_head.weight", shape)?.into() } else { embed.clone() };
        let norm = checkpoint.vector("model.norm.weight", config.hidden)?;
        let heads = config.attention_heads()?;
        Ok(Self { config, embed, head, norm, layers, heads, caches: Arc::new(DenseCaches::f32()) })
    }

    /// Sizes and switches.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Returns the same decoder with other caches than those in f32.
    pub fn with_caches(mut self, caches: Arc<dyn CacheSet>) -> Self {
        self.caches = caches;
        self
    }

    /// Returns empty caches. Errors if they cannot be made for the model's heads.
    pub fn state(&self) -> Result<State> {
        let caches = self.caches.make(&vec![self.heads.clone(); self.config.layers])?;
        if caches.len() != self.config.layers {
            return Err(Error::shape("caches of layers", self.config.layers, caches.len()));
        }
        Ok(State { caches, len: 0 })
    }

    /// Returns an empty cache of one layer in f32.
    pub(crate) fn cache(&self) -> Result<LayerCache> {
        DenseCaches::f32().layer(&self.heads)
    }

    /// Runs `f` with a layer, reading it first where layers are streamed.
    pub fn with_layer<R>(&self, index: usize, f: impl FnOnce(&Layer) -> Result<R>) -> Result<R> {
        match &self.layers {
            Layers::Resident(layers) => {
                let layer = layers.get(index);
                f(layer.ok_or_else(|| Error::shape("layer", format!("below {}", layers.len()), index))?)
            }
            Layers::Streamed(checkpoint) => f(&Layer::read(&**checkpoint, &self.config, index)?),
        }
    }

    /// Appends tokens to the text and returns the last layer's normed output for each, `[tokens, hidden]`. Error when a
    /// token is outside the vocabulary or the text would outgrow 2^32 positions.
    pub fn forward(&self, tokens: &[u32], state: &mut State, exec: &Exec) -> Result<Vec<f32>> {
        self.forward_observed(tokens, state, exec, &mut |_, _, _| Ok(()))
    }

    /// [`Decoder::forward`], with the input of each site shown to `observe` as it is made (layer, kind, input).
    pub fn forward_observed(
        &self,
        tokens: &[u32],
        state: &mut State,
        exec: &Exec,
        observe: &mut dyn FnMut(usize, SiteKind, &Input<'_>) -> Result<()>,
    ) -> Result<Vec<f32>> {
        par::region(exec.parallel(), || self.run(tokens, state, exec, observe))
    }

    fn run(
        &self,
        tokens: &[u32],
        state: &mut State,
        exec: &Exec,
        observe: &mut dyn FnMut(usize, SiteKind, &Input<'_>) -> Result<()>,
    ) -> Result<Vec<f32>> {
        let mut out = Vec::with_capacity(tokens.len() * self.config.hidden);
        for block in tokens.chunks(BLOCK) {
            let mut stream = self.embed(block, exec)?;
            let first = u32::try_from(state.len).map_err(|_| Error::Overflow { what: "positions".into() })?;
            let last =
                first.checked_add(block.len() as u32).ok_or_else(|| Error::Overflow { what: "positions".into() })?;
            let positions: Vec<u32> = (first..last).collect();
            for (i, cache) in state.caches.iter_mut().enumerate() {
                self.with_layer(i, |layer| {
                    let seen: crate::layer::Observer<'_> = &mut |kind, x| observe(i, kind, x);
                    layer.forward(&self.config, &mut stream, &positions, &mut **cache, exec, seen)
                })?;
            }
            state.len += block.len();
            out.extend(rms_norm(&stream, &self.norm, self.config.eps, exec));
        }
        Ok(out)
    }

    /// [`Decoder::forward`], and the logits after the last token, `[vocab]`. Error also when there is none.
    pub fn next(&self, tokens: &[u32], state: &mut State, exec: &Exec) -> Result<Vec<f32>> {
        par::region(exec.parallel(), || {
            let hidden = self.forward(tokens, state, exec)?;
            let last = hidden.len().checked_sub(self.config.hidden);
            let last = last.ok_or_else(|| Error::shape("tokens", "at least one", 0))?;
            self.logits(&hidden[last..], exec)
        })
    }

    /// Rows of the embedding. Error when a token is outside the vocabulary.
    pub fn embed(&self, tokens: &[u32], exec: &Exec) -> Result<Vec<f32>> {
        let mut out = vec![0f32; tersor_core::view::elements([tokens.len(), self.config.hidden])?];
        for (&t, row) in tokens.iter().zip(out.chunks_exact_mut(self.config.hidden)) {
            let t = t as usize;
            if t >= self.config.vocab {
                return Err(Error::shape("token", format!("below {}", self.config.vocab), t));
            }
            self.embed.decompress_rows(t..t + 1, row, exec)?;
        }
        Ok(out)
    }

    /// Logits `[tokens, vocab]` of outputs of [`Decoder::forward`].
    pub fn logits(&self, hidden: &[f32], exec: &Exec) -> Result<Vec<f32>> {
        let x = Input::new(hidden, [hidden.len() / self.config.hidden, self.config.hidden])?;
        apply(&*self.head, None, &x, exec)
    }

    /// Logits into a buffer that the caller keeps.
    pub fn logits_into(&self, hidden: &[f32], out: &mut [f32], exec: &Exec) -> Result<()> {
        let shape = [hidden.len() / self.config.hidden, self.config.hidden];
        let x = Input::new(hidden, shape)?;
        self.head.apply(&x, MatViewMut::new(out, [shape[0], self.config.vocab])?, Write::Set, exec)
    }
}

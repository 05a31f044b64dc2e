//! The decoder network.

use std::sync::Arc;

use tersor_core::{CacheSet, Error, Exec, Heads, Input, KvCache, LayerCache, LinearOp, MatViewMut, Result, Write};
use tersor_kernels::par;
use tersor_operators::DenseCaches;

use crate::layer::{Precision, apply, rms_norm};
use crate::{Checkpoint, DecoderConfig, Layer, SiteKind};

/// Maximum number of tokens that pass through the layers together.
pub(crate) const BLOCK: usize = 512;

enum Layers {
    /// All layers are in memory.
    Resident(Vec<Layer>),
    /// Each layer is read from the checkpoint when it is needed.
    Streamed(Box<Checkpoint>),
}

/// A Llama-family decoder whose weight matrices are dense or compressed operators. It is immutable and can be shared by threads; the
/// key-value caches of each text are in a [`State`].
///
/// ```
/// use tersor_core::Exec;
/// use tersor_models::{Checkpoint, Decoder};
/// # fn main() -> tersor_core::Result<()> {
/// let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/models/tiny-wiki");
/// let decoder = Decoder::load(&Checkpoint::open(path.as_ref(), &tersor_operators::registry())?)?;
/// let (mut state, exec) = (decoder.state()?, Exec::new());
/// let logits = decoder.next_logits(&[1, 2, 3], &mut state, &exec)?;
/// assert_eq!((logits.len(), state.len()), (decoder.config().vocab, 3));
/// # Ok(())
/// # }
/// ```
pub struct Decoder {
    config: DecoderConfig,
    embed: Arc<dyn LinearOp>,
    head: Arc<dyn LinearOp>,
    norm: Vec<f32>,
    layers: Layers,
    heads: Heads,
    caches: Arc<dyn CacheSet>,
}

/// The key-value caches of one text, one cache for each layer of a decoder, and the number of its tokens. [`Decoder::state`] makes an empty
/// one.
pub struct State {
    caches: Vec<Box<dyn KvCache>>,
    len: usize,
}

impl State {
    /// Returns the number of tokens processed so far, evicted ones included.
    pub fn len(&self) -> usize {
        self.len
    }
    /// Returns whether no token has been processed yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Removes all tokens from the caches, so that the state can be used for a new text.
    pub fn clear(&mut self) {
        self.caches.iter_mut().for_each(|c| c.clear());
        self.len = 0;
    }
    /// Marks the end of the prompt: caches that evict tokens score them and evict some now, and evict again after every later token. Other
    /// caches do nothing. Errors if a score cannot be computed or is not finite, or a cache cannot remove a token.
    pub fn seal(&mut self, exec: &Exec) -> Result<()> {
        self.caches.iter_mut().try_for_each(|c| c.score_prompt(exec))?;
        self.caches.iter_mut().try_for_each(|c| c.seal(exec))
    }
    /// Returns the memory that the cached keys and values of all layers take, in bytes.
    pub fn bytes(&self) -> usize {
        self.caches.iter().map(|c| c.bytes()).sum()
    }
}

impl Decoder {
    /// Loads all weights of a checkpoint into memory, with f32 key-value caches. Errors if the model is no decoder, or a tensor is missing,
    /// has another shape, or holds a value that is not finite.
    pub fn load(checkpoint: &Checkpoint) -> Result<Self> {
        let config = checkpoint.architecture()?.decoder()?;
        let layers = (0..config.layers).map(|i| Layer::read(checkpoint, config, i)).collect::<Result<_>>()?;
        Self::with_layers(checkpoint, Layers::Resident(layers))
    }

    /// Loads embedding, head and final norm only, with f32 key-value caches. Each layer is read from the checkpoint whenever it runs and
    /// dropped afterwards, so that one layer is in memory at a time. Errors if the model is no decoder, or one of the three tensors is
    /// missing, has another shape, or holds a value that is not finite; the same faults in a layer are errors when it runs.
    pub fn load_streamed(checkpoint: Checkpoint) -> Result<Self> {
        // `with_layers` borrows the checkpoint, which is moved into the decoder afterwards.
        let mut decoder = Self::with_layers(&checkpoint, Layers::Resident(Vec::new()))?;
        decoder.layers = Layers::Streamed(Box::new(checkpoint));
        Ok(decoder)
    }

    fn with_layers(checkpoint: &Checkpoint, layers: Layers) -> Result<Self> {
        let config = checkpoint.architecture()?.decoder()?.clone();
        let shape = [config.vocab, config.hidden];
        let embed: Arc<dyn LinearOp> = checkpoint.matrix("model.embed_tokens.weight", shape)?.into();
        let separate = checkpoint.has("lm_head.weight");
        if !separate && !config.tied {
            return Err(Error::Missing {
                name: "lm_head.weight".into(),
                place: "a model whose configuration does not tie the output head to the embedding".into(),
            });
        }
        let head =
            if separate && !config.tied { checkpoint.matrix("lm_head.weight", shape)?.into() } else { embed.clone() };
        let norm = checkpoint.vector("model.norm.weight", config.hidden)?;
        let heads = config.attention_heads()?;
        Ok(Self { config, embed, head, norm, layers, heads, caches: Arc::new(DenseCaches::f32()) })
    }

    /// Returns the decoder's sizes and options.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Returns this decoder with key-value caches made by `caches`, for example quantized ones, in the states that [`Decoder::state`] makes
    /// from now on. Without this call they are f32 caches.
    pub fn with_caches(mut self, caches: Arc<dyn CacheSet>) -> Self {
        self.caches = caches;
        self
    }

    /// Returns the empty key-value caches of a new text. Errors if the decoder's cache set cannot make caches for the model's heads, or
    /// makes another number than one for each layer.
    pub fn state(&self) -> Result<State> {
        let caches = self.caches.make(&vec![self.heads.clone(); self.config.layers])?;
        if caches.len() != self.config.layers {
            return Err(Error::shape("caches of layers", self.config.layers, caches.len()));
        }
        Ok(State { caches, len: 0 })
    }

    /// Returns an empty f32 cache of one layer.
    pub(crate) fn cache(&self) -> Result<LayerCache> {
        DenseCaches::f32().layer(&self.heads)
    }

    /// Calls `f` with layer `index`, counted from 0, and returns the result of `f`. A decoder that [`Decoder::load_streamed`] made reads
    /// the layer from the checkpoint first and drops it afterwards. Errors if there is no such layer, it cannot be read, or `f` errors.
    pub fn with_layer<R>(&self, index: usize, f: impl FnOnce(&Layer) -> Result<R>) -> Result<R> {
        match &self.layers {
            Layers::Resident(layers) => {
                let layer = layers.get(index);
                f(layer.ok_or_else(|| Error::shape("layer", format!("below {}", layers.len()), index))?)
            }
            Layers::Streamed(checkpoint) => f(&Layer::read(&**checkpoint, &self.config, index)?),
        }
    }

    /// Appends the tokens `tokens` to the text in `state` and returns their final hidden states, after the last norm, `[tokens, hidden]`
    /// row-major. Their positions continue those of the text, from 0. If `tokens` is empty, returns an empty vector and leaves `state` as
    /// it is. A text that gets longer than the configuration's `max_positions` is no error. Errors if a token is outside of the vocabulary,
    /// the text would have more than 2^32 - 1 tokens, an input of a matrix is not finite, a layer cannot be read (in a decoder that
    /// [`Decoder::load_streamed`] made), or a cache refuses the tokens. After an error only some caches may hold the tokens: clear `state`
    /// before it is used again.
    pub fn forward(&self, tokens: &[u32], state: &mut State, exec: &Exec) -> Result<Vec<f32>> {
        self.forward_observed(tokens, state, exec, &mut |_, _, _| Ok(()))
    }

    /// Appends the tokens `tokens` to the text in `state` and returns their final hidden states `[tokens, hidden]`, exactly as
    /// [`Decoder::forward`] does, and calls `observe(layer, site, input)` before the matrices of each site read their input. A
    /// [site](SiteKind) is one of the four inputs of a layer's matrices, `layer` counts from 0, and `input` is `[tokens, features]`. Tokens
    /// are processed in blocks of up to 512, with one call for each block, layer and site. Errors under the conditions of
    /// [`Decoder::forward`], or if `observe` errors.
    pub fn forward_observed(
        &self,
        tokens: &[u32],
        state: &mut State,
        exec: &Exec,
        observe: &mut dyn FnMut(usize, SiteKind, &Input<'_>) -> Result<()>,
    ) -> Result<Vec<f32>> {
        par::region(exec.parallel(), || self.run(Precision::F32, tokens, state, exec, observe))
    }

    /// Appends the tokens `tokens` to the text in `state` and returns their final hidden states `[tokens, hidden]`, as
    /// [`Decoder::forward`] does, with the input of every matrix rounded to the nearest bf16: the four [sites](SiteKind) of each layer and
    /// the final hidden states, which the output head reads. Products, the residual stream, norms and attention stay in f32. The distance
    /// of its predictions from those of [`Decoder::forward`] is what bf16 activations alone change. Errors under the conditions of
    /// [`Decoder::forward`]; a value that exceeds the range of bf16 is not finite.
    pub fn forward_bf16(&self, tokens: &[u32], state: &mut State, exec: &Exec) -> Result<Vec<f32>> {
        par::region(exec.parallel(), || self.run(Precision::Bf16, tokens, state, exec, &mut |_, _, _| Ok(())))
    }

    fn run(
        &self,
        precision: Precision,
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
                    layer.forward_in(precision, &self.config, &mut stream, &positions, &mut **cache, exec, seen)
                })?;
            }
            state.len += block.len();
            let mut normed = rms_norm(&stream, &self.norm, self.config.eps, exec);
            precision.round(&mut normed);
            out.extend(normed);
        }
        Ok(out)
    }

    /// Appends the tokens `tokens` to the text in `state` and returns the logits of the token that follows the last of them, `[vocab]`.
    /// Errors if `tokens` is empty or a final hidden state is not finite, and under the conditions of [`Decoder::forward`]: among others, a
    /// token outside of the vocabulary.
    pub fn next_logits(&self, tokens: &[u32], state: &mut State, exec: &Exec) -> Result<Vec<f32>> {
        par::region(exec.parallel(), || {
            let hidden = self.forward(tokens, state, exec)?;
            let last = hidden.len().checked_sub(self.config.hidden);
            let last = last.ok_or_else(|| Error::shape("tokens", "at least one", 0))?;
            self.logits(&hidden[last..], exec)
        })
    }

    /// Returns the embedding vectors of the tokens `tokens`, `[tokens, hidden]` row-major. Errors if a token is outside of the vocabulary.
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

    /// Returns the logits `[tokens, vocab]`, row-major, of final hidden states `[tokens, hidden]` that [`Decoder::forward`] returned; only
    /// the output head is applied, as the last norm already was. Errors if the length of `hidden` is not a multiple of the hidden size, or
    /// a value of it is not finite.
    pub fn logits(&self, hidden: &[f32], exec: &Exec) -> Result<Vec<f32>> {
        let x = Input::new(hidden, [hidden.len() / self.config.hidden, self.config.hidden])?;
        apply(&*self.head, None, &x, exec)
    }

    /// Writes the logits of final hidden states `hidden`, `[tokens, hidden]` after the last norm, into `out`, `[tokens, vocab]` row-major.
    /// Errors if the length of `hidden` is not a multiple of the hidden size, `out` has another length, or a value of `hidden` is not
    /// finite.
    pub fn logits_into(&self, hidden: &[f32], out: &mut [f32], exec: &Exec) -> Result<()> {
        let shape = [hidden.len() / self.config.hidden, self.config.hidden];
        let x = Input::new(hidden, shape)?;
        self.head.apply(&x, MatViewMut::new(out, [shape[0], self.config.vocab])?, Write::Set, exec)
    }
}

//! The peak memory of compression, by term.

use std::collections::BTreeMap;

use tersor_core::{Context, ParamError, Result, Rewrite};
use tersor_formats::Model;
use tersor_models::{Architecture, Tokenizer, Upstream, batch_tokens};

use super::{Action, Entry, Plan};
use crate::units::megabytes;

type Terms = BTreeMap<&'static str, u64>;

impl Plan {
    /// Returns the estimated peak memory of [`compress`](crate::compress()) in bytes, by part; the peak is their sum. Compression has phases, such as
    /// gathering statistics and compressing matrices. The result has the parts of the phase that needs most memory, and `headers` and `program`,
    /// which every phase needs. `model` is the model of the plan.
    ///
    /// The parts of a phase are among these: `rows` (a block of rows and its compressed form), `gram` (sums of products of input features, and their
    /// factors), `hidden states` (the activations between layers, of all windows), `layer` (the weights of a layer in f32), `windows` (the
    /// activations of the windows at work), `sample` (inputs that are kept to try out changes), `threads` (buffers of each thread), `tokenizer` and
    /// `text`.
    pub fn memory(&self, model: &Model) -> Terms {
        let all = |_: &Entry| true;
        let mut phases = vec![Terms::from([("rows", self.rows(all))])];
        if self.needs_data() {
            phases.extend(self.text(model));
            phases.extend(self.calibration_phases().into_iter().flatten());
        } else {
            // Without calibration the tokenizer is only copied.
            let copies = if model.gguf().is_some() { 12 } else { 2 };
            let json = Tokenizer::json_of(model).map_or(0, |t| t.len() as u64 * copies);
            phases[0].insert("tokenizer", json);
        }
        self.heaviest(phases)
    }

    /// Returns the estimated peak memory in bytes of the measurement that a budget needs, by part, as [`memory`](Self::memory) does. The plan is that
    /// of the recipe that the measurement compresses by. The hidden states of `streams` networks of `tokens` tokens each are in memory, and
    /// `concurrent` of these networks pass a layer at the same time. Empty for a plan without an architecture.
    pub(crate) fn memory_of_measuring(&self, model: &Model, [streams, tokens, concurrent]: [usize; 3]) -> Terms {
        let Some(network) = &self.network else { return Terms::new() };
        let floats = |shape: [usize; 2]| shape[0] as u64 * shape[1] as u64 * 4;
        let (hidden, ctx) = (network.hidden() as u64, self.windows[1] as u64);
        // Includes the fragmentation of the heap between the hidden states.
        let held = 5 * (streams * tokens) as u64 * hidden;
        let mut phases = self.calibration_phases().unwrap_or_default();
        let stream = phases.first().and_then(|w| w.get("hidden states").copied()).unwrap_or(0);
        let in_layers = |e: &&Entry| network.layer_of(&e.name).is_some();
        let widest = self.entries.iter().filter(in_layers).filter_map(Entry::matrix).map(floats).max().unwrap_or(0);
        for terms in &mut phases {
            // The whole matrix, and the working copies of GPTQ.
            terms.entry("rows").and_modify(|rows| *rows = widest * 5);
            terms.insert("networks", held);
        }
        let layer = self.entries.iter().filter(|e| network.layer_of(&e.name) == Some(0)).filter_map(Entry::matrix);
        let at_work = concurrent as u64 * tokens as u64 + rayon::current_num_threads() as u64 * ctx * 12;
        phases.push(Terms::from([
            ("networks", held),
            ("windows", at_work * 4 * hidden),
            ("hidden states", stream),
            ("layer", layer.map(floats).sum()),
        ]));
        if let Architecture::Decoder(c) = network {
            // The head, and the logits of a block of tokens in the original and in another network.
            let head = floats([c.vocab, c.hidden]);
            phases.push(Terms::from([
                ("networks", held),
                ("head", head + head / 4),
                ("rows", 3 * 4 * 64 * c.vocab as u64),
            ]));
        }
        phases.extend(self.text(model));
        self.heaviest(phases)
    }

    /// Returns the terms of the phase with the largest sum, and the terms of all phases.
    fn heaviest(&self, phases: Vec<Terms>) -> Terms {
        let headers: u64 = self.entries.iter().map(|e| 200 + e.tensors.len() as u64 * 300).sum();
        let heaviest = phases.into_iter().max_by_key(|t| t.values().sum::<u64>()).unwrap_or_default();
        let mut terms = Terms::from([("headers", headers), ("program", 14 << 20)]);
        terms.extend(heaviest);
        terms
    }

    /// Sets [`spill`](Self::spill), which keeps hidden states on disk, if the [memory](Self::memory) of the plan is above [`Context::max_memory`]
    /// without it. Does nothing if `cx` has no limit. `model` is the model of the plan.
    ///
    /// # Errors
    ///
    /// An [`Error::Param`](tersor_core::Error::Param) of the parameter `max-memory`, with the bytes that are needed, if hidden states on disk are not
    /// enough.
    pub fn fit(&mut self, model: &Model, cx: &Context) -> Result<()> {
        let Some(max) = cx.max_memory else { return Ok(()) };
        let need = |plan: &Self| plan.memory(model).values().sum::<u64>();
        self.spill = false;
        self.spill = self.network.is_some() && self.needs_data() && self.statistics.is_none() && need(self) > max;
        let min = need(self);
        if min > max {
            let rule = format!("must be at least {min} bytes ({})", megabytes(min));
            return Err(ParamError::new("max-memory", max, rule).into());
        }
        Ok(())
    }

    /// Returns the memory of the largest block of rows: values, dequantized values, stored bytes, codes and their packed form.
    fn rows(&self, which: impl Fn(&Entry) -> bool) -> u64 {
        let block = |e: &Entry| match (&e.action, e.matrix()) {
            (Action::Compress(m), Some(shape)) => (Self::block_rows(shape, &**m).min(shape[0]) * shape[1]) as u64 * 16,
            _ => 0,
        };
        self.entries.iter().filter(|e| which(e)).map(block).max().unwrap_or(0)
    }

    /// Returns the memory while the calibration text is tokenized: the tokenizer's tables, the text, and its tokens.
    fn text(&self, model: &Model) -> Option<Terms> {
        let text = self.calibration.as_ref().map_or(2 << 20, |t| t.read().map_or(0, |t| t.len() as u64));
        let json = Tokenizer::json_of(model).map_or(0, |t| t.len() as u64);
        let pieces = text.min(1 << 16) * 160 + text * 6;
        self.statistics.is_none().then(|| Terms::from([("tokenizer", json * 20), ("text", pieces)]))
    }

    /// Returns the memory while statistics are gathered, while a site is compressed, and while principal directions are found.
    fn calibration_phases(&self) -> Option<Vec<Terms>> {
        let network = self.network.as_ref()?;
        let in_layers = |e: &Entry| network.layer_of(&e.name).is_some();
        // Memory per element of the Gram matrix, in units of 4 bytes; larger for matrices whose columns are split into parts.
        let split = |e: &Entry| {
            let rule = e.rule.and_then(|r| self.recipe.rules.get(r));
            if rule.is_some_and(|r| r.has_parts()) { 16 } else { 11 }
        };
        let fed = || self.entries.iter().filter(|e| e.needs().gram).filter_map(|e| Some((e, e.matrix()?)));
        let square = |[_, cols]: [usize; 2]| (cols as u64).pow(2) * 8;
        let gram = fed().map(|(_, m)| square(m)).max().unwrap_or(0);
        let factors = fed().map(|(e, m)| square(m) * split(e) / 2).max().unwrap_or(0);
        // Packing buffers of matrix products, and what the allocator retains for each thread.
        let threads = rayon::current_num_threads() as u64 * (5 << 20);
        // While gathering: the sums so far and those of a shard. While compressing: the sums, the damped copy, its reversal, the factor, two copies
        // in f32, and what the allocator retains.
        let mut gather = Terms::from([("gram", gram * 2), ("threads", threads)]);
        let mut compress = Terms::from([("gram", factors), ("rows", self.rows(in_layers)), ("threads", threads)]);
        if self.statistics.is_some() {
            return Some(vec![gather, compress]);
        }
        let [windows, ctx] = self.windows;
        let (hidden, attention) = (network.hidden() as u64, network.attention_width() as u64);
        let inner = match network {
            Architecture::Decoder(c) => c.intermediate,
            Architecture::Encoder(c) => c.intermediate,
        } as u64;
        let layer = self.entries.iter().filter(|e| network.layer_of(&e.name) == Some(0)).filter_map(Entry::matrix);
        let layer: Vec<u64> = layer.map(|[rows, cols]| (rows * cols) as u64).collect();
        let mut directions = Terms::from([("threads", threads)]);
        for terms in [&mut gather, &mut compress, &mut directions] {
            if !self.spill {
                // The hidden states, and the attention output until it is added to them.
                terms.insert("hidden states", (windows * ctx) as u64 * 4 * (hidden + attention));
            }
            // A layer in f32, and the values of one compressed matrix.
            terms.insert("layer", 4 * (layer.iter().sum::<u64>() + layer.iter().max().unwrap_or(&0)));
        }
        // The inputs of a batch of windows, their concatenation, and the two factors of the gated product.
        let batch = 4 * batch_tokens(ctx) as u64 * (3 * inner.max(attention) + 2 * hidden);
        gather.insert("windows", batch);
        if !self.smoothings.is_empty() {
            // The sample's inputs at all sites, and module outputs of the original and a trial with their intermediate results.
            let want = self
                .sites()
                .iter()
                .filter_map(|s| Some(self.smoothings.get(&s.name)?.needs(s).sample))
                .max()
                .unwrap_or(0);
            let tokens = if want > 0 { want.min(windows * ctx).max(ctx) as u64 } else { 0 };
            let inputs = 4 * (2 * hidden + attention + inner);
            gather.insert("sample", tokens * (inputs + 4 * (2 * hidden + 3 * inner.max(3 * attention))));
            *gather.entry("windows").or_default() += 2 * batch_tokens(ctx) as u64 * inputs;
        }
        if self.upstream() == Upstream::CompressedLayers {
            // The statistics of all sites of a layer are in memory together, and their inputs for a batch of windows.
            let mut widths: BTreeMap<usize, u64> = BTreeMap::new();
            for site in self.sites().iter().filter(|s| s.layer.is_some()) {
                let needs = |e: &&Entry| e.needs().gram && site.consumers.iter().any(|c| c.weight == e.name);
                let largest = self.entries.iter().filter(needs).filter_map(Entry::matrix).map(square).max();
                *widths.entry(site.layer.unwrap_or(0)).or_default() += largest.unwrap_or(0);
            }
            let all = widths.into_values().max().unwrap_or(0);
            gather.insert("gram", 2 * all);
            *compress.entry("gram").or_default() += all;
            *gather.entry("windows").or_default() +=
                2 * batch_tokens(ctx) as u64 * 4 * (2 * hidden + attention + inner);
        }
        if self.spill {
            // The allocator retains the memory of the windows while a site is compressed.
            compress.insert("windows", batch);
        }
        let mut phases = vec![gather, compress];
        if self.rotation_needs_data() {
            // Sums of two sites and of a shard, sums over all layers, and the working memory of the eigensolver.
            directions.insert("gram", hidden.pow(2) * 8 * 9);
            // The sample's inputs of the first site, its keys and values, and these again in f64.
            let sample = |r: &dyn Rewrite| self.sites().iter().map(|s| r.needs(s).sample).max();
            let sample = self.rotation.as_deref().and_then(sample).unwrap_or(0);
            let tokens = sample.min(windows * ctx).max(ctx) as u64;
            directions.insert("sample", tokens * 4 * (hidden + 6 * attention));
            let inputs = 4 * (2 * hidden + attention + inner);
            directions.insert("windows", batch + 2 * batch_tokens(ctx) as u64 * inputs);
            phases.push(directions);
        }
        Some(phases)
    }
}

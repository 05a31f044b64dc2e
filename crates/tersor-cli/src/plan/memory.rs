//! How much memory compressing takes, by term.

use std::collections::BTreeMap;

use tersor::core::{ParamError, Result};
use tersor::formats::Model;
use tersor::llm::{Architecture, Tokenizer, batch_tokens};

use super::{Action, Entry, Plan, SAMPLE_TOKENS};
use crate::megabytes;

type Terms = BTreeMap<&'static str, u64>;

impl Plan {
    /// Peak memory of `compress`, by term: of its heaviest phase, and of what is there in all of them.
    pub fn memory(&self, model: &Model) -> Terms {
        let all = |_: &Entry| true;
        let mut phases = vec![Terms::from([("rows", self.rows(all))])];
        if self.needs_data() {
            phases.extend(self.text(model));
            phases.extend(self.walk().into_iter().flatten());
        } else {
            // The tokenizer is only carried over.
            let copies = if model.gguf().is_some() { 12 } else { 2 };
            let json = Tokenizer::json_of(model).map_or(0, |t| t.len() as u64 * copies);
            phases[0].insert("tokenizer", json);
        }
        self.heaviest(phases)
    }

    /// The same of measuring for a budget, which this is the plan of: `streams` networks of `tokens` tokens each are held, and `abreast` of them
    /// go through a layer at once.
    pub fn memory_of_measuring(&self, model: &Model, [streams, tokens, abreast]: [usize; 3]) -> Terms {
        let Some(network) = &self.network else { return Terms::new() };
        let floats = |shape: [usize; 2]| shape[0] as u64 * shape[1] as u64 * 4;
        let (hidden, ctx) = (network.hidden() as u64, self.windows[1] as u64);
        // And the holes between them, where larger buffers came and went.
        let held = 5 * (streams * tokens) as u64 * hidden;
        let mut phases = self.walk().unwrap_or_default();
        let stream = phases.first().and_then(|w| w.get("hidden states").copied()).unwrap_or(0);
        let in_layers = |e: &&Entry| network.layer_of(&e.name).is_some();
        let widest = self.entries.iter().filter(in_layers).filter_map(Entry::matrix).map(floats).max().unwrap_or(0);
        for terms in &mut phases {
            // Whole, and what GPTQ makes of it.
            terms.entry("rows").and_modify(|rows| *rows = widest * 5);
            terms.insert("networks", held);
        }
        let layer = self.entries.iter().filter(|e| network.layer_of(&e.name) == Some(0)).filter_map(Entry::matrix);
        let at_work = abreast as u64 * tokens as u64 + rayon::current_num_threads() as u64 * ctx * 12;
        phases.push(Terms::from([
            ("networks", held),
            ("windows", at_work * 4 * hidden),
            ("hidden states", stream),
            ("layer", layer.map(floats).sum()),
        ]));
        if let Architecture::Decoder(c) = network {
            // The head, and the predictions of a block of the original and of another network.
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

    /// Of these phases, and what is there in all.
    fn heaviest(&self, phases: Vec<Terms>) -> Terms {
        let headers: u64 = self.entries.iter().map(|e| 200 + e.tensors.len() as u64 * 300).sum();
        let heaviest = phases.into_iter().max_by_key(|t| t.values().sum::<u64>()).unwrap_or_default();
        let mut terms = Terms::from([("headers", headers), ("program", 14 << 20)]);
        terms.extend(heaviest);
        terms
    }

    /// Puts hidden states on disk where memory would not do. Error, with the figure, when that is not enough.
    pub fn fit(&mut self, model: &Model, max: Option<u64>) -> Result<()> {
        let Some(max) = max else { return Ok(()) };
        let need = |plan: &Self| plan.memory(model).values().sum::<u64>();
        self.spill = self.network.is_some() && self.needs_data() && self.statistics.is_none() && need(self) > max;
        let min = need(self);
        if min > max {
            let rule = format!("must be at least {min} bytes ({})", megabytes(min));
            return Err(ParamError::new("max-memory", max, rule).into());
        }
        Ok(())
    }

    /// A block of rows of the widest matrix at work: values, values read back, stored bytes, codes and their packed form.
    fn rows(&self, which: impl Fn(&Entry) -> bool) -> u64 {
        let block = |e: &Entry| match (&e.action, e.matrix()) {
            (Action::Compress(m), Some(shape)) => (Self::block_rows(shape, &**m).min(shape[0]) * shape[1]) as u64 * 16,
            _ => 0,
        };
        self.entries.iter().filter(|e| which(e)).map(block).max().unwrap_or(0)
    }

    /// While the calibration text is tokenized, in pieces: the tokenizer's tables, the text, and its tokens.
    fn text(&self, model: &Model) -> Option<Terms> {
        let text = self.calibration.as_ref().map_or(2 << 20, |t| t.content.len() as u64);
        let json = Tokenizer::json_of(model).map_or(0, |t| t.len() as u64);
        let pieces = text.min(1 << 16) * 160 + text * 6;
        self.statistics.is_none().then(|| Terms::from([("tokenizer", json * 20), ("text", pieces)]))
    }

    /// While statistics are gathered, and while a site is compressed with them.
    fn walk(&self) -> Option<Vec<Terms>> {
        let network = self.network.as_ref()?;
        let in_layers = |e: &Entry| network.layer_of(&e.name).is_some();
        // Of a matrix whose columns are compressed in runs, those of the run, what it leaves to the others, and its like for the next.
        let split = |e: &Entry| {
            let rule = e.rule.and_then(|r| self.recipe.rules.get(r));
            if rule.is_some_and(|r| !r.parts.is_empty()) { 16 } else { 11 }
        };
        let fed = || self.entries.iter().filter(|e| e.needs().gram).filter_map(|e| Some((e, e.matrix()?)));
        let square = |[_, cols]: [usize; 2]| (cols as u64).pow(2) * 8;
        let gram = fed().map(|(_, m)| square(m)).max().unwrap_or(0);
        let factors = fed().map(|(e, m)| square(m) * split(e) / 2).max().unwrap_or(0);
        // What each thread packs for a product, and what its allocator keeps.
        let threads = rayon::current_num_threads() as u64 * (5 << 20);
        // The sums so far and those of a shard; then the sums, the damped copy, its reversal and the factor, and two that are kept in f32;
        // then what the allocator keeps of those before.
        let mut gather = Terms::from([("gram", gram * 2), ("threads", threads)]);
        let mut compress = Terms::from([("gram", factors), ("rows", self.rows(in_layers)), ("threads", threads)]);
        if self.statistics.is_some() {
            return Some(vec![gather, compress]);
        }
        let [windows, ctx] = self.windows;
        let (hidden, attention) = (network.hidden() as u64, network.attention() as u64);
        let inner = match network {
            Architecture::Decoder(c) => c.intermediate,
            Architecture::Encoder(c) => c.intermediate,
        } as u64;
        let layer = self.entries.iter().filter(|e| network.layer_of(&e.name) == Some(0)).filter_map(Entry::matrix);
        let layer: Vec<u64> = layer.map(|[rows, cols]| (rows * cols) as u64).collect();
        let mut directions = Terms::from([("threads", threads)]);
        for terms in [&mut gather, &mut compress, &mut directions] {
            if !self.spill {
                // The stream, and beside it the attention output until it is added.
                terms.insert("hidden states", (windows * ctx) as u64 * 4 * (hidden + attention));
            }
            // A layer in f32, and beside it the values of a compressed matrix.
            terms.insert("layer", 4 * (layer.iter().sum::<u64>() + layer.iter().max().unwrap_or(&0)));
        }
        // The inputs of a batch of windows and their joined copy, and the two halves of the gated product.
        let batch = 4 * batch_tokens(ctx) as u64 * (3 * inner.max(attention) + 2 * hidden);
        gather.insert("windows", batch);
        if !self.smoothings.is_empty() {
            // Inputs of the sample at all sites; what a module makes of them, as it was and as it would be, and the parts of that.
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
        if self.spill {
            // Nothing large comes between them, so the allocator keeps what they had.
            compress.insert("windows", batch);
        }
        let mut phases = vec![gather, compress];
        if self.rotation_needs_data() {
            // Sums of two sites and of a shard of them, those over all layers, and what finding their eigenvectors takes.
            directions.insert("gram", hidden.pow(2) * 8 * 9);
            // The first site's inputs, keys and values of the sample, and these again as wide floats.
            let tokens = SAMPLE_TOKENS.min(windows * ctx).max(ctx) as u64;
            directions.insert("sample", tokens * 4 * (hidden + 6 * attention));
            let inputs = 4 * (2 * hidden + attention + inner);
            directions.insert("windows", batch + 2 * batch_tokens(ctx) as u64 * inputs);
            phases.push(directions);
        }
        Some(phases)
    }
}

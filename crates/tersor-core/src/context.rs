//! What compressing takes from outside: seed, threads, progress, cancellation, a cap on memory.

use crate::{Error, Exec, Isa, Result};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Hears how far long work has come. Every method does nothing unless overridden.
pub trait Progress: Send + Sync {
    /// A stage of `total` steps begins.
    fn begin(&self, stage: &str, total: u64) {
        let _ = (stage, total);
    }
    /// So many more steps of the stage are done; `item` is what was worked on.
    fn advance(&self, steps: u64, item: &str) {
        let _ = (steps, item);
    }
    /// The stage is over.
    fn end(&self) {}
    /// Something that the user should know, and that does not stop the work.
    fn warn(&self, message: &str) {
        let _ = message;
    }
}

/// Hears nothing.
pub struct Silent;
impl Progress for Silent {}

/// Asks running work to stop. Clones share one flag.
#[derive(Clone, Default, Debug)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Not cancelled.
    pub fn new() -> Self {
        Self::default()
    }
    /// Asks to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
    /// [`Error::Cancelled`] once [`Cancel::cancel`] was called.
    pub fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// Everything ambient, passed in.
#[derive(Clone)]
pub struct Context {
    /// Seed of every random stream.
    pub seed: u64,
    /// Listens to progress and warnings.
    pub progress: Arc<dyn Progress>,
    /// Stops the work.
    pub cancel: Cancel,
    /// Bytes of memory that the work may use, where it has a choice.
    pub max_memory: Option<u64>,
    /// Instruction set, pool and scratch memory.
    pub exec: Exec,
}

impl Default for Context {
    fn default() -> Self {
        Self { seed: 0, progress: Arc::new(Silent), cancel: Cancel::new(), max_memory: None, exec: Exec::new() }
    }
}

impl Context {
    /// Seed 0, silent, not cancellable, no cap, the current thread pool.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with this seed.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The same with this listener.
    pub fn with_progress(mut self, progress: Arc<dyn Progress>) -> Self {
        self.progress = progress;
        self
    }

    /// Runs in this pool rather than the one that the caller is in.
    #[cfg(feature = "rayon")]
    pub fn with_pool(self, pool: Arc<rayon::ThreadPool>) -> Self {
        Self { exec: self.exec.with_pool(pool), ..self }
    }

    /// The same with this instruction set. Factorizations and products of the libraries for them choose their own; see
    /// [`Isa::fingerprint`].
    pub fn with_isa(self, isa: Isa) -> Self {
        Self { exec: self.exec.with_isa(isa), ..self }
    }

    /// The instruction set of the loops.
    pub fn isa(&self) -> Isa {
        self.exec.isa()
    }

    /// Runs `work` in the pool of this context.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.exec.run(work)
    }

    /// Returns the random stream of a tensor, or of anything else that has a name. It depends on the seed and the name alone, not on the
    /// order of the work.
    pub fn stream(&self, name: &str) -> ChaCha8Rng {
        stream(self.seed, 0, name)
    }
}

/// Returns a random stream that depends on a seed, a training step (0 outside of training) and a name alone.
pub(crate) fn stream(seed: u64, step: u64, name: &str) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    key[..16].copy_from_slice(&fingerprint(name.as_bytes()).to_le_bytes());
    key[16..24].copy_from_slice(&seed.to_le_bytes());
    key[24..].copy_from_slice(&step.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// 128-bit FNV-1a: tells contents apart inside one process; no protection against an adversary.
pub fn fingerprint(bytes: &[u8]) -> u128 {
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let start = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    bytes.iter().fold(start, |h, &b| (h ^ u128::from(b)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::RngCore;

    #[test]
    fn streams_depend_on_seed_and_name_alone() {
        let cx = Context::new();
        let first = |cx: &Context, name: &str| cx.stream(name).next_u64();
        assert_eq!(first(&cx, "a"), first(&cx.clone(), "a"));
        assert_ne!(first(&cx, "a"), first(&cx, "b"));
        assert_ne!(first(&cx, "a"), first(&Context::new().with_seed(1), "a"));
        assert_eq!(fingerprint(b""), 0x6c62272e07bb014262b821756295c58d);
        assert_eq!(fingerprint(b"a"), 0xd228cb696f1a8caf78912b704e4a8964, "the published test vector");
    }

    #[test]
    fn a_cancelled_flag_is_seen_by_clones() {
        let cx = Context::new();
        assert!(cx.clone().cancel.check().is_ok());
        cx.cancel.cancel();
        assert!(matches!(cx.clone().cancel.check(), Err(Error::Cancelled)));
    }
}

//! [`Context`]: seed, threads, progress, cancellation and memory limit of compressing.

use crate::{Error, Exec, Isa, Result};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A listener to the progress and the warnings of long work. Every method does nothing unless overridden.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use tersor_core::{Context, Progress};
///
/// #[derive(Default)]
/// struct Log(Mutex<Vec<String>>);
///
/// impl Progress for Log {
///     fn warn(&self, message: &str) {
///         self.0.lock().unwrap().push(message.to_string());
///     }
/// }
///
/// let log = Arc::new(Log::default());
/// let cx = Context::new().with_progress(log.clone());
/// cx.progress.warn("damping was raised");
/// assert_eq!(*log.0.lock().unwrap(), ["damping was raised"]);
/// ```
pub trait Progress: Send + Sync {
    /// Called when a stage of `total` steps begins.
    fn begin(&self, stage: &str, total: u64) {
        let _ = (stage, total);
    }
    /// Called when `steps` more steps of the stage are done; `item` names what was worked on.
    fn advance(&self, steps: u64, item: &str) {
        let _ = (steps, item);
    }
    /// Called when the stage ends.
    fn end(&self) {}
    /// Called with a message that the user should see and that does not stop the work.
    fn warn(&self, message: &str) {
        let _ = message;
    }
}

/// A [`Progress`] that ignores everything.
pub struct Silent;
impl Progress for Silent {}

/// A flag that stops running work at its next check. Clones share the flag.
///
/// ```
/// use tersor_core::{Cancel, Error};
/// let cancel = Cancel::new();
/// assert!(cancel.check().is_ok());
/// cancel.clone().cancel();
/// assert!(matches!(cancel.check(), Err(Error::Cancelled)));
/// ```
#[derive(Clone, Default, Debug)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Returns a flag that is not set.
    pub fn new() -> Self {
        Self::default()
    }
    /// Sets the flag: work that checks it stops with [`Error::Cancelled`].
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
    /// Errors with [`Error::Cancelled`] if [`Cancel::cancel`] was called.
    pub fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// The environment of compressing: seed, progress listener, cancellation, memory limit, threads and instruction set. Results depend on the
/// seed and the instruction set, not on the number of threads.
///
/// ```
/// use rand_core::RngCore;
/// use tersor_core::Context;
/// let cx = Context::new().with_seed(7);
/// // A random stream depends on the seed and a name alone.
/// let draw = |name: &str| cx.stream(name).next_u64();
/// assert_eq!(draw("layers.0.weight"), draw("layers.0.weight"));
/// assert_ne!(draw("layers.0.weight"), draw("layers.1.weight"));
/// ```
#[derive(Clone)]
pub struct Context {
    /// The seed of every random stream of the context.
    pub seed: u64,
    /// The listener to progress and warnings of the context's work.
    pub progress: Arc<dyn Progress>,
    /// The flag by which the context's work is cancelled.
    pub cancel: Cancel,
    /// Bytes of memory that work may use, as far as it has a choice; None for no limit.
    pub max_memory: Option<u64>,
    /// Instruction set, thread pool and scratch memory of the context's work.
    pub exec: Exec,
}

impl Default for Context {
    fn default() -> Self {
        Self { seed: 0, progress: Arc::new(Silent), cancel: Cancel::new(), max_memory: None, exec: Exec::new() }
    }
}

impl Context {
    /// Returns a context with seed 0, no listener, an unset cancel flag, no memory limit, and the thread pool of the caller.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns this context with another seed.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Returns this context with another listener.
    pub fn with_progress(mut self, progress: Arc<dyn Progress>) -> Self {
        self.progress = progress;
        self
    }

    /// Returns this context with a pool to run in, instead of the pool of the caller.
    #[cfg(feature = "rayon")]
    pub fn with_pool(self, pool: Arc<rayon::ThreadPool>) -> Self {
        Self { exec: self.exec.with_pool(pool), ..self }
    }

    /// Returns this context with another instruction set for the loops of Tersor. The libraries for factorizations and products of matrices
    /// choose their own; see [`Isa::fingerprint`].
    pub fn with_isa(self, isa: Isa) -> Self {
        Self { exec: self.exec.with_isa(isa), ..self }
    }

    /// Returns the instruction set of the loops.
    pub fn isa(&self) -> Isa {
        self.exec.isa()
    }

    /// Runs `work` in the pool of this context and returns the result.
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

/// Returns the 128-bit FNV-1a hash of `bytes`, which identifies contents inside of one process; it gives no protection against an
/// adversary.
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

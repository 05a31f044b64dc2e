//! [`Context`]: seed, threads, progress, cancellation and memory limit of compressing.

use crate::{Error, Exec, Isa, Result};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A listener to the progress and the warnings of long work, which applications implement, for example as a progress bar or a log. Work
/// consists of stages, one after the other: [`begin`](Self::begin) announces a stage and its number of steps, [`advance`](Self::advance)
/// reports steps that are done, [`end`](Self::end) closes the stage. Every method does nothing unless overridden, may be called from any
/// thread, and cannot stop the work.
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
    /// Called when a stage begins, with its name, such as `compress`, and its number of steps.
    fn begin(&self, stage: &str, total: u64) {
        let _ = (stage, total);
    }
    /// Called when `steps` more steps of the current stage are done. `item` names what was worked on, such as a tensor or a layer; it may
    /// be empty.
    fn advance(&self, steps: u64, item: &str) {
        let _ = (steps, item);
    }
    /// Called when the current stage is complete, but not if it ends with an error.
    fn end(&self) {}
    /// Called with a message that the user should see and that does not stop the work.
    fn warn(&self, message: &str) {
        let _ = message;
    }
}

/// A [`Progress`] listener that ignores all progress and all warnings.
pub struct Silent;
impl Progress for Silent {}

/// A flag that asks running work to stop. The work calls [`Cancel::check`] between its steps and ends with [`Error::Cancelled`] once the
/// flag is set. Clones share the flag, so that another thread can set it. A set flag stays set.
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
    /// Sets the flag, for all clones. Work that shares it ends with [`Error::Cancelled`] when it next calls [`Cancel::check`]. This call
    /// does not wait for that.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
    /// Errors with [`Error::Cancelled`] if [`Cancel::cancel`] was called on this flag or a clone of it. Returns Ok otherwise.
    pub fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// The environment in which matrices are compressed: the random seed, the listener to progress, the flag that cancels the work, a memory
/// limit, the thread pool and the instruction set. Results depend on the seed and the instruction set, not on the number of threads.
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
    /// The seed of all random streams of the context ([`Context::stream`]); 0 by default. Any value is valid.
    pub seed: u64,
    /// The listener that gets the progress and the warnings of the context's work; by default [`Silent`], which ignores them.
    pub progress: Arc<dyn Progress>,
    /// The flag that stops the context's work; not set by default. After [`Cancel::cancel`], the work ends with [`Error::Cancelled`] when
    /// it next checks the flag.
    pub cancel: Cancel,
    /// A memory limit in bytes, for work that can choose how much memory it uses; None (the default) for no limit. The plan of a whole model
    /// (the crate `tersor-pipeline`) keeps hidden states on disk to stay within it, and is refused if that is not enough. Methods, which
    /// compress one matrix, do not read it.
    pub max_memory: Option<u64>,
    /// The instruction set, the thread pool and the scratch memory (reused buffers of f32) with which the context's work runs;
    /// [`Exec::new`] by default.
    pub exec: Exec,
}

impl Default for Context {
    fn default() -> Self {
        Self { seed: 0, progress: Arc::new(Silent), cancel: Cancel::new(), max_memory: None, exec: Exec::new() }
    }
}

impl Context {
    /// Returns a context with seed 0, a listener that ignores everything, a cancel flag that is not set, no memory limit, and the
    /// processor's best instruction set. Work runs in the rayon pool of the calling thread (without the feature `rayon`, on the calling
    /// thread alone).
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns this context with the seed `seed` for its random streams.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Returns this context with the listener `progress`, which replaces the one that it had.
    pub fn with_progress(mut self, progress: Arc<dyn Progress>) -> Self {
        self.progress = progress;
        self
    }

    /// Returns this context with the rayon pool `pool`, in which the context's work then runs; a pool that was set before is replaced.
    /// Without this call, work runs in the pool of the calling thread. If the context's `exec` uses the calling thread alone
    /// ([`Exec::serial`]), it continues to do so, and `pool` is not used.
    #[cfg(feature = "rayon")]
    pub fn with_pool(self, pool: Arc<rayon::ThreadPool>) -> Self {
        Self { exec: self.exec.with_pool(pool), ..self }
    }

    /// Returns this context with the instruction set `isa` for the loops of Tersor's own kernels. Every [`Isa`] value is one that this
    /// processor has. The libraries for factorizations and float matrix products choose their own instruction set; see
    /// [`Isa::fingerprint`].
    pub fn with_isa(self, isa: Isa) -> Self {
        Self { exec: self.exec.with_isa(isa), ..self }
    }

    /// Returns the instruction set that the loops of Tersor's own kernels use.
    pub fn isa(&self) -> Isa {
        self.exec.isa()
    }

    /// Runs `work`, waits for it, and returns its result. The work runs in the rayon pool of this context, or in the pool of the calling
    /// thread if the context has none. It runs on the calling thread alone if [`Exec::parallel`] of the context's `exec` is false, as it is
    /// without the feature `rayon`. A panic of `work` is passed on to the caller.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.exec.run(work)
    }

    /// Returns a new random generator (ChaCha8) for the tensor or other item with the name `name`. Its numbers depend on the seed of the
    /// context and the name alone: every call with the same name returns the same sequence from its start, in any order of the work.
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

/// Returns the 128-bit FNV-1a hash of `bytes`, for keys that identify contents inside of one process. It is not cryptographic: somebody who
/// wants to can find different bytes with the same hash.
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

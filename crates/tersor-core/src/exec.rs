//! [`Exec`]: how operators run.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};

use tersor_kernels::Isa;

/// How operators run: with which instruction set, on which threads, and with which scratch memory (buffers of f32 that are reused). It is
/// passed by reference, and threads may share it. Clones share the scratch memory.
///
/// ```
/// use tersor_core::{Exec, Isa};
/// let exec = Exec::serial().with_isa(Isa::SCALAR);
/// assert!(!exec.parallel());
/// let sum: i32 = exec.run(|| (1..=4).sum());
/// assert_eq!(sum, 10);
/// let scratch = exec.scratch(8);
/// assert_eq!(scratch.len(), 8);
/// ```
#[derive(Clone)]
pub struct Exec {
    isa: Isa,
    parallel: bool,
    #[cfg(feature = "rayon")]
    pool: Option<Arc<rayon::ThreadPool>>,
    scratch: Arc<Mutex<Vec<Vec<f32>>>>,
}

impl Default for Exec {
    fn default() -> Self {
        Self {
            isa: Isa::detect(),
            parallel: cfg!(feature = "rayon"),
            #[cfg(feature = "rayon")]
            pool: None,
            scratch: Arc::default(),
        }
    }
}

impl std::fmt::Debug for Exec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exec").field("isa", &self.isa).field("parallel", &self.parallel).finish_non_exhaustive()
    }
}

impl Exec {
    /// Returns an `Exec` with the processor's best instruction set that runs work in the rayon pool of the calling thread (on the calling
    /// thread alone without the feature `rayon`).
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns an `Exec` with the processor's best instruction set that runs all work on the calling thread alone.
    pub fn serial() -> Self {
        Self { parallel: false, ..Self::default() }
    }

    /// Returns this `Exec` with the instruction set `isa`; [`Isa::SCALAR`] is plain Rust and runs on every processor. An instruction set
    /// that the processor lacks cannot be passed, because [`Isa::detect`] and [`Isa::available`] do not return it. Loading and saving take
    /// no `Exec`: they always use the processor's best instruction set, and give the same bits as with any other.
    pub fn with_isa(self, isa: Isa) -> Self {
        Self { isa, ..self }
    }

    /// Returns a clone that runs all work on the calling thread alone, for callers that run many operators at once on threads of their own.
    pub fn on_one_thread(&self) -> Self {
        Self { parallel: false, ..self.clone() }
    }

    /// Returns this `Exec` with the rayon pool `pool`, in which its work then runs; without this call, work runs in the pool of the calling
    /// thread. An `Exec` that uses the calling thread alone continues to do so.
    #[cfg(feature = "rayon")]
    pub fn with_pool(self, pool: Arc<rayon::ThreadPool>) -> Self {
        Self { pool: Some(pool), ..self }
    }

    /// Returns the instruction set that operators use with this `Exec`.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Returns whether work may use several threads: false for [`Exec::serial`] and [`Exec::on_one_thread`], and without the feature
    /// `rayon`; true otherwise.
    pub fn parallel(&self) -> bool {
        self.parallel
    }

    /// Runs `work`, waits for it, and returns its result. It runs in the rayon pool of this `Exec`, or in the pool of the calling thread if
    /// the `Exec` has none; if [`Exec::parallel`] is false, on the calling thread alone. A panic of `work` is passed on.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        if !self.parallel {
            return tersor_kernels::par::serial(work);
        }
        #[cfg(feature = "rayon")]
        if let Some(pool) = self.pool.as_ref().filter(|_| self.parallel) {
            return pool.install(work);
        }
        work()
    }

    /// Returns a buffer of `len` f32 values, all zero. Dropping it gives its memory back to this `Exec`, where later calls take it from.
    pub fn scratch(&self, len: usize) -> Scratch<'_> {
        let mut values = self.scratch.lock().unwrap_or_else(|e| e.into_inner()).pop().unwrap_or_default();
        values.clear();
        values.resize(len, 0.0);
        Scratch { exec: self, values }
    }
}

/// A buffer from [`Exec::scratch`], which dereferences to a slice of f32. Dropping it gives its memory back to the [`Exec`] for later
/// calls.
pub struct Scratch<'e> {
    exec: &'e Exec,
    values: Vec<f32>,
}

impl Deref for Scratch<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.values
    }
}

impl DerefMut for Scratch<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.values);
        self.exec.scratch.lock().unwrap_or_else(|e| e.into_inner()).push(values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_is_zero_and_comes_back() {
        let exec = Exec::serial();
        {
            let mut a = exec.scratch(4);
            a.fill(7.0);
            let b = exec.clone().scratch(2).to_vec();
            assert_eq!(b, [0.0; 2]);
        }
        assert_eq!(*exec.scratch(6), [0.0; 6]);
        assert_eq!(exec.scratch.lock().unwrap().len(), 2);
    }

    #[cfg(feature = "rayon")]
    #[test]
    fn work_runs_in_the_pool_that_was_given() {
        let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap());
        let exec = Exec::new().with_pool(pool);
        assert_eq!(exec.run(rayon::current_num_threads), 3);
        fn shared<T: Send + Sync>(_: &T) {}
        shared(&exec);
    }
}

//! [`Exec`]: how operators run.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};

use tersor_kernels::Isa;

/// How operators run: the instruction set, the thread pool, and scratch memory. It is passed by reference and shared by threads; clones
/// share the scratch memory.
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
    /// Returns an `Exec` with the processor's best instruction set that runs in the rayon pool of the caller.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns an `Exec` with the processor's best instruction set that uses the calling thread only.
    pub fn serial() -> Self {
        Self { parallel: false, ..Self::default() }
    }

    /// Returns this `Exec` with another instruction set; [`Isa::SCALAR`] is plain Rust.
    pub fn with_isa(self, isa: Isa) -> Self {
        Self { isa, ..self }
    }

    /// Returns a clone that uses the calling thread only, for callers that run many operators at once.
    pub fn on_one_thread(&self) -> Self {
        Self { parallel: false, ..self.clone() }
    }

    /// Returns this `Exec` with a pool to run in, instead of the pool of the caller.
    #[cfg(feature = "rayon")]
    pub fn with_pool(self, pool: Arc<rayon::ThreadPool>) -> Self {
        Self { pool: Some(pool), ..self }
    }

    /// Returns the instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Returns whether operators may use several threads.
    pub fn parallel(&self) -> bool {
        self.parallel
    }

    /// Runs `work` in the pool of this `Exec`, or in the caller's pool if it has none, and returns the result. Without parallelism `work`
    /// runs on the calling thread alone.
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

    /// Returns `len` f32 values, all zero, that live until the result is dropped. Their memory is reused by later calls.
    pub fn scratch(&self, len: usize) -> Scratch<'_> {
        let mut values = self.scratch.lock().unwrap_or_else(|e| e.into_inner()).pop().unwrap_or_default();
        values.clear();
        values.resize(len, 0.0);
        Scratch { exec: self, values }
    }
}

/// Memory from [`Exec::scratch`], a slice of f32. Dropping it returns the memory to the [`Exec`] for reuse.
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

//! Threads that survive a fork: a child of this process has none of its parent's, and would wait for them forever.

use pyo3::Python;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::process::id;
use std::sync::{Arc, Mutex, PoisonError};

/// Threads of one process; others make their own.
pub struct Threads {
    /// How many; one for each core, or as many as `RAYON_NUM_THREADS` says, if `None`.
    count: Option<usize>,
    pool: Mutex<Option<(u32, Arc<ThreadPool>)>>,
}

/// Those that all share who ask for none of their own.
pub static SHARED: Threads = Threads::new(None);

/// Computes something on the shared threads, without Python's lock.
pub fn detached<T: Send>(py: Python<'_>, run: impl FnOnce() -> T + Send) -> T {
    py.detach(|| SHARED.run(run))
}

impl Threads {
    /// So many threads, once they are needed.
    pub const fn new(count: Option<usize>) -> Self {
        Self { count, pool: Mutex::new(None) }
    }

    /// Runs on these threads.
    ///
    /// # Panics
    /// If the system gives no threads.
    pub fn run<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        self.pool().install(run)
    }

    fn pool(&self) -> Arc<ThreadPool> {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((process, pool)) = &*pool
            && *process == id()
        {
            return pool.clone();
        }
        let new = ThreadPoolBuilder::new().num_threads(self.count.unwrap_or(0)).build().expect("threads");
        let new = Arc::new(new);
        // To drop the parent's would be to wait for it.
        std::mem::forget(pool.replace((id(), new.clone())));
        new
    }
}

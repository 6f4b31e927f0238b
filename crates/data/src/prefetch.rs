//! Work done ahead by threads and handed out in order.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use anyhow::{Result, anyhow};

/// What makes item `i`. The flag tells that it is no longer wanted.
type Make<T> = Box<dyn Fn(usize, &AtomicBool) -> Result<T> + Send + Sync>;

/// Items in order, whatever thread made them. Ends after the first error; dropping it ends the threads.
pub struct Prefetch<T> {
    shared: Arc<Shared<T>>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared<T> {
    make: Make<T>,
    count: usize,
    /// Items that may be in the making or waiting.
    ahead: usize,
    stop: AtomicBool,
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    /// The next item to make.
    next: usize,
    /// The next item to hand out.
    wanted: usize,
    /// Made and waiting.
    ready: BTreeMap<usize, Result<T>>,
}

impl<T: Send + 'static> Prefetch<T> {
    /// Items `0..count` from `make`, by so many threads, or as many as the system gives; without any, each is made when
    /// it is asked for.
    pub fn new(
        count: usize,
        workers: usize,
        make: impl Fn(usize, &AtomicBool) -> Result<T> + Send + Sync + 'static,
    ) -> Self {
        let shared = Arc::new(Shared {
            make: Box::new(make),
            count,
            ahead: workers.saturating_add(1), // one waits while every worker makes one
            stop: AtomicBool::new(false),
            state: Mutex::new(State { next: 0, wanted: 0, ready: BTreeMap::new() }),
            changed: Condvar::new(),
        });
        let spawn = |_| {
            let shared = shared.clone();
            thread::Builder::new().spawn(move || shared.work()).ok()
        };
        let workers = (0..workers.min(count)).map_while(spawn).collect();
        Self { shared, workers }
    }
}

impl<T> Shared<T> {
    fn work(&self) {
        while let Some(i) = self.next_to_make() {
            let item = self.make(i);
            self.lock().ready.insert(i, item);
            self.changed.notify_all();
        }
    }

    fn next_to_make(&self) -> Option<usize> {
        let mut state = self.lock();
        loop {
            if self.stop.load(Ordering::Relaxed) || state.next == self.count {
                return None;
            }
            if state.next - state.wanted < self.ahead {
                state.next += 1;
                return Some(state.next - 1);
            }
            state = self.changed.wait(state).expect("nothing panics under the lock");
        }
    }

    /// Item `i`; a panic on the way becomes an error.
    fn make(&self, i: usize) -> Result<T> {
        let make = AssertUnwindSafe(|| (self.make)(i, &self.stop));
        catch_unwind(make).unwrap_or_else(|panic| {
            Err(anyhow!("loading batch {i} panicked: {}; please report this", message(&*panic)))
        })
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().expect("nothing panics under the lock")
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

impl<T> Iterator for Prefetch<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Result<T>> {
        let shared = &*self.shared;
        let mut state = shared.lock();
        let i = state.wanted;
        if i == shared.count || shared.stop.load(Ordering::Relaxed) {
            return None;
        }
        let item = if self.workers.is_empty() {
            drop(state);
            let item = shared.make(i);
            state = shared.lock();
            item
        } else {
            loop {
                if let Some(item) = state.ready.remove(&i) {
                    break item;
                }
                state = shared.changed.wait(state).expect("nothing panics under the lock");
            }
        };
        state.wanted += 1;
        if item.is_err() {
            shared.stop.store(true, Ordering::Relaxed);
        }
        drop(state);
        shared.changed.notify_all();
        Some(item)
    }
}

impl<T> Drop for Prefetch<T> {
    fn drop(&mut self) {
        {
            // Under the lock, so that no worker falls asleep between looking and being woken.
            let _state = self.shared.lock();
            self.shared.stop.store(true, Ordering::Relaxed);
        }
        self.shared.changed.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join(); // it caught its panics, which are no longer of interest
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn in_order_and_bounded() {
        for workers in [0, 1, 3, 8] {
            let made = Arc::new(AtomicUsize::new(0));
            let counter = made.clone();
            let items = Prefetch::new(50, workers, move |i, _| {
                thread::sleep(Duration::from_micros((i * 7 % 5) as u64 * 100));
                counter.fetch_add(1, Ordering::SeqCst);
                Ok(i)
            });
            for (i, item) in items.enumerate() {
                assert_eq!(item.unwrap(), i);
                assert!(made.load(Ordering::SeqCst) <= i + 1 + workers + 1);
            }
            assert_eq!(made.load(Ordering::SeqCst), 50);
        }
    }

    #[test]
    fn errors_and_panics_end_it() {
        for workers in [0, 1, 3] {
            for panics in [false, true] {
                let mut items = Prefetch::new(50, workers, move |i, _| match i {
                    5 if panics => panic!("oh {i}"),
                    5 => Err(anyhow!("oh 5")),
                    _ => Ok(i),
                });
                assert!(items.by_ref().take(5).all(|item| item.is_ok()));
                let error = items.next().unwrap().unwrap_err().to_string();
                assert!(error.contains("oh 5"), "{error}");
                assert!(items.next().is_none());
            }
        }
    }

    #[test]
    fn dropping_stops_the_threads() {
        let start = Instant::now();
        let mut items = Prefetch::new(usize::MAX, 2, |i, stop| {
            while i > 0 && !stop.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(1));
            }
            Ok(i)
        });
        assert_eq!(items.next().unwrap().unwrap(), 0);
        drop(items);
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}

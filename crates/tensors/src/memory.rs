//! One budget for what files and options ask for.
//!
//! A file of a few bytes may name sizes of terabytes, and so may an option or the product of two. Whoever allocates by such
//! a word asks here first. The budget is one for the whole process, since so is its memory: [`limit`] is three quarters of
//! what the machine (or its control group) has free when it is first asked, unless [`set_limit`] said otherwise.
//!
//! ```
//! use srigl_tensors::memory::{self, TooLarge};
//!
//! memory::set_limit(1_000_000);
//! // The file says 1000 × 1000 numbers.
//! let bytes = memory::product(&[1000, 1000, size_of::<f32>()]);
//! assert_eq!(memory::check(bytes), Err(TooLarge { bytes: Some(4_000_000), limit: 1_000_000 }));
//! let zeros: Vec<f32> = memory::filled(0.0, 1000)?;
//! # assert_eq!(zeros.len(), 1000);
//! # Ok::<(), TooLarge>(())
//! ```

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use sysinfo::{MemoryRefreshKind, System};

/// Bytes; 0 until somebody asks or sets it.
static LIMIT: AtomicU64 = AtomicU64::new(0);

/// Where the machine does not tell how much memory it has.
const UNKNOWN: u64 = 4 << 30;

/// More memory than the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge {
    /// What it would take; `None` if that is more than a number holds.
    pub bytes: Option<u64>,
    /// The budget.
    pub limit: u64,
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = Size(self.limit);
        match self.bytes {
            Some(bytes) => write!(f, "it would take {} of memory, but {limit} are allowed", Size(bytes)),
            None => write!(f, "it would take more memory than can be counted, but {limit} are allowed"),
        }
    }
}

impl std::error::Error for TooLarge {}

/// Bytes, for people: `4.3 GB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
        let bytes = self.0 as f64;
        match units.iter().find(|(unit, _)| bytes >= *unit) {
            Some((unit, name)) => write!(f, "{:.1} {name}", bytes / unit),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

/// The most bytes that may be asked for at once.
pub fn limit() -> u64 {
    match LIMIT.load(Ordering::Relaxed) {
        0 => {
            // Whoever asks at the same time finds about the same.
            _ = LIMIT.compare_exchange(0, of_machine().max(1), Ordering::Relaxed, Ordering::Relaxed);
            LIMIT.load(Ordering::Relaxed)
        }
        limit => limit,
    }
}

/// Sets the [`limit`] for all that follows; 0 allows a single byte.
pub fn set_limit(bytes: u64) {
    LIMIT.store(bytes.max(1), Ordering::Relaxed);
}

/// Three quarters of the memory that is free.
fn of_machine() -> u64 {
    if cfg!(miri) {
        // Nobody can ask the machine there.
        return UNKNOWN;
    }
    let mut system = System::new();
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let machine = system.available_memory();
    // What a group has free does not count the files that the system keeps in memory and would give up.
    let of_group = system.cgroup_limits().map(|group| group.total_memory.saturating_sub(group.rss));
    match of_group {
        Some(group) => group.min(machine) / 4 * 3,
        None if machine == 0 => UNKNOWN,
        None => machine / 4 * 3,
    }
}

/// Bytes that this process has now (`VmRSS`) or had at most (`VmHWM`); `None` where the system does not tell.
pub fn of_process(what: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'))?;
    Some(1024 * line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?)
}

/// The product of sizes, or `None` if no number holds it.
pub fn product(sizes: &[usize]) -> Option<u64> {
    sizes.iter().try_fold(1u64, |product, &size| product.checked_mul(size as u64))
}

/// Whether so many bytes may be asked for; `None` is more than a number holds.
///
/// # Errors
/// [`TooLarge`] if not.
pub fn check(bytes: Option<u64>) -> Result<(), TooLarge> {
    let limit = limit();
    match bytes {
        Some(bytes) if bytes <= limit => Ok(()),
        bytes => Err(TooLarge { bytes, limit }),
    }
}

/// The first of `most`, half of it, half of that, … that fits; 1 if none does, so that whoever takes it finds out.
///
/// ```
/// use srigl_tensors::memory::halved;
///
/// assert_eq!(halved(100, |size| size < 30), 25);
/// assert_eq!(halved(100, |_| false), 1);
/// ```
pub fn halved(most: usize, fits: impl Fn(usize) -> bool) -> usize {
    let mut sizes = std::iter::successors(Some(most), |size| Some(size / 2)).take_while(|size| *size > 0);
    sizes.find(|size| fits(*size)).unwrap_or(1)
}

/// An empty vector with room for `len` values.
///
/// # Errors
/// [`TooLarge`] if that is more than the budget, or the machine does not give it.
pub fn with_capacity<T>(len: usize) -> Result<Vec<T>, TooLarge> {
    let bytes = product(&[len, size_of::<T>()]);
    check(bytes)?;
    let mut values = Vec::new();
    values.try_reserve_exact(len).map_err(|_| TooLarge { bytes, limit: limit() })?;
    Ok(values)
}

/// `len` times the same value.
///
/// # Errors
/// As [`with_capacity`].
pub fn filled<T: Clone>(value: T, len: usize) -> Result<Vec<T>, TooLarge> {
    let mut values = with_capacity(len)?;
    values.resize(len, value);
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_checked_before_memory_is_asked_for() {
        assert!(of_machine() > 1 << 20);
        set_limit(1000);
        assert_eq!(check(Some(1000)), Ok(()));
        assert_eq!(check(Some(1001)), Err(TooLarge { bytes: Some(1001), limit: 1000 }));
        assert_eq!(check(product(&[usize::MAX, 2])), Err(TooLarge { bytes: None, limit: 1000 }));
        assert_eq!(filled(7u32, 250), Ok(vec![7; 250]));
        assert!(filled(7u32, 251).is_err());
        // Allowed, but there is no such memory.
        set_limit(u64::MAX);
        assert!(with_capacity::<u8>(1 << 62).is_err());
        set_limit(0);
        assert_eq!(limit(), 1);
    }

    #[test]
    fn sizes_for_people() {
        let text = |bytes| Size(bytes).to_string();
        assert_eq!([text(999), text(1000), text(4_294_967_296)], ["999 bytes", "1.0 kB", "4.3 GB"]);
        let error = TooLarge { bytes: Some(4_294_967_296), limit: 2_000_000_000 };
        assert_eq!(error.to_string(), "it would take 4.3 GB of memory, but 2.0 GB are allowed");
    }
}

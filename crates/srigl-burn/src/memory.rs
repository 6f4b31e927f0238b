//! Memory of tensors that nobody needs any more, for those that are made next. New memory is set to 0 before a kernel writes
//! it, which is a tenth of a training step.

use crate::condensed_ops::lock;
use std::sync::Mutex;

/// Numbers that are kept in all: 1 GiB.
const MOST: usize = 1 << 28;

/// Less is not worth looking for.
const LEAST: usize = 1 << 12;

static FREE: Mutex<Free> = Mutex::new(Free::NONE);

#[derive(Debug)]
struct Free {
    all: Vec<Vec<f32>>,
    /// Room in them.
    numbers: usize,
    /// How many more have been taken than given back, by the power of two of their room. No more come back than were taken:
    /// tensors that others make, such as images, would be kept step after step.
    taken: [i64; usize::BITS as usize],
}

/// So many numbers, whatever they are: for results of which each is written.
pub(crate) fn take(len: usize) -> Vec<f32> {
    if len < LEAST {
        return vec![0.0; len];
    }
    match lock(&FREE).take(len) {
        Some(mut numbers) => {
            numbers.resize(len, 0.0);
            numbers
        }
        None => vec![0.0; len],
    }
}

/// Gives numbers back.
pub(crate) fn give(numbers: Vec<f32>) {
    if numbers.capacity() >= LEAST {
        lock(&FREE).give(numbers);
    }
}

fn size(room: usize) -> usize {
    room.max(1).ilog2() as usize
}

impl Free {
    const NONE: Self = Self { all: Vec::new(), numbers: 0, taken: [0; usize::BITS as usize] };

    /// The smallest room for so many, unless most of it would stay empty.
    fn take(&mut self, len: usize) -> Option<Vec<f32>> {
        let fits = |numbers: &Vec<f32>| (len..=len.saturating_mul(2)).contains(&numbers.capacity());
        let fitting = self.all.iter().enumerate().filter(|(_, numbers)| fits(numbers));
        let Some((index, _)) = fitting.min_by_key(|(_, numbers)| numbers.capacity()) else {
            // New memory is taken, too.
            self.taken[size(len)] += 1;
            return None;
        };
        let numbers = self.all.swap_remove(index);
        self.numbers -= numbers.capacity();
        self.taken[size(numbers.capacity())] += 1;
        Some(numbers)
    }

    fn give(&mut self, numbers: Vec<f32>) {
        let taken = &mut self.taken[size(numbers.capacity())];
        if *taken > 0 && self.numbers + numbers.capacity() <= MOST {
            *taken -= 1;
            self.numbers += numbers.capacity();
            self.all.push(numbers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_that_fits_is_taken_and_no_more_than_was_taken_comes_back() {
        let mut free = Free::NONE;
        for len in [100, 150, 300] {
            assert_eq!(free.take(len), None);
        }
        for capacity in [100, 150, 300] {
            free.give(Vec::with_capacity(capacity));
            // Of somebody else.
            free.give(Vec::with_capacity(capacity));
        }
        assert_eq!((free.all.len(), free.numbers), (3, 550));
        let capacity = |free: &mut Free, len| free.take(len).map(|numbers| numbers.capacity());
        assert_eq!(capacity(&mut free, 90), Some(100));
        assert_eq!(capacity(&mut free, 90), Some(150));
        assert_eq!(capacity(&mut free, 90), None);
        assert_eq!((free.all.len(), free.numbers), (1, 300));
        free.numbers = MOST;
        free.give(Vec::with_capacity(100));
        assert_eq!(free.all.len(), 1);
    }

    #[test]
    fn what_is_taken_has_the_length_asked_for() {
        for len in [5 * LEAST, 4 * LEAST, LEAST, 3, 0] {
            let numbers = take(len);
            assert_eq!(numbers.len(), len);
            give(numbers);
        }
    }
}

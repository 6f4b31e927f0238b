//! Memory of tensors that nobody needs any more, for those that are made next. New memory is set to 0 before a kernel writes
//! it, which is a tenth of a training step.

use crate::condensed_ops::lock;
use std::sync::Mutex;

/// Numbers that are kept in all: 1 GiB.
const MOST: usize = 1 << 28;

/// Less is not worth looking for.
const LEAST: usize = 1 << 12;

static FREE: Mutex<Free> = Mutex::new(Free { all: Vec::new(), numbers: 0 });

#[derive(Debug)]
struct Free {
    all: Vec<Vec<f32>>,
    /// Room in them.
    numbers: usize,
}

/// So many numbers, whatever they are: for results of which each is written.
pub(crate) fn take(len: usize) -> Vec<f32> {
    let free = (len >= LEAST).then(|| lock(&FREE).take(len)).flatten();
    match free {
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

impl Free {
    /// The smallest room for so many, unless most of it would stay empty.
    fn take(&mut self, len: usize) -> Option<Vec<f32>> {
        let fits = |numbers: &Vec<f32>| (len..=len.saturating_mul(2)).contains(&numbers.capacity());
        let fitting = self.all.iter().enumerate().filter(|(_, numbers)| fits(numbers));
        let (index, _) = fitting.min_by_key(|(_, numbers)| numbers.capacity())?;
        let numbers = self.all.swap_remove(index);
        self.numbers -= numbers.capacity();
        Some(numbers)
    }

    fn give(&mut self, numbers: Vec<f32>) {
        if self.numbers + numbers.capacity() <= MOST {
            self.numbers += numbers.capacity();
            self.all.push(numbers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_that_fits_is_taken_and_no_more_than_the_most_is_kept() {
        let mut free = Free { all: Vec::new(), numbers: 0 };
        for capacity in [100, 150, 300] {
            free.give(Vec::with_capacity(capacity));
        }
        assert_eq!(free.take(90).map(|numbers| numbers.capacity()), Some(100));
        assert_eq!(free.take(90).map(|numbers| numbers.capacity()), Some(150));
        assert_eq!(free.take(90).map(|numbers| numbers.capacity()), None);
        assert_eq!((free.all.len(), free.numbers), (1, 300));
        free.numbers = MOST;
        free.give(Vec::with_capacity(10));
        assert_eq!(free.all.len(), 1);
    }

    #[test]
    fn what_is_taken_has_the_length_asked_for() {
        give(vec![7.0; 5 * LEAST]);
        assert_eq!(take(4 * LEAST).len(), 4 * LEAST);
        give(vec![7.0; LEAST]);
        assert_eq!((take(LEAST).len(), take(3).len(), take(0).len()), (LEAST, 3, 0));
    }
}

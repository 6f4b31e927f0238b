//! Which labels share inputs.

use crate::{Error, Points};
use srigl_tensors::memory;
use std::cmp::Reverse;
use std::collections::HashMap;

/// Labels of a point whose pairs are counted: of points with hundreds, all pairs would tell more of these points than of the labels.
const LABELS: usize = 32;
/// Points that are read at once.
const CHUNK: usize = 4096;

/// An order of all labels: the `head` most frequent ones first, the others in groups of `group` labels that points have together.
/// A group begins with the most frequent label that is left, and takes those that most often come with its labels; where none does,
/// the most frequent ones that are left fill it. Without head and groups, labels stay in their order.
pub(crate) fn order(points: &Points, counts: &[u32], head: usize, group: usize) -> Result<Vec<u32>, Error> {
    let mut order: Vec<u32> = (0..counts.len() as u32).collect();
    if head == 0 && group == 1 {
        return Ok(order);
    }
    order.sort_by_key(|label| (Reverse(counts[*label as usize]), *label));
    let head = head.min(order.len());
    if group == 1 {
        order[head..].sort_unstable();
        return Ok(order);
    }
    let mut is_free = vec![true; counts.len()];
    order[..head].iter().for_each(|label| is_free[*label as usize] = false);
    let companions = Companions::of(points, &is_free)?;
    let frequent = order.split_off(head);
    let mut rest = frequent.iter().copied();
    let mut begin = frequent.iter().copied();
    while let Some(first) = begin.find(|label| is_free[*label as usize]) {
        is_free[first as usize] = false;
        order.push(first);
        let mut together: HashMap<u32, u32> = HashMap::new();
        let mut newest = first;
        for _ in 1..group {
            for (label, count) in companions.of_label(newest) {
                *together.entry(*label).or_default() += count;
            }
            together.retain(|label, _| is_free[*label as usize]);
            // Of as many, the lower label: the order of the map must not matter.
            let next = together.iter().max_by_key(|(label, count)| (**count, Reverse(**label)));
            let next = next.map(|(label, _)| *label).or_else(|| rest.find(|label| is_free[*label as usize]));
            let Some(next) = next else { return Ok(order) };
            is_free[next as usize] = false;
            order.push(next);
            newest = next;
        }
    }
    Ok(order)
}

/// How often labels come together.
struct Companions {
    /// Where those of each label end.
    ends: Vec<usize>,
    /// Label and points.
    counts: Vec<(u32, u32)>,
}

impl Companions {
    fn of(points: &Points, wanted: &[bool]) -> Result<Self, Error> {
        let mut pairs: HashMap<(u32, u32), u32> = HashMap::new();
        let room = |cause| Error::Memory { what: "counts of labels that come together", cause };
        for first in (0..points.len()).step_by(CHUNK) {
            let chunk: Vec<usize> = (first..points.len().min(first + CHUNK)).collect();
            let batch = points.labels_of(&chunk)?;
            for point in 0..batch.len() {
                let labels = batch.labels(point).iter().filter(|label| wanted[**label as usize]);
                let labels: Vec<u32> = labels.take(LABELS).copied().collect();
                for a in &labels {
                    for b in labels.iter().filter(|b| a != *b) {
                        *pairs.entry((*a, *b)).or_default() += 1;
                    }
                }
            }
            // A map has up to twice the room that it needs, and its content is sorted next to it.
            memory::check(memory::product(&[pairs.len(), 3, size_of::<((u32, u32), u32)>()]))
                .map_err(room)?;
        }
        let mut sorted: Vec<((u32, u32), u32)> = pairs.into_iter().collect();
        sorted.sort_unstable();
        let ends = (0..wanted.len() as u32).map(|label| sorted.partition_point(|((a, _), _)| *a <= label));
        let ends = ends.collect();
        Ok(Self { ends, counts: sorted.into_iter().map(|((_, b), count)| (b, count)).collect() })
    }

    fn of_label(&self, label: u32) -> &[(u32, u32)] {
        let before = label.checked_sub(1).map_or(0, |before| self.ends[before as usize]);
        &self.counts[before..self.ends[label as usize]]
    }
}
